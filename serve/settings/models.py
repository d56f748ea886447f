"""Settings of a checkpoint, of a model as clients see it, and of a deployment."""

import re
from typing import Annotated, Any

from pydantic import Field

from serve.model_specs import EMBEDDED, VariantName
from serve.settings.base import Positive, StrictModel

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]


class ModelSettings(StrictModel):
    """A checkpoint, and properties that are verified when it is loaded."""

    variant: VariantName
    source: str = EMBEDDED
    """`embedded` for the small model in this package, a folder in diffusers' layout, or a Hugging Face repository."""
    revision: str | None = None
    """Commit of the Hugging Face repository."""
    pixel_stride: Positive = 16
    """Side of one transformer token in pixels: the VAE's scale factor times 2, as latents are packed 2x2."""
    max_sequence_length: Positive
    """Every T5 prompt is padded or truncated to this many tokens."""


class InputBounds(StrictModel):
    """Bounds of one input that are narrower than those of the service."""

    minimum: float | None = None
    maximum: float | None = None
    choices: Annotated[tuple[str, ...], Field(min_length=1)] | None = None


class ServedModel(StrictModel):
    """A model as clients see it: `owner/name`, its version ids, and its inputs."""

    owner: Name
    name: Name
    versions: Annotated[tuple[str, ...], Field(min_length=1)]
    """Version ids, newest first."""
    description: str = ""
    default_inputs: dict[str, Any] = Field(default={})
    input_aliases: dict[str, str] = Field(default={})
    """Other names of inputs, each mapped to the name of this service."""
    input_bounds: dict[str, InputBounds] = Field(default={})
    """By the name of the input."""

    @property
    def full_name(self) -> str:
        return f"{self.owner}/{self.name}"


class DeploymentSettings(StrictModel):
    """A deployment of Replicate's API: another name for a served model."""

    owner: Name
    name: Name
    model: str
    """`owner/name` of a served model."""
    version: str | None = None
    """None means the newest."""


def is_same_id(one: str, other: str) -> bool:
    """Whether two version ids are equal, or both hexadecimal and one is the beginning of the other."""
    if one == other:
        return True
    return all(_HEX_ID.fullmatch(each) for each in (one, other)) and (one.startswith(other) or other.startswith(one))


_HEX_ID = re.compile(r"[0-9a-f]{8,}")
"""Version ids of at least eight hexadecimal digits, as web pages abbreviate them."""

_SCHNELL_INPUTS = {"model": "schnell", "num_inference_steps": 4}
_SCHNELL_BOUNDS = {
    "model": InputBounds(choices=("schnell",)),
    "num_inference_steps": InputBounds(minimum=1, maximum=4),
}
DEFAULT_SERVED_MODELS = (
    ServedModel(
        owner="black-forest-labs",
        name="flux-dev-lora",
        versions=("embedded",),
        description="The embedded models with LoRAs.",
        input_aliases={"guidance": "guidance_scale", "lora_weights": "replicate_weights"},
    ),
    ServedModel(
        owner="black-forest-labs",
        name="flux-dev",
        versions=("embedded-dev",),
        description="The embedded dev model.",
        input_aliases={"guidance": "guidance_scale"},
        input_bounds={"model": InputBounds(choices=("dev",))},
    ),
    ServedModel(
        owner="black-forest-labs",
        name="flux-schnell",
        versions=("embedded-schnell",),
        description="The embedded schnell model, for up to four steps.",
        default_inputs=_SCHNELL_INPUTS,
        input_bounds=_SCHNELL_BOUNDS,
    ),
    ServedModel(
        owner="black-forest-labs",
        name="flux-schnell-lora",
        versions=("embedded-schnell-lora",),
        description="The embedded schnell model with LoRAs, for up to four steps.",
        default_inputs=_SCHNELL_INPUTS,
        input_aliases={"lora_weights": "replicate_weights"},
        input_bounds=_SCHNELL_BOUNDS,
    ),
    ServedModel(
        owner="fofr",
        name="flux-handwriting-and-sketch",
        versions=("d592f697",),
        description="The embedded models with LoRAs of handwriting and sketches.",
        default_inputs={"replicate_weights": "embedded:handwriting", "extra_lora": "embedded:sketch"},
    ),
)
"""The names of Replicate's models for the embedded ones."""
