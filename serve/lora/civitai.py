"""Finds on CivitAI which file a reference means now: the version of a model, and the file of a version."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated
from urllib.parse import urlencode

from pydantic import BaseModel, BeforeValidator, Field, SecretStr, ValidationError

from serve.errors import FetchFailed, InvalidLora
from serve.lora.download import Downloader
from serve.lora.provider import Provider, RemoteFile, ResolvedFile
from serve.lora.reference import CivitaiFile
from serve.lora.safetensors_header import shown

MODEL_TYPES = ("lora", "locon", "lycoris", "dora")
"""Types of models that may hold a LoRA; what they really hold, their tensors show."""
FAMILY = "flux.1"
UNKNOWN_FAMILIES = ("", "other")

Text = Annotated[str, BeforeValidator(lambda value: "" if value is None else value)]


class _Hashes(BaseModel):
    sha256: Text = Field(default="", alias="SHA256")


class _File(BaseModel):
    name: Text = ""
    type: Text = "Model"
    primary: bool | None = False
    metadata: Mapping[str, object] = {}
    hashes: _Hashes = _Hashes()

    def has(self, name: str, value: str) -> bool:
        return str(self.metadata.get(name) or "").lower() == value.lower()

    @property
    def is_weights(self) -> bool:
        return self.type in ("Model", "Pruned Model") and self.has("format", "SafeTensor")


class _Model(BaseModel):
    type: Text = ""


class _Version(BaseModel):
    id: int
    base_model: Text = Field(default="", alias="baseModel")
    model: _Model = _Model()
    files: tuple[_File, ...] = ()


class _Page(_Model):
    versions: Annotated[tuple[_Version, ...], Field(alias="modelVersions", min_length=1)]


async def resolve(reference: CivitaiFile, site: Provider, downloader: Downloader) -> ResolvedFile:
    """The file of the version. Raises `FetchFailed`, and `InvalidLora` for what is no LoRA for FLUX."""
    if reference.token:
        site = replace(site, token=SecretStr(reference.token))
    base = site.base_url.rstrip("/")
    try:
        if reference.version is None:
            tree = await downloader.fetch_json(
                RemoteFile(f"{base}/api/v1/models/{reference.model}", site), reference.display_name
            )
            page = _Page.model_validate(tree)
            version, kind = _newest(page.versions), page.type
        else:
            url = f"{base}/api/v1/model-versions/{reference.version}"
            version = _Version.model_validate(
                await downloader.fetch_json(RemoteFile(url, site), reference.display_name)
            )
            kind = version.model.type
    except ValidationError as error:
        raise FetchFailed(reference.display_name, "CivitAI describes the model in an unknown way") from error
    file = _chosen(reference, version, kind)
    query = {"type": file.type} | {
        name: str(file.metadata[name]) for name in ("format", "size", "fp") if file.metadata.get(name)
    }
    sha256 = file.hashes.sha256.lower() or None
    address = RemoteFile(f"{base}/api/download/models/{version.id}?{urlencode(query)}", site, sha256)
    return ResolvedFile(address, revision=sha256 or str(version.id))


def _newest(versions: Sequence[_Version]) -> _Version:
    """The newest for FLUX; CivitAI lists the newest first, and keeps versions for several models on one page."""
    return next((version for version in versions if version.base_model.lower().startswith(FAMILY)), versions[0])


def _chosen(reference: CivitaiFile, version: _Version, kind: str) -> _File:
    if kind and kind.lower() not in MODEL_TYPES:
        raise InvalidLora(reference.display_name, f"CivitAI lists it as {shown(kind)}, not as a LoRA")
    family = version.base_model
    if not family.lower().startswith(FAMILY) and family.lower() not in UNKNOWN_FAMILIES:
        raise InvalidLora(reference.display_name, f"CivitAI lists it for {shown(family)}, not for FLUX.1")
    weights = [file for file in version.files if file.is_weights]
    wanted = [file for file in weights if all(file.has(name, value) for name, value in reference.choice)]
    if not wanted:
        raise InvalidLora(reference.display_name, "this version has no such safetensors file on CivitAI")
    return next((file for file in wanted if file.primary), wanted[0])
