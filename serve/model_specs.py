"""FLUX.1 facts as tables: model variants, the sizes of the API, and the models and LoRAs bundled with the project.

Sources: the model cards of FLUX.1 [dev] and [schnell], and the size table of Replicate's API. The bundled files are
written by `training/`, whose README describes them and their licences.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

VariantName = Literal["dev", "schnell"]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A trained kind of FLUX, as its authors published it."""

    repository: str
    revision: str
    licence: str
    guidance_embeds: bool
    """Has a guidance embedding, so `guidance_scale` means something."""
    recommended_steps: int
    """Steps after which more no longer pay."""
    max_sequence_length: int
    """Longest prompt in T5 tokens that it was trained on."""


MODEL_SPECS: dict[VariantName, ModelSpec] = {
    "dev": ModelSpec(
        repository="black-forest-labs/FLUX.1-dev",
        revision="3de623fc3c33e44ffbe2bad470d0f45bccf2eb21",
        licence="FLUX.1 [dev] Non-Commercial License",
        guidance_embeds=True,
        recommended_steps=28,
        max_sequence_length=512,
    ),
    "schnell": ModelSpec(
        repository="black-forest-labs/FLUX.1-schnell",
        revision="741f7c3ce8b383c54771c7003378a50191e9efe9",
        licence="Apache-2.0",
        guidance_embeds=False,
        recommended_steps=4,
        max_sequence_length=256,
    ),
}

Size = tuple[int, int]
"""Width and height in pixels."""

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
"""megapixels -> aspect_ratio -> size. The pixel count is what the model was trained on; the ratio is the nearest."""

SIZE_MULTIPLE = 16
"""The API rounds custom sizes and input pictures to multiples of this. What a checkpoint needs is its pixel stride."""

CUSTOM_SIDE_MIN = 256
CUSTOM_SIDE_MAX = 1440
IMAGE_SIDE_MIN = 64
IMAGE_SIDE_MAX = 1440
IMAGE_RATIO_MAX = 8.0


def nearest_multiple(side: float, multiple: int = SIZE_MULTIPLE) -> int:
    """The multiple nearest to `side`, half up, never 0."""
    return max(multiple, int((side + multiple / 2) // multiple) * multiple)


EMBEDDED = "embedded"
"""As a model's `source`: the small models. Before a colon and a name: a LoRA for them."""
EMBEDDED_MODELS_FOLDER = Path(__file__).parent / "models"
"""A folder for each variant."""
EMBEDDED_LORAS = ("handwriting", "sketch")


def embedded_lora_file(name: str, models: Path = EMBEDDED_MODELS_FOLDER) -> Path:
    """Of one of `LORAS`; of another export, if its folder is given."""
    return models / "loras" / f"{name}.safetensors"
