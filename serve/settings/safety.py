"""Settings of the safety checker."""

from typing import Annotated, Literal

from pydantic import Field

from serve.settings.base import Device, StrictModel


class SafetySettings(StrictModel):
    """The safety checker for generated images."""

    checker: Literal["opennsfw", "flux", "none"] = "opennsfw"
    """`opennsfw` includes its weights; `flux` runs the two models below, which are downloaded from Hugging Face."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.8
    """`opennsfw` flags images with at least this score."""
    concept_model: str = "CompVis/stable-diffusion-safety-checker"
    classifier_model: str = "Falconsai/nsfw_image_detection"
    device: Device = "cpu"
    checks_previews: bool = True
    """Whether requests that are checked may have previews, each of which is checked too.

    The checker may pass a blurred preview of an image that it withholds later. Without this, only requests that are not
    checked have previews.
    """
    allow_disabling: bool = True
    """Whether requests may set `disable_safety_checker`."""
