"""Loads one LoRA: fetch, unpack, check and convert."""

import asyncio
import logging
import ssl
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from serve.errors import FetchFailed, InvalidLora
from serve.lora.archive import extract_weights
from serve.lora.convert import StateDictConverter, adapter_configs_in_header, parse_adapter_config
from serve.lora.download import Progress
from serve.lora.lora_fetcher import FetchedFile, LoraFetcher
from serve.lora.model_geometry import ModelGeometry
from serve.lora.reference import Reference
from serve.lora.safetensors_header import Header, InvalidLoraFile, read_header
from serve.lora.weights import Block, LoraWeights, pack, unpack
from serve.net.ssrf_guard import Resolver
from serve.settings import LoraSettings, Secrets

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class LoadedLora:
    """A LoRA that can be drawn with, and what is worth knowing of how it came."""

    weights: LoraWeights
    """Views into `block`."""
    block: Block
    """The same as bytes, for shared memory and for files."""
    revision: str | None
    """Names the content: given to a later `load`, it tells whether that is still the same."""
    fetched_bytes: int
    fetch_s: float
    """Finding and bringing the file."""
    check_s: float
    """Unpacking, checking and converting it."""


class LoraLoader:
    """Loads LoRAs within the bounds of `settings`.

    Files lie below `scratch` while they are worked on, by default in the system's temporary folder; it must have room
    for a download and for what that unpacks to. `resolver` and `tls` replace the system's name service and trusted
    certificates.
    """

    def __init__(
        self,
        settings: LoraSettings,
        secrets: Secrets,
        scratch: Path | None = None,
        resolver: Resolver | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._settings = settings
        self._fetching = LoraFetcher(settings, secrets, resolver, tls)
        self._scratch = scratch
        self._readers: dict[ModelGeometry, StateDictConverter] = {}

    async def load(
        self,
        reference: Reference,
        geometry: ModelGeometry,
        known_revision: str | None = None,
        progress: Progress | None = None,
    ) -> LoadedLora | None:
        """The LoRA for models of `geometry`, or None if its content is still that of `known_revision`.

        Raises `FetchFailed` and `InvalidLora`, whose texts tell a user what to do.
        """
        with tempfile.TemporaryDirectory(
            prefix="flux-serve-lora-", dir=self._scratch, ignore_cleanup_errors=True
        ) as name:
            began_s = time.monotonic()
            fetched = await self._fetching.fetch(reference, Path(name), known_revision, progress)
            if fetched is None:
                return None
            fetched_s = time.monotonic()
            block = await asyncio.to_thread(self._check, reference, fetched, geometry)
            return LoadedLora(
                unpack(block),
                block,
                fetched.revision,
                fetched.size_bytes,
                fetch_s=fetched_s - began_s,
                check_s=time.monotonic() - fetched_s,
            )

    def close(self) -> None:
        """Lets go of threads. Loads that run are not waited for."""
        self._fetching.close()

    def _check(self, reference: Reference, fetched: FetchedFile, geometry: ModelGeometry) -> Block:
        """What was fetched, unpacked, checked and converted."""
        reader = self._readers.setdefault(geometry, StateDictConverter(geometry, self._settings.max_rank))
        unpacked = fetched.path.with_name("unpacked")
        try:
            unpacked.mkdir()
            bounds = self._settings.fetch.max_bytes, self._settings.max_unpacked_bytes
            contents = extract_weights(fetched.path, unpacked, *bounds)
            header, tensors = _read(contents.weights, self._settings.max_tensors)
            configs = adapter_configs_in_header(header.metadata)
            if beside := fetched.config or contents.config:
                configs = {"transformer": parse_adapter_config(beside), **configs}
            return pack(reader.convert(tensors, configs))
        except InvalidLoraFile as error:
            raise InvalidLora(reference.display_name, str(error)) from error
        except OSError as error:
            log.exception("%s could not be unpacked", reference.display_name)
            raise FetchFailed(
                reference.display_name, "it could not be stored; the operator's log has the cause"
            ) from error


def _read(path: Path, max_tensors: int) -> tuple[Header, dict[str, torch.Tensor]]:
    """The tensors of a weights file, after its header was checked. Raises `InvalidLoraFile`."""
    with path.open("rb") as file:
        header = read_header(file, path.stat().st_size, max_tensors)
    try:
        return header, safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise InvalidLoraFile("the file is damaged") from error
