"""Settings of stored files: finished images, and files that clients upload."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from serve.settings.base import Positive, Seconds, StrictModel


class OutputSettings(StrictModel):
    """Where finished images are stored, and how responses refer to them."""

    public_url: str = "http://127.0.0.1:8000"
    """Base of every URL in a response. The Host header is not used, because clients choose it."""
    delivery: Literal["auto", "data", "url"] = "auto"
    """`auto` means `data:` URIs if `public_url` is plain http, as official clients handle only https: and data:."""
    max_age_s: Seconds = 3600
    """How long images, inputs and logs are kept after the end of their prediction."""
    max_bytes: Positive = 2 * 2**30
    """Total size of the images of ended predictions. When it is exceeded, the oldest are removed first."""
    link_max_age_s: Annotated[float, Field(ge=1, le=7 * 24 * 3600)] = 3600
    """How long a URL of an image or a file can be read without a token, at least. Stores sign for 7 days at most."""

    @property
    def base_url(self) -> str:
        """`public_url` without a slash at its end."""
        return self.public_url.rstrip("/")

    @property
    def uses_data_uris(self) -> bool:
        """Whether responses have `data:` URIs instead of URLs."""
        return self.delivery == "data" or (self.delivery == "auto" and not self.public_url.startswith("https:"))


class FileSettings(StrictModel):
    """Files that clients upload to `/v1/files`, as inputs of later predictions."""

    max_file_bytes: Positive = 2**30
    max_bytes: Positive = 4 * 2**30
    """Total size. When it is reached, the oldest files are removed first; uploads in progress count too."""
    max_files: Positive = 1000
    max_age_s: Seconds = 24 * 3600
    upload_timeout_s: Seconds = 600
    """Time in which the whole body of an upload must arrive."""

    @model_validator(mode="after")
    def _one_file_fits(self) -> Self:
        if self.max_file_bytes > self.max_bytes:
            raise ValueError("max_file_bytes is larger than max_bytes")
        return self
