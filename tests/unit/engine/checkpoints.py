"""Checkpoints to test with: the embedded ones in every precision, built once and loaded once a session."""

from functools import cache
from pathlib import Path

from serve.catalog import VariantName
from serve.engine import embedded
from serve.engine.checkpoint import Checkpoint, load
from serve.engine.embedded_models import Geometry
from serve.settings import Dtype, Dtypes, ModelSettings, PoolSettings, Precision

FIVE_STAGES = Geometry(vae_widths=(8, 16, 16, 16, 16))
"""Its VAE shrinks a side 16 times instead of 8."""


class Checkpoints:
    """Loads by what a test is about; a checkpoint is never changed by drawing, so tests share them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.get = cache(self._load)

    def _load(
        self,
        variant: VariantName = "dev",
        precision: Precision = "bf16",
        vae: Dtype = "float32",
        geometry: Geometry | None = None,
    ) -> Checkpoint:
        geometry = geometry or Geometry()
        source = embedded.ensure(variant, self._folder, geometry)
        model = ModelSettings(
            variant=variant,
            source=str(source),
            pixel_stride=geometry.pixel_stride,
            text_tokens=geometry.text_tokens,
        )
        dtypes = Dtypes(transformer="bfloat16", text="bfloat16", vae=vae)
        return load(model, PoolSettings(model="", precision=precision, dtypes={"cpu": dtypes}), self._folder, None)
