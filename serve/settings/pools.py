"""Settings of a pool of replicas: how they compute, batch and scale."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from serve.model_specs import Size
from serve.settings.base import Device, Positive, Seconds, StrictModel

Precision = Literal["bf16", "fp8", "float32"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Fp8Kernel = Literal["auto", "rowwise", "quanto"]
CompiledPart = Literal["transformer", "vae", "text_encoders"]
AttentionKernel = Literal["auto", "cudnn", "flash", "flash4", "efficient", "math"]
LoraProduct = Literal["auto", "per_image", "per_batch"]
SchedulingPolicy = Literal["deadline", "turns"]

_COMPILED_PARTS: tuple[CompiledPart, ...] = ("transformer", "vae")
"""On a GPU. Text encoders take one percent of an image's time."""


class Dtypes(StrictModel):
    """The dtype in which each part of a checkpoint computes.

    `auto` means bfloat16 if the device computes it fast, which is measured at start-up, otherwise float32 with the same
    weights: they are rounded to bfloat16 in both cases.
    """

    transformer: Dtype
    text_encoders: Dtype
    vae: Dtype


class Scaling(StrictModel):
    """The `autoscaling_config` of a pool's deployment, by the names of Ray Serve.

    The default delays are shorter than Ray Serve's, because requests take seconds.
    """

    min_replicas: Annotated[int, Field(ge=0)] = 1
    initial_replicas: Annotated[int, Field(ge=0)] | None = None
    max_replicas: Positive = 1
    target_ongoing_requests: Annotated[float, Field(gt=0)] = 4
    metrics_interval_s: Seconds = 1
    look_back_period_s: Seconds = 5
    upscale_delay_s: Annotated[float, Field(ge=0)] = 3
    downscale_delay_s: Annotated[float, Field(ge=0)] = 60
    downscale_to_zero_delay_s: Annotated[float, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas is larger than max_replicas")
        return self


class PoolSettings(StrictModel):
    """A pool of replicas that serve one model at one precision."""

    model: str
    """A key of `models`."""
    precision: Precision = "bf16"
    device: Device = "cpu"
    dtypes: dict[Device, Dtypes] = Field(
        default={
            # bf16 convolutions on a CPU are 30 to 60 times slower than float32 ones.
            "cpu": Dtypes(transformer="auto", text_encoders="auto", vae="float32"),
            "cuda": Dtypes(transformer="bfloat16", text_encoders="bfloat16", vae="bfloat16"),
        }
    )
    quantize_t5: bool = False
    """Quantize T5's linear layers to float8 as well, which halves its memory."""
    fp8_kernel: Fp8Kernel = "auto"
    """How fp8 layers multiply: `rowwise` in float8 on GPUs with float8 units, `quanto` in the compute dtype."""
    compile: tuple[CompiledPart, ...] | None = None
    """Parts that `torch.compile` compiles; None means transformer and VAE on a GPU, and nothing on a CPU."""
    cuda_graphs: bool = True
    """Replay the kernels of a pass as a CUDA graph. Has no effect on a CPU."""
    attention: AttentionKernel = "auto"
    """The kernel of the transformer's attention; `auto` means the fastest, which is measured at start-up on a GPU."""
    run_ahead: bool = True
    """Queue the next pass on the GPU while the current one runs. Has no effect on a CPU."""
    precompute_modulation: bool = True
    """Compute the modulation vectors of all steps when a request starts, rather than in every step."""
    lora_product: LoraProduct = "auto"
    """Multiply the LoRAs of a batch image by image or together; `auto` means together on a GPU or if compiled.

    Image by image, batches with LoRAs run uncompiled.
    """
    scheduling_policy: SchedulingPolicy = "deadline"
    """Which images advance next: `deadline` favours short work, with `turns` all sizes advance alternately."""
    max_batch: Positive = 8
    """Maximum number of images in one transformer pass."""
    disable_batching: bool = False
    """Run every image in a batch of one. On a GPU the batch size may change rounding; this prevents it."""
    warmup_sizes: tuple[Size, ...] = ((512, 512),)
    """Sizes that a replica generates once before it reports ready. On a GPU, the first run of a size is slower."""
    max_megapixels: Annotated[float, Field(gt=0)] = 2.1
    """Requests for larger images are rejected."""
    num_threads: Positive | None = None
    """CPU threads of torch; None means one for each CPU that the replica may use, at most 8."""
    prompt_cache_entries: Annotated[int, Field(ge=0)] = 64
    lora_bytes: Positive = 256 * 2**20
    """Device memory reserved for LoRAs. FLUX takes 11.2 MB for each rank, so 179 MB for a LoRA of rank 16."""
    batch_across_loras: bool = True
    """Batch images with different LoRAs. If false, only images with the same LoRAs and scales share a batch."""
    max_in_flight: Positive = 64
    """Maximum number of unfinished predictions over all replicas; further ones are rejected with 429."""
    max_ongoing_requests: Positive = 16
    """Predictions that one replica runs at once."""
    graceful_shutdown_timeout_s: Annotated[float, Field(ge=120)] = 120
    """How long a replica that is being removed may take to finish its predictions."""
    health_check_period_s: Seconds = 10
    health_check_timeout_s: Seconds = 30
    num_cpus: Annotated[float, Field(ge=0)] = 0.4
    num_gpus: Annotated[float, Field(ge=0)] = 0
    scaling: Scaling = Scaling()

    @property
    def compiled_parts(self) -> tuple[CompiledPart, ...]:
        if self.compile is None:
            return _COMPILED_PARTS if self.device == "cuda" else ()
        return self.compile

    @property
    def lora_product_per_batch(self) -> bool:
        """Whether the LoRAs of all images of a batch are multiplied together."""
        return self.lora_product == "per_batch" or (
            self.lora_product == "auto" and (self.device == "cuda" or "transformer" in self.compiled_parts)
        )
