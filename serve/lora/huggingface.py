"""Resolves Hugging Face references to a file, commit and checksum."""

from collections.abc import Iterable, Sequence
from urllib.parse import quote

from huggingface_hub import hf_hub_url
from pydantic import BaseModel, Field, ValidationError

from serve.errors import FetchFailed, InvalidLora
from serve.lora.archive import CONFIG_NAME, WEIGHTS_SUFFIX
from serve.lora.download import Downloader
from serve.lora.parse import ENDINGS
from serve.lora.provider import Provider, RemoteFile, ResolvedFile
from serve.lora.reference import HubFile
from serve.lora.safetensors_header import shown

USUAL_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors", "lora.safetensors")
"""By which diffusers, PEFT and trainers call a LoRA: the one that is meant where there are several files."""
NAMED_FILES = 8


class _Stored(BaseModel):
    """How large files are kept."""

    sha256: str


class _File(BaseModel):
    name: str = Field(alias="rfilename")
    lfs: _Stored | None = None

    @property
    def sha256(self) -> str | None:
        return self.lfs.sha256.lower() if self.lfs else None


class _Repository(BaseModel):
    """What the hub tells of a repository at one revision."""

    commit: str = Field(alias="sha")
    files: tuple[_File, ...] = Field(default=(), alias="siblings")


async def resolve(reference: HubFile, site: Provider, downloader: Downloader) -> ResolvedFile:
    """The file in the repository. Raises `FetchFailed`, and `InvalidLora` where it is not clear which file is meant."""
    revision = quote(reference.revision, safe="")
    url = f"{site.base_url.rstrip('/')}/api/models/{quote(reference.repository)}/revision/{revision}?blobs=true"
    tree = await downloader.fetch_json(RemoteFile(url, site), reference.display_name)
    try:
        repository = _Repository.model_validate(tree)
    except ValidationError as error:
        raise FetchFailed(reference.display_name, f"{site.name} describes the repository in an unknown way") from error
    files = {file.name: file for file in repository.files}
    name = _chosen(reference, sorted(files))
    config = f"{name.rpartition('/')[0]}/{CONFIG_NAME}".lstrip("/")

    def address(name: str) -> RemoteFile:
        url = hf_hub_url(reference.repository, name, revision=repository.commit, endpoint=site.base_url.rstrip("/"))
        return RemoteFile(url, site, files[name].sha256)

    return ResolvedFile(
        address(name),
        revision=files[name].sha256 or repository.commit,
        config=address(config) if config in files and name.endswith("adapter_model.safetensors") else None,
    )


def _chosen(reference: HubFile, names: Sequence[str]) -> str:
    """The one file that is meant: named, alone, alone at the top, or called as LoRAs are."""
    if reference.path in names:
        return reference.path
    folder = f"{reference.path.rstrip('/')}/" if reference.path else ""
    inside = [name for name in names if name.startswith(folder)]
    weights = [name for name in inside if name.lower().endswith(WEIGHTS_SUFFIX)]
    archives = [name for name in inside if name.lower().endswith(ENDINGS) and name not in weights]
    top = [name for name in weights if "/" not in name.removeprefix(folder)]
    usual = [name for name in top if name.removeprefix(folder) in USUAL_NAMES]
    for found in (weights, top, usual, archives if not weights else []):
        if len(found) == 1:
            return found[0]
    raise InvalidLora(reference.display_name, _unclear(reference, weights or archives))


def _unclear(reference: HubFile, names: Iterable[str]) -> str:
    listed = [shown(name) for name in names]
    if not listed:
        what = f"there is no {shown(reference.path)} in" if reference.path else f"no {WEIGHTS_SUFFIX} file is in"
        return f"{what} the repository at {shown(reference.revision)}"
    more = f" and {len(listed) - NAMED_FILES} more" if len(listed) > NAMED_FILES else ""
    return f"the repository has several weights files, name one of them: {', '.join(listed[:NAMED_FILES])}{more}"
