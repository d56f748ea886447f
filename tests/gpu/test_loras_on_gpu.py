"""LoRA slots on a GPU, with one product for a batch, against diffusers and peft."""

import pytest

from serve.engine.checkpoint import Checkpoint
from serve.settings import Dtype, Precision
from tests.gpu.helpers import SIZE, LoadOnGpu
from tests.unit.engine import diffusers_reference
from tests.unit.engine.loras import lora_requests, make_lora
from tests.unit.engine.peft_reference import add_peft_layers
from tests.unit.engine.requests import make_request, run_request, run_requests

SCALES = ({"all_layers": 1.0}, {"attention": 0.6, "biases": -1.5})
"""Of two images in a batch."""


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-3), ("bf16", 0.1)])
def test_batch_of_different_loras_equals_images_of_peft(
    load_on_gpu: LoadOnGpu, load_new_on_gpu: LoadOnGpu, precision: Precision, tolerance: float
) -> None:
    """The tolerance is relative to the change that the LoRAs make."""
    vae: Dtype = "float32" if precision == "float32" else "bfloat16"
    checkpoint: Checkpoint = load_on_gpu("dev", precision, vae)
    loras = {
        "all_layers": make_lora(checkpoint, 1, rank=16, clip=True),
        "attention": make_lora(checkpoint, 2, rank=8, layers=r"attn\.(to_q|to_v|to_out|add_k_proj)"),
        "biases": make_lora(checkpoint, 6, rank=4, scale=0.5, biases=True),
    }
    plain = make_request(size=SIZE, steps=2)
    without = run_request(checkpoint, plain, cuda_graphs=False).latents[0].float()
    requests = [make_request(size=SIZE, steps=2, loras=lora_requests(**each), weights=loras) for each in SCALES]
    _, recorders = run_requests(checkpoint, [(0, each) for each in requests], cuda_graphs=False)
    for scales, recorder in zip(SCALES, recorders, strict=True):
        peft_checkpoint: Checkpoint = load_new_on_gpu("dev", precision, vae)
        add_peft_layers(peft_checkpoint, loras, scales)
        expected = diffusers_reference.latents(peft_checkpoint, plain).float()
        change = (expected - without).norm()
        assert change > 0
        assert (recorder.latents[0].float() - expected).norm() <= tolerance * change
