"""What an answer tells of the time it took: the `Server-Timing` header, which browsers and load tests read. Pure."""

from serve.predictions.record import Prediction

STAGES = (
    "plan", "fetch", "queue", "lora", "text", "encode_image", "denoise", "decode", "safety", "encode", "store"
)  # fmt: skip


def server_timing(prediction: Prediction) -> dict[str, str]:
    """The header, with the stages that the prediction has gone through in their order; milliseconds."""
    stages = [f"{stage};dur={prediction.stages_ms[stage]:.1f}" for stage in STAGES if stage in prediction.stages_ms]
    return {"Server-Timing": ", ".join(stages)} if stages else {}
