"""Resolves CivitAI references to a model version and one of its files."""

from collections.abc import Mapping, Sequence
from typing import Annotated
from urllib.parse import urlencode

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from serve.errors import FetchFailed, InvalidLora
from serve.lora.download import Downloader
from serve.lora.provider import Provider, RemoteFile, ResolvedFile
from serve.lora.reference import CivitaiFile
from serve.lora.safetensors_header import display_name

LORA_TYPES = ("lora", "locon", "lycoris", "dora")
"""CivitAI model types that may be a LoRA; the tensors in the file decide."""
FLUX_PREFIX = "flux.1"
"""Base models for FLUX.1, such as `Flux.1 D`, start with this, in lower case."""
UNSPECIFIED_BASE_MODELS = ("", "other")

_OptionalText = Annotated[str, BeforeValidator(lambda value: "" if value is None else value)]


class _Hashes(BaseModel):
    sha256: _OptionalText = Field(default="", alias="SHA256")


class _File(BaseModel):
    name: _OptionalText = ""
    type: _OptionalText = "Model"
    primary: bool | None = False
    metadata: Mapping[str, object] = {}
    hashes: _Hashes = _Hashes()

    def has_metadata(self, field: str, value: str) -> bool:
        return str(self.metadata.get(field) or "").lower() == value.lower()

    @property
    def is_weights(self) -> bool:
        return self.type in ("Model", "Pruned Model") and self.has_metadata("format", "SafeTensor")


class _Model(BaseModel):
    type: _OptionalText = ""


class _Version(BaseModel):
    id: int
    base_model: _OptionalText = Field(default="", alias="baseModel")
    model: _Model = _Model()
    files: tuple[_File, ...] = ()

    @property
    def is_for_flux(self) -> bool:
        return self.base_model.lower().startswith(FLUX_PREFIX)


class _ModelWithVersions(_Model):
    versions: Annotated[tuple[_Version, ...], Field(alias="modelVersions", min_length=1)]


async def resolve(reference: CivitaiFile, civitai: Provider, downloader: Downloader) -> ResolvedFile:
    """The file that `reference` currently resolves to. Raises `FetchFailed`, and `InvalidLora` for other models."""
    if reference.token:
        civitai = civitai.with_callers_token(reference.token)
    try:
        version, model_type = await _fetch_version(reference, civitai, downloader)
    except ValidationError as error:
        raise FetchFailed(
            reference.display_name, f"{civitai.name} returned an unexpected response for the model"
        ) from error
    file = _select_file(reference, version, model_type)
    query = {"type": file.type} | {
        field: str(file.metadata[field]) for field in ("format", "size", "fp") if file.metadata.get(field)
    }
    url = f"{civitai.base_url}/api/download/models/{version.id}?{urlencode(query)}"
    sha256 = file.hashes.sha256.lower() or None
    return ResolvedFile(RemoteFile(url, civitai, sha256), revision=sha256 or str(version.id))


async def _fetch_version(reference: CivitaiFile, civitai: Provider, downloader: Downloader) -> tuple[_Version, str]:
    """The model version and the type of the model. Raises `FetchFailed` and `ValidationError`."""
    api = f"{civitai.base_url}/api/v1"
    if reference.version is None:
        url = f"{api}/models/{reference.model}"
        response = await downloader.fetch_json(RemoteFile(url, civitai), reference.display_name)
        model = _ModelWithVersions.model_validate(response)
        return _newest_flux_version(model.versions), model.type
    url = f"{api}/model-versions/{reference.version}"
    response = await downloader.fetch_json(RemoteFile(url, civitai), reference.display_name)
    version = _Version.model_validate(response)
    return version, version.model.type


def _newest_flux_version(versions: Sequence[_Version]) -> _Version:
    """CivitAI lists the newest version first, and one model may have versions for different base models."""
    return next((version for version in versions if version.is_for_flux), versions[0])


def _select_file(reference: CivitaiFile, version: _Version, model_type: str) -> _File:
    """The primary file, or the first one, among the weights that match the filters of `reference`."""
    if model_type and model_type.lower() not in LORA_TYPES:
        raise InvalidLora(reference.display_name, f"CivitAI lists it as {display_name(model_type)}, not as a LoRA")
    if not version.is_for_flux and version.base_model.lower() not in UNSPECIFIED_BASE_MODELS:
        raise InvalidLora(
            reference.display_name, f"CivitAI lists it for {display_name(version.base_model)}, not for FLUX.1"
        )
    matching = [
        file
        for file in version.files
        if file.is_weights and all(file.has_metadata(field, value) for field, value in reference.filters)
    ]
    if not matching:
        raise InvalidLora(reference.display_name, "this version has no such safetensors file on CivitAI")
    return next((file for file in matching if file.primary), matching[0])
