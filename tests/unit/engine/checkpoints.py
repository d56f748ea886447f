"""Loads tiny test checkpoints in every precision and a few geometries."""

from dataclasses import replace
from functools import cache
from pathlib import Path

from serve.engine.checkpoint import Checkpoint, load_checkpoint
from serve.model_specs import VariantName
from serve.settings import Dtype, Dtypes, Fp8Kernel, ModelSettings, PoolSettings, Precision
from test_checkpoints import checkpoint as test_checkpoint
from test_checkpoints.networks import Geometry

SMALL = Geometry(double_blocks=1, single_blocks=1, max_sequence_length=32)
"""Shallower than the embedded checkpoints and with shorter prompts, which halves the time of each step."""
FIVE_STAGES = replace(SMALL, vae_widths=(8, 16, 16, 16, 16))
"""The VAE downsamples each side 16 times instead of 8."""
WIDE = replace(SMALL, heads=8)
"""Wide enough that a CPU would sum products in another order for a batch than for one image."""
LORA_BYTES = 4 * 2**20
"""Memory for LoRA slots with a total rank of 147, for `SMALL` in bf16."""


class Checkpoints:
    """Test checkpoints. `get` caches them, because generating images does not change a checkpoint."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.get = cache(self.load)

    def load(
        self,
        variant: VariantName = "dev",
        precision: Precision = "bf16",
        vae: Dtype = "float32",
        geometry: Geometry = SMALL,
        lora_bytes: int = LORA_BYTES,
        fp8_kernel: Fp8Kernel = "auto",
    ) -> Checkpoint:
        """Returns a new checkpoint, which the test may change."""
        source = test_checkpoint.ensure(variant, self._folder, geometry)
        model = ModelSettings(
            variant=variant,
            source=str(source),
            pixel_stride=geometry.pixel_stride,
            max_sequence_length=geometry.max_sequence_length,
        )
        dtypes = Dtypes(transformer="bfloat16", text_encoders="bfloat16", vae=vae)
        pool = PoolSettings(
            model="", precision=precision, dtypes={"cpu": dtypes}, lora_bytes=lora_bytes, fp8_kernel=fp8_kernel
        )
        return load_checkpoint(model, pool, None)
