"""What comes along with the project: a small trained model for each variant, and LoRAs for it. Names and places only.

`training` writes the files; it and the licences are described in its README.
"""

from pathlib import Path

EMBEDDED = "embedded"
"""As a model's `source`: the small models. Before a colon and a name: a LoRA for them."""
MODELS = Path(__file__).parent / "models"
"""A folder for each variant."""
LORAS = ("handwriting", "sketch")


def lora_file(name: str, models: Path = MODELS) -> Path:
    """Of one of `LORAS`; of another export, if its folder is given."""
    return models / "loras" / f"{name}.safetensors"
