"""Finds checkpoint files, local or on the Hugging Face hub, and reads networks from them."""

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import snapshot_download

# HTTPError is that of the HTTP library that the installed huggingface_hub uses.
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError

from serve.errors import ModelLoadError
from serve.lora.model_geometry import ModelGeometry
from serve.model_specs import EMBEDDED, EMBEDDED_MODELS_FOLDER
from serve.settings import ModelSettings

if TYPE_CHECKING:
    import torch

PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
_PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model")
_LIBRARY_ERRORS = (OSError, ValueError, RuntimeError, KeyError, SafetensorError)
"""What the libraries raise for files that are missing, truncated, or of another model."""
_log = logging.getLogger(__name__)


def checkpoint_folder(model: ModelSettings, hf_token: str | None) -> Path:
    """The folder of a checkpoint in diffusers' layout, downloaded on first use. Raises `ModelLoadError`."""
    patterns = [f"{part}/{pattern}" for part in PARTS for pattern in _PATTERNS]
    folder = resolve_folder(_source(model), model.revision, patterns, hf_token)
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        why = f"it has no folder {', '.join(missing)}; use a checkpoint in diffusers' layout"
        raise ModelLoadError(model.source, why)
    return folder


def read_geometry(model: ModelSettings, hf_token: str | None) -> ModelGeometry:
    """The geometry that LoRAs for `model` must fit. Of a hub repository only two small files are downloaded.

    Raises `ModelLoadError`.
    """
    parts = ("transformer", "text_encoder")
    configs = [f"{part}/config.json" for part in parts]
    folder = resolve_folder(_source(model), model.revision, configs, hf_token)
    with model_load_errors(model.source):
        transformer, clip = (json.loads((folder / part / "config.json").read_bytes()) for part in parts)
        return ModelGeometry.from_configs(transformer, clip)


def resolve_folder(source: str, revision: str | None, patterns: Iterable[str], hf_token: str | None) -> Path:
    """The local folder of `source`, which is a folder or a hub repository that is downloaded on first use.

    Of a repository only files that match one of `patterns` are downloaded; `*` matches slashes too. Raises
    `ModelLoadError` with what the operator can do.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or source.startswith((".", "~")):
        raise ModelLoadError(source, "there is no such folder; correct `source`, or mount it on this node")
    _log.info("looking up %s at %s", source, revision or "its newest revision")
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(patterns), token=hf_token))
    except (HFValidationError, HTTPError, OSError) as error:
        raise ModelLoadError(source, _hub_error_advice(error, revision)) from error


@contextmanager
def model_load_errors(source: str) -> Iterator[None]:
    """Turns the libraries' errors about unreadable files of `source` into `ModelLoadError`."""
    try:
        yield
    except _LIBRARY_ERRORS as error:
        first_line = next(iter(str(error).splitlines()), "")
        raise ModelLoadError(source, f"its files cannot be read: {type(error).__name__}: {first_line}") from error


def load_network(network_class: Any, folder: Path, dtype: "torch.dtype") -> Any:
    """The network in a folder, on the CPU, in evaluation mode and without gradients.

    Raises ValueError if weights are missing; the libraries would initialize them randomly or not at all.
    """
    network, report = network_class.from_pretrained(
        folder, dtype=dtype, local_files_only=True, output_loading_info=True
    )
    missing = {*report["missing_keys"], *(name for name, weight in network.named_parameters() if weight.is_meta)}
    if missing:
        raise ValueError(f"{folder.name} lacks {len(missing)} weights, the first is {min(missing)}")
    return network.eval().requires_grad_(False)


def _source(model: ModelSettings) -> str:
    return str(EMBEDDED_MODELS_FOLDER / model.variant) if model.source == EMBEDDED else model.source


def _hub_error_advice(error: Exception, revision: str | None) -> str:
    """A sentence for the operator. The order matters: without access, a gated repository looks like a missing one."""
    messages: tuple[tuple[type[Exception], str], ...] = (
        (HFValidationError, "this is neither a local folder nor a repository `owner/name`; correct `source`"),
        (GatedRepoError, "the repository is gated; accept its licence on its page of the hub, and set HF_TOKEN"),
        (
            RepositoryNotFoundError,
            "there is no such repository, or HF_TOKEN may not read it; correct `source` or the token",
        ),
        (RevisionNotFoundError, f"the repository has no revision {revision!r}; correct `revision`"),
        (
            LocalEntryNotFoundError,
            "it is not in the local cache, and the hub cannot be reached; check the network, or use a local folder",
        ),
    )
    matching = (message for error_class, message in messages if isinstance(error, error_class))
    default = f"the download failed ({type(error).__name__}); check the disk and the network, and try again"
    return next(matching, default)
