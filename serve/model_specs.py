"""Facts about FLUX.1 [dev] and [schnell] from their model cards, shared types of images, and the embedded models.

The embedded models and their LoRAs are written by `training/`, whose README describes them and their licences.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

VariantName = Literal["dev", "schnell"]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model variant of FLUX.1, as its authors published it."""

    guidance_embeds: bool
    """The transformer has a guidance embedding, so `guidance_scale` has an effect."""
    recommended_steps: int
    """Further steps hardly improve the image."""
    max_sequence_length: int
    """Longest prompt, in T5 tokens, that the model was trained on."""


MODEL_SPECS: dict[VariantName, ModelSpec] = {
    "dev": ModelSpec(
        guidance_embeds=True,
        recommended_steps=28,
        max_sequence_length=512,
    ),
    "schnell": ModelSpec(
        guidance_embeds=False,
        recommended_steps=4,
        max_sequence_length=256,
    ),
}

Size = tuple[int, int]
"""Width and height in pixels."""
ImageArray = NDArray[np.uint8]
"""[height, width, 3], RGB."""
MaskArray = NDArray[np.uint8]
"""[height, width]; pixels from `MASK_THRESHOLD` on are repainted."""
MASK_THRESHOLD = 128
ImageFormat = Literal["webp", "jpg", "png"]

EMBEDDED = "embedded"
"""As a model's `source`: the embedded model of its variant. In `embedded:name`: a LoRA for it."""
EMBEDDED_MODELS_FOLDER = Path(__file__).parent / "models"
"""Contains one folder per variant, and `loras`."""
EMBEDDED_LORAS = ("handwriting", "sketch")


def embedded_lora_file(name: str, models: Path = EMBEDDED_MODELS_FOLDER) -> Path:
    """Path of the embedded LoRA `name`, one of `EMBEDDED_LORAS`, below a folder of models."""
    return models / "loras" / f"{name}.safetensors"
