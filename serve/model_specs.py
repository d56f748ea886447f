"""FLUX.1 facts as tables: model variants, the sizes of the API, and the models and LoRAs bundled with the project.

Sources: the model cards of FLUX.1 [dev] and [schnell], and the size table of Replicate's API. The bundled files are
written by `training/`, whose README describes them and their licences.
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
    """More steps than this bring little."""
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

SIZES: dict[str, dict[str, Size]] = {
    "1": {
        "1:1": (1024, 1024),
        "16:9": (1344, 768),
        "21:9": (1536, 640),
        "3:2": (1216, 832),
        "2:3": (832, 1216),
        "4:5": (896, 1088),
        "5:4": (1088, 896),
        "3:4": (896, 1152),
        "4:3": (1152, 896),
        "9:16": (768, 1344),
        "9:21": (640, 1536),
    },
    "0.25": {
        "1:1": (512, 512),
        "16:9": (672, 384),
        "21:9": (768, 320),
        "3:2": (608, 416),
        "2:3": (416, 608),
        "4:5": (448, 544),
        "5:4": (544, 448),
        "3:4": (448, 576),
        "4:3": (576, 448),
        "9:16": (384, 672),
        "9:21": (320, 768),
    },
}
"""megapixels -> aspect_ratio -> size, near the pixel count that the model was trained on."""

SIZE_MULTIPLE = 16
"""Custom sizes and input images are rounded to multiples of this. A checkpoint's own stride may be larger."""

CUSTOM_SIDE_MIN = 256
CUSTOM_SIDE_MAX = 1440
IMAGE_SIDE_MIN = 64
IMAGE_SIDE_MAX = 1440
IMAGE_RATIO_MAX = 8.0

EMBEDDED = "embedded"
"""As a model's `source`: the bundled model of its variant. In `embedded:name`: a LoRA bundled for it."""
EMBEDDED_MODELS_FOLDER = Path(__file__).parent / "models"
"""Contains one folder per variant, and `loras`."""
EMBEDDED_LORAS = ("handwriting", "sketch")


def nearest_multiple(side: float, multiple: int = SIZE_MULTIPLE) -> int:
    """The multiple nearest to `side`, rounding half up, at least `multiple`."""
    return max(multiple, int((side + multiple / 2) // multiple) * multiple)


def embedded_lora_file(name: str, models: Path = EMBEDDED_MODELS_FOLDER) -> Path:
    """Path of the bundled LoRA `name`, one of `EMBEDDED_LORAS`, below a folder of models."""
    return models / "loras" / f"{name}.safetensors"
