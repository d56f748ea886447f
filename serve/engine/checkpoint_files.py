"""Finds checkpoint files, local or on the Hugging Face hub, and reads networks from them."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError

from serve.errors import ModelLoadError

if TYPE_CHECKING:
    import torch

_DAMAGE = (OSError, ValueError, RuntimeError, KeyError, SafetensorError)
"""How the libraries answer files that are missing, cut off, or of another model."""
_log = logging.getLogger(__name__)


def resolve_folder(source: str, revision: str | None, files: Iterable[str], hf_token: str | None) -> Path:
    """The folder of `source`: a local one as it is, or the hub repository at `revision`, fetched on first use.

    Of a repository only what matches one of the patterns `files` is fetched, in which `*` also crosses folders. Raises
    ModelLoadError with what the operator can do.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or source.startswith((".", "~")):
        raise ModelLoadError(source, "there is no such folder; correct `source`, or mount it on this node")
    _log.info("looking up %s at %s", source, revision or "its newest revision")
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(files), token=hf_token))
    except (HFValidationError, httpx.HTTPError, OSError) as error:
        raise ModelLoadError(source, _what_to_do(error, revision)) from error


@contextmanager
def model_load_errors(source: str) -> Iterator[None]:
    """Turns what the libraries say of unreadable files of `source` into ModelLoadError."""
    try:
        yield
    except _DAMAGE as error:
        first_line = next(iter(str(error).splitlines()), "")
        raise ModelLoadError(source, f"it cannot be loaded: {type(error).__name__}: {first_line}") from error


def load_network(kind: Any, folder: Path, dtype: "torch.dtype") -> Any:
    """The network of class `kind` in a folder, on the CPU, in evaluation mode and without gradients.

    Where weights are missing the libraries draw some, or none: here that is a ValueError.
    """
    network, report = kind.from_pretrained(folder, dtype=dtype, local_files_only=True, output_loading_info=True)
    missing = {*report["missing_keys"], *(name for name, weight in network.named_parameters() if weight.is_meta)}
    if missing:
        raise ValueError(f"{folder.name} lacks {len(missing)} weights, the first is {min(missing)}")
    return network.eval().requires_grad_(False)


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
            "it is not in the local cache, and the hub cannot be reached; check the network, or name a folder",
        ),
    )
    found = (what for kind, what in rules if isinstance(error, kind))
    return next(found, f"the download failed ({type(error).__name__}); check the disk and the network, and try again")
