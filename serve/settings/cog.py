"""Settings of the Cog API."""

from typing import Annotated, Literal

from pydantic import Field

from serve.settings.base import StrictModel


class CogSettings(StrictModel):
    """The Cog API."""

    envelope: Literal["full", "short"] = "full"
    """The fields of responses: those of Cog 0.15, or the few of Cog 0.17 and later."""
    upload_url: Annotated[str | None, Field(pattern="^https?://[^/]+")] = None
    """Images of this API are sent there with PUT, as with Cog's `--upload-url`, and responses have their URLs."""
    shutdown: bool = False
    """Whether `POST /shutdown` stops the service."""
