"""The two scales at which the GPU benchmark runs: FLUX.1 on a GPU, and tiny networks on a CPU.

Pools have the production settings of `serve_config.yaml`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.geometry import make_flux1_checkpoint, make_small_checkpoint
from serve.engine.checkpoint import Checkpoint
from serve.model_specs import Size, VariantName
from serve.settings import Device, Dtypes, ModelSettings, PoolSettings, Precision, Settings

_CONFIG_FILE = Path(__file__).parents[2] / "serve_config.yaml"
_FLOAT32 = Dtypes(transformer="float32", text_encoders="float32", vae="float32")


@dataclass(frozen=True)
class Scale:
    """Sizes and repetitions of all measurements."""

    name: str
    device: Device
    sizes: tuple[Size, Size, Size, Size]
    """The sizes of steps: 256², 512², 1024² and 1440² on a GPU."""
    new_size: Size
    """A size that is not warmed up."""
    max_pixels: int
    """Maximum number of pixels of a batch; larger batches are not measured, as they take too long."""
    timed_steps: int
    dev_steps: int
    schnell_steps: int
    repeats: int
    warmup_sizes: tuple[Size, ...] | None = None
    """None means those of the production settings."""
    max_sequence_length: int | None = None
    """None means that of the production settings."""

    @property
    def small(self) -> Size:
        return self.sizes[0]

    @property
    def medium(self) -> Size:
        return self.sizes[1]

    @property
    def large(self) -> Size:
        return self.sizes[2]


GPU = Scale(
    name="gpu",
    device="cuda",
    sizes=((256, 256), (512, 512), (1024, 1024), (1440, 1440)),
    new_size=(960, 704),
    max_pixels=4 * 1024 * 1024,
    timed_steps=6,
    dev_steps=28,
    schnell_steps=4,
    repeats=3,
)
SMOKE = Scale(
    name="smoke",
    device="cpu",
    sizes=((32, 32), (48, 48), (64, 64), (80, 80)),
    new_size=(64, 48),
    max_pixels=4 * 64 * 64,
    timed_steps=1,
    dev_steps=2,
    schnell_steps=1,
    repeats=1,
    warmup_sizes=((64, 64), (48, 48)),
    max_sequence_length=32,
)
SCALES = {scale.name: scale for scale in (GPU, SMOKE)}


def make_pool(
    scale: Scale, variant: VariantName, precision: Precision, **changes: Any
) -> tuple[ModelSettings, PoolSettings]:
    """The production settings of the pool for this variant and precision, with `changes`, for the scale's device."""
    (application,) = yaml.safe_load(_CONFIG_FILE.read_text(encoding="utf-8"))["applications"]
    settings = Settings.model_validate(application["args"])
    pool = next(pool for pool in settings.pools.values() if settings.models[pool.model].variant == variant)
    fields: dict[str, Any] = {"precision": precision, "quantize_t5": precision == "fp8", "device": scale.device}
    if scale.device == "cpu":
        # bf16 would take most of the time on CPUs without bf16 instructions.
        fields |= {"dtypes": {"cpu": _FLOAT32}, "num_threads": 1, "lora_bytes": 2**28}
    if scale.warmup_sizes is not None:
        fields["warmup_sizes"] = scale.warmup_sizes
    model = settings.models[pool.model]
    if scale.max_sequence_length is not None:
        model = model.model_copy(update={"max_sequence_length": scale.max_sequence_length})
    return model, PoolSettings.model_validate(pool.model_dump() | fields | changes)


def make_checkpoint(scale: Scale, model: ModelSettings, pool: PoolSettings) -> Checkpoint:
    """A checkpoint with random weights, of FLUX.1's geometry on a GPU and of a tiny one on a CPU."""
    return make_flux1_checkpoint(model, pool) if scale.device == "cuda" else make_small_checkpoint(model, pool)
