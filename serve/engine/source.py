"""Where models lie: the source of a settings row becomes a local folder. Knows nothing of what is in it."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path

import httpx
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from serve.errors import CheckpointUnusable

_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
_log = logging.getLogger(__name__)


def local_folder(source: str, revision: str | None, parts: Iterable[str], hf_token: str | None) -> Path:
    """The folder of `source`: a local one as it is, or the hub repository at `revision`, fetched on first use.

    Of a repository only the files in its folders `parts` are fetched (`.` is its root). Raises CheckpointUnusable with
    what the operator can do.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or source.startswith((".", "~")):
        raise CheckpointUnusable(source, "there is no such folder; correct `source`, or mount it on this node")
    _log.info("looking up %s at %s", source, revision or "its newest revision")
    patterns = [os.path.normpath(f"{part}/{files}") for part in parts for files in _FILES]
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns, token=hf_token))
    except (HFValidationError, httpx.HTTPError, OSError) as error:
        raise CheckpointUnusable(source, _what_to_do(error, revision)) from error


def _what_to_do(error: Exception, revision: str | None) -> str:
    """One sentence for an operator. The order matters: a gated repository is a missing one to whoever has no access."""
    rules: tuple[tuple[type[Exception], str], ...] = (
        (HFValidationError, "this is neither a local folder nor a repository `owner/name`; correct `source`"),
        (GatedRepoError, "the repository is gated; accept its licence on its page of the hub, and set HF_TOKEN"),
        (
            RepositoryNotFoundError,
            "there is no such repository, or none that HF_TOKEN may read; correct `source` or the token",
        ),
        (RevisionNotFoundError, f"the repository has no revision {revision!r}; correct `revision`"),
        (
            LocalEntryNotFoundError,
            "it is not in the local cache and the hub cannot be reached; connect, or name a folder",
        ),
        (HfHubHTTPError, "the hub refused the download; see the cause in the log and try again"),
    )
    found = (what for kind, what in rules if isinstance(error, kind))
    return next(found, f"the download failed ({type(error).__name__}); check the disk and the network, and try again")
