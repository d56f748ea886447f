"""Settings of a checkpoint, and of a model as clients see it."""

from typing import Annotated, Any

from pydantic import Field

from serve.model_specs import EMBEDDED, VariantName
from serve.settings.base import Positive, StrictModel


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


class ServedModel(StrictModel):
    """A model as clients see it: `owner/name`, its version ids, and its default inputs."""

    owner: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    versions: Annotated[tuple[str, ...], Field(min_length=1)]
    """Version ids, newest first."""
    default_inputs: dict[str, Any] = Field(default={})

    @property
    def full_name(self) -> str:
        return f"{self.owner}/{self.name}"
