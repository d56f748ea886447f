"""Fetches the file of a LoRA reference: by download, from a request, or from local disk."""

import asyncio
import hashlib
import os
import shutil
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from serve.errors import FetchFailed
from serve.lora import civitai, huggingface
from serve.lora.download import Downloader, Progress
from serve.lora.provider import ANY_HOST, Provider, Providers, RemoteFile, ResolvedFile
from serve.lora.reference import (
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
from serve.model_specs import EMBEDDED_MODELS_FOLDER, embedded_lora_file
from serve.net.ssrf_guard import Resolver
from serve.settings import LoraSettings, Secrets

Downloadable = ReplicateModel | HubFile | CivitaiFile | UrlFile | S3Object


class FileResolver:
    """Asks the sites as the settings place them."""

    def __init__(self, settings: LoraSettings, secrets: Secrets, downloader: Downloader) -> None:
        self._sites = Providers.of(settings, secrets)
        self._s3_url = settings.s3_url.rstrip("/")
        self._downloader = downloader

    async def resolve(self, reference: Downloadable) -> ResolvedFile:
        """The file that `reference` means now. Raises `FetchFailed`, and `InvalidLora` where none can be meant."""
        match reference:
            case HubFile():
                return await huggingface.resolve(reference, self._sites.hub, self._downloader)
            case CivitaiFile():
                return await civitai.resolve(reference, self._sites.civitai, self._downloader)
            case ReplicateModel():
                return _on_replicate(reference, self._sites.replicate)
            case S3Object():
                base = self._s3_url.replace("{bucket}", reference.bucket)
                return ResolvedFile(RemoteFile(f"{base}/{quote(reference.name)}", ANY_HOST))
            case UrlFile():
                return ResolvedFile(RemoteFile(reference.url, ANY_HOST))


def _on_replicate(reference: ReplicateModel, site: Provider) -> ResolvedFile:
    """Replicate redirects from here to the tar that its trainer made."""
    model = f"{site.base_url.rstrip('/')}/{reference.owner}/{reference.name}"
    at_version = f"/versions/{reference.version}" if reference.version else ""
    return ResolvedFile(RemoteFile(f"{model}{at_version}/_weights", site), revision=reference.version)


@dataclass(frozen=True, slots=True)
class FetchedFile:
    """A file as it came, packed or not, and unchecked."""

    path: Path
    size_bytes: int
    revision: str | None
    """Names the content; None for what its server has no name for."""
    config: bytes | None = None
    """PEFT's configuration, where it lay beside the file."""


class LoraFetcher:
    """`resolver` and `tls` replace the system's name service and trusted certificates."""

    def __init__(
        self,
        settings: LoraSettings,
        secrets: Secrets,
        resolver: Resolver | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._settings = settings
        self._downloader = Downloader(settings, resolver, tls)
        self._source = FileResolver(settings, secrets, self._downloader)

    async def fetch(
        self, reference: Reference, folder: Path, known_revision: str | None, progress: Progress | None
    ) -> FetchedFile | None:
        """The file, below `folder`; None if its content is still that of `known_revision`. Raises as `Loader.load`."""
        path = folder / "download"
        match reference:
            case InlineFile(content):
                await asyncio.to_thread(path.write_bytes, content)
                return FetchedFile(path, len(content), hashlib.sha256(content).hexdigest())
            case EmbeddedLora(name):
                return await asyncio.to_thread(
                    self._copy,
                    reference,
                    embedded_lora_file(name, EMBEDDED_MODELS_FOLDER),
                    (EMBEDDED_MODELS_FOLDER,),
                    path,
                    known_revision,
                )
            case LocalFile(origin):
                folders = self._settings.folders
                return await asyncio.to_thread(self._copy, reference, origin, folders, path, known_revision)
            case ReplicateModel() | HubFile() | CivitaiFile() | UrlFile() | S3Object():
                return await self._download(reference, path, known_revision, progress)
        raise TypeError(f"{type(reference).__name__} is no kind of reference that is fetched")

    def close(self) -> None:
        """Lets go of threads. Fetches that run are not waited for."""
        self._downloader.close()

    async def _download(
        self, reference: Downloadable, path: Path, known: str | None, progress: Progress | None
    ) -> FetchedFile | None:
        located = await self._source.resolve(reference)
        if located.revision is not None and located.revision == known:
            return None
        known_tag = known if located.revision is None else None
        saved = await self._downloader.save(located.file, path, reference.display_name, known_tag, progress)
        if saved is None:
            return None
        config = None
        if located.config:
            beside = path.with_name("config")
            await self._downloader.save(located.config, beside, reference.display_name)
            config = await asyncio.to_thread(beside.read_bytes)
        return FetchedFile(path, saved.size_bytes, located.revision or saved.etag, config)

    def _copy(
        self, reference: Reference, origin: Path, within: Iterable[Path], path: Path, known: str | None
    ) -> FetchedFile | None:
        """Copied, so that nobody can change it while it is read."""
        try:
            real = origin.resolve(strict=True)
            if not _is_in(real, within):
                raise FetchFailed(reference.display_name, "it is a link that leads out of the folders of LoRAs")
            facts = real.stat()
            revision = f"{facts.st_mtime_ns}-{facts.st_size}"
            if revision == known:
                return None
            if facts.st_size > self._settings.fetch.max_bytes:
                raise FetchFailed(reference.display_name, f"it has more than {self._settings.fetch.max_bytes} bytes")
            shutil.copyfile(real, path)
        except OSError as error:
            why = "there is no such file" if isinstance(error, FileNotFoundError) else "it cannot be read"
            raise FetchFailed(reference.display_name, why) from error
        return FetchedFile(path, facts.st_size, revision)


def _is_in(path: Path, folders: Iterable[Path]) -> bool:
    return any(path.is_relative_to(os.path.realpath(folder)) for folder in folders)
