"""Settings of LoRAs: their sources, downloads and cache."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from serve.settings.base import Positive, Seconds, StrictModel
from serve.settings.downloads import FetchSettings

Url = Annotated[str, Field(pattern=r"^https?://[^/?#@]+(/[^?#]*)?$")]


class LoraFetchSettings(FetchSettings):
    """The same limits for LoRAs, which are larger than images."""

    max_bytes: Positive = 2 * 2**30
    read_timeout_s: Seconds = 30
    total_timeout_s: Seconds = 900
    max_attempts: Positive = 4
    max_concurrent: Positive = 8


class LoraCacheSettings(StrictModel):
    """The LoRA cache: one actor for the whole cluster, with entries in memory and on disk."""

    memory_bytes: Positive = 64 * 2**20
    """Maximum use of its node's object store. A FLUX LoRA takes tens to hundreds of MB."""
    disk_bytes: Positive = 4 * 2**30
    folder: Path | None = None
    """Folder on the disk of the actor's node; None means `loras` in the cache folder."""
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(default={"node:__internal_head__": 0.001})
    """Ray resources that select the actor's node, by default the head node.

    Choose a permanent node: the autoscaler cannot remove a node while cache entries are in its object store.
    """
    start_timeout_s: Seconds = 120


class LoraSettings(StrictModel):
    """Sources of LoRAs, and limits on them."""

    aliases: dict[str, str] = Field(default={})
    """Names that clients may use, each mapped to a LoRA reference or a local file."""
    folders: tuple[Path, ...] = ()
    """Local folders from which clients may request LoRA files by path; none by default."""
    allow_http: bool = False
    """Allow LoRA downloads over plain http, which an attacker on the network can replace."""
    huggingface_url: Url = "https://huggingface.co"
    civitai_url: Url = "https://civitai.com"
    replicate_url: Url = "https://replicate.com"
    s3_url: Url = "https://{bucket}.s3.amazonaws.com"
    """Base URL of a bucket's objects; for another S3 server, for example, `http://store.internal:9000/{bucket}`."""
    fetch: LoraFetchSettings = LoraFetchSettings()
    cache: LoraCacheSettings = LoraCacheSettings()
    max_unpacked_bytes: Positive = 4 * 2**30
    """Maximum unpacked size of an archive."""
    max_rank: Positive = 256
    max_tensors: Positive = 10_000
    revalidate_after_s: Seconds = 300
    """References that may change, such as `owner/name`, are resolved again after this time."""
    failure_ttl_s: Seconds = 30
    """How long a failed reference keeps failing without another attempt."""
