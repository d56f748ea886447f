"""Fetches the file of a LoRA reference: by download, from a request, or from local disk."""

import asyncio
import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from serve.errors import FetchFailed
from serve.lora import civitai, huggingface
from serve.lora.download import Downloader
from serve.lora.provider import ANY_HOST, Provider, Providers, RemoteFile, ResolvedFile
from serve.lora.reference import (
    ArchiveMember,
    CivitaiFile,
    EmbeddedLora,
    HubFile,
    InlineFile,
    LocalFile,
    Reference,
    ReplicateModel,
    S3Object,
    UrlFile,
)
from serve.lora.uploaded_file import ContentMissing, UploadedFile
from serve.model_specs import EMBEDDED_MODELS_FOLDER, embedded_lora_file
from serve.net.http_client import HttpClient
from serve.settings import LoraSettings, Secrets

RemoteReference = ReplicateModel | HubFile | CivitaiFile | UrlFile | S3Object


@dataclass(frozen=True, slots=True)
class FetchedFile:
    """A fetched file, not yet unpacked or checked."""

    path: Path
    size_bytes: int
    revision: str | None
    """Identifies the content; None if its server sends no ETag or Last-Modified header."""
    config: bytes | None = None
    """PEFT's `adapter_config.json` from next to the file."""


class LoraFetcher:
    """Fetches LoRA files with `client` from `serve.lora.download.create_http_client`; the caller closes it."""

    def __init__(self, settings: LoraSettings, secrets: Secrets, client: HttpClient) -> None:
        self._settings = settings
        self._providers = Providers.from_settings(settings, secrets)
        self._downloader = Downloader(settings, client)

    async def fetch(self, reference: Reference, folder: Path, known_revision: str | None) -> FetchedFile | None:
        """Fetches the file into `folder`. None if `known_revision` is still current.

        Raises `FetchFailed`, `InvalidLora` if the provider has no suitable file, and `ContentMissing`.
        """
        path = folder / "download"
        match reference:
            case InlineFile(content):
                await asyncio.to_thread(path.write_bytes, content)
                return FetchedFile(path, len(content), hashlib.sha256(content).hexdigest())
            case UploadedFile():
                return await self._write_upload(reference, path)
            case EmbeddedLora(name):
                source, folders = embedded_lora_file(name, EMBEDDED_MODELS_FOLDER), (EMBEDDED_MODELS_FOLDER,)
                return await asyncio.to_thread(self._copy, reference, source, folders, path, known_revision)
            case LocalFile(source):
                return await asyncio.to_thread(
                    self._copy, reference, source, self._settings.folders, path, known_revision
                )
            case ReplicateModel() | HubFile() | CivitaiFile() | UrlFile() | S3Object():
                return await self._download(reference, path, known_revision)
            case ArchiveMember(archive):
                return await self.fetch(archive, folder, known_revision)
        raise TypeError(f"unknown reference type {type(reference).__name__}")

    async def resolve(self, reference: RemoteReference) -> ResolvedFile:
        """The file that `reference` currently resolves to.

        Raises `FetchFailed`, and `InvalidLora` if the provider has no suitable file.
        """
        match reference:
            case HubFile():
                return await huggingface.resolve(reference, self._providers.hub, self._downloader)
            case CivitaiFile():
                return await civitai.resolve(reference, self._providers.civitai, self._downloader)
            case ReplicateModel():
                return _resolve_replicate(reference, self._providers.replicate)
            case S3Object():
                bucket_url = self._settings.s3_url.rstrip("/").replace("{bucket}", reference.bucket)
                return ResolvedFile(RemoteFile(f"{bucket_url}/{quote(reference.name)}", ANY_HOST))
            case UrlFile():
                return ResolvedFile(RemoteFile(reference.url, ANY_HOST))

    async def _download(self, reference: RemoteReference, path: Path, known_revision: str | None) -> FetchedFile | None:
        resolved = await self.resolve(reference)
        if resolved.revision is not None and resolved.revision == known_revision:
            return None
        known_etag = known_revision if resolved.revision is None else None
        downloaded = await self._downloader.download(resolved.file, path, reference.display_name, known_etag)
        if downloaded is None:
            return None
        config = None
        if resolved.config:
            config_path = path.with_name("config")
            await self._downloader.download(resolved.config, config_path, reference.display_name)
            config = await asyncio.to_thread(config_path.read_bytes)
        return FetchedFile(path, downloaded.size_bytes, resolved.revision or downloaded.etag, config)

    async def _write_upload(self, reference: UploadedFile, path: Path) -> FetchedFile:
        content, max_bytes = reference.content, self._settings.fetch.max_bytes
        if content is None:
            raise ContentMissing(reference.file_id)
        if content.nbytes > max_bytes:
            raise FetchFailed(reference.display_name, f"it has more than {max_bytes} bytes")
        await asyncio.to_thread(path.write_bytes, content)
        return FetchedFile(path, content.nbytes, reference.sha256)

    def _copy(
        self,
        reference: Reference,
        source: Path,
        allowed_folders: Iterable[Path],
        path: Path,
        known_revision: str | None,
    ) -> FetchedFile | None:
        """Copies `source` to `path`, so that it cannot change between the checks and the conversion."""
        try:
            real_path = source.resolve(strict=True)
            if not _is_inside(real_path, allowed_folders):
                raise FetchFailed(reference.display_name, "it is a link to a file outside the allowed folders")
            status = real_path.stat()
            revision = f"{status.st_mtime_ns}-{status.st_size}"
            if revision == known_revision:
                return None
            max_bytes = self._settings.fetch.max_bytes
            if status.st_size > max_bytes:
                raise FetchFailed(reference.display_name, f"it has more than {max_bytes} bytes")
            shutil.copyfile(real_path, path)
        except OSError as error:
            why = "there is no such file" if isinstance(error, FileNotFoundError) else "it cannot be read"
            raise FetchFailed(reference.display_name, why) from error
        return FetchedFile(path, status.st_size, revision)


def _resolve_replicate(reference: ReplicateModel, replicate: Provider) -> ResolvedFile:
    """Replicate redirects `_weights` to the tar file written by its trainer."""
    model_url = f"{replicate.base_url}/{reference.owner}/{reference.name}"
    version_path = f"/versions/{reference.version}" if reference.version else ""
    return ResolvedFile(RemoteFile(f"{model_url}{version_path}/_weights", replicate), revision=reference.version)


def _is_inside(path: Path, folders: Iterable[Path]) -> bool:
    return any(path.is_relative_to(os.path.realpath(folder)) for folder in folders)
