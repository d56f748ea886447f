"""Resolves Hugging Face references to a file, commit and checksum."""

from collections.abc import Sequence
from urllib.parse import quote

from huggingface_hub import hf_hub_url
from pydantic import BaseModel, Field, ValidationError

from serve.errors import FetchFailed, InvalidLora
from serve.lora.archive import CONFIG_NAME
from serve.lora.download import Downloader
from serve.lora.file_type import ACCEPTED_SUFFIXES, WEIGHTS_SUFFIX
from serve.lora.provider import Provider, RemoteFile, ResolvedFile
from serve.lora.reference import HubFile
from serve.lora.safetensors_header import display_name, display_names

PEFT_WEIGHTS_NAME = "adapter_model.safetensors"
DEFAULT_NAMES = ("pytorch_lora_weights.safetensors", PEFT_WEIGHTS_NAME, "lora.safetensors")
"""Default file names of diffusers, PEFT and trainers: preferred if a repository has several weights files."""


class _Lfs(BaseModel):
    """Git LFS metadata, which the Hub has for large files."""

    sha256: str


class _File(BaseModel):
    name: str = Field(alias="rfilename")
    lfs: _Lfs | None = None

    @property
    def sha256(self) -> str | None:
        return self.lfs.sha256.lower() if self.lfs else None


class _Repository(BaseModel):
    """The Hub's description of a repository at one revision."""

    commit: str = Field(alias="sha")
    files: tuple[_File, ...] = Field(default=(), alias="siblings")


async def resolve(reference: HubFile, hub: Provider, downloader: Downloader) -> ResolvedFile:
    """The file that `reference` currently resolves to. Raises `FetchFailed`, and `InvalidLora` if it is ambiguous."""
    revision = quote(reference.revision, safe="")
    url = f"{hub.base_url}/api/models/{quote(reference.repository)}/revision/{revision}?blobs=true"
    response = await downloader.fetch_json(RemoteFile(url, hub), reference.display_name)
    try:
        repository = _Repository.model_validate(response)
    except ValidationError as error:
        raise FetchFailed(
            reference.display_name, f"{hub.name} returned an unexpected response for the repository"
        ) from error
    files = {file.name: file for file in repository.files}
    weights_name = _select_file(reference, sorted(files))
    config_name = f"{weights_name.rpartition('/')[0]}/{CONFIG_NAME}".lstrip("/")
    has_config = weights_name.endswith(PEFT_WEIGHTS_NAME) and config_name in files

    def remote_file(name: str) -> RemoteFile:
        url = hf_hub_url(reference.repository, name, revision=repository.commit, endpoint=hub.base_url)
        return RemoteFile(url, hub, files[name].sha256)

    return ResolvedFile(
        remote_file(weights_name),
        revision=files[weights_name].sha256 or repository.commit,
        config=remote_file(config_name) if has_config else None,
    )


def _select_file(reference: HubFile, names: Sequence[str]) -> str:
    """The file at the path of `reference`, or the only candidate below it.

    The first of these that has exactly one member decides: all weights files, those directly in the folder, those with
    a default name, and archives if there are no weights files. Raises `InvalidLora` if none has.
    """
    if reference.path in names:
        return reference.path
    folder = f"{reference.path.rstrip('/')}/" if reference.path else ""
    in_folder = [name for name in names if name.startswith(folder)]
    weights = [name for name in in_folder if name.lower().endswith(WEIGHTS_SUFFIX)]
    archives = [name for name in in_folder if name.lower().endswith(ACCEPTED_SUFFIXES) and name not in weights]
    top_level = [name for name in weights if "/" not in name.removeprefix(folder)]
    default_named = [name for name in top_level if name.removeprefix(folder) in DEFAULT_NAMES]
    for candidates in (weights, top_level, default_named, archives if not weights else []):
        if len(candidates) == 1:
            return candidates[0]
    raise InvalidLora(reference.display_name, _ambiguity(reference, weights or archives))


def _ambiguity(reference: HubFile, candidates: Sequence[str]) -> str:
    if not candidates:
        missing = display_name(reference.path) if reference.path else f"{WEIGHTS_SUFFIX} file"
        return f"the repository has no {missing} at revision {display_name(reference.revision)}"
    return f"the repository has several weights files; specify one of {display_names(candidates)}"
