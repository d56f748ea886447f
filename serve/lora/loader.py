"""Loads one LoRA: fetch, unpack, check and convert."""

import asyncio
import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from serve.errors import FetchFailed, InvalidLora
from serve.lora.archive import extract_weights
from serve.lora.convert_state_dict import StateDictConverter
from serve.lora.fetcher import FetchedFile, LoraFetcher
from serve.lora.model_geometry import ModelGeometry
from serve.lora.peft_config import adapter_configs_in_header, parse_adapter_config
from serve.lora.reference import ArchiveMember, Reference
from serve.lora.safetensors_header import Header, InvalidLoraFile, read_header
from serve.lora.weights import Block, LoraWeights, pack, unpack
from serve.net.http_client import HttpClient
from serve.settings import LoraSettings, Secrets

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class LoadedLora:
    """A LoRA that is ready to use, with the cost of loading it."""

    weights: LoraWeights
    """Views into `block`."""
    block: Block
    """The packed weights, for shared memory and files."""
    revision: str | None
    """Identifies the content. Pass it to a later `load` to find out whether the content has changed."""
    fetched_bytes: int
    fetch_s: float
    """Time to resolve the reference and fetch the file."""
    check_s: float
    """Time to unpack, check and convert the file."""


class LoraLoader:
    """Loads LoRAs within the limits of `settings`.

    Temporary files go to `scratch_folder`, by default the system's temporary folder. It needs space for a download and
    for its unpacked content.
    """

    def __init__(
        self, settings: LoraSettings, secrets: Secrets, client: HttpClient, scratch_folder: Path | None = None
    ) -> None:
        self._settings = settings
        self._fetcher = LoraFetcher(settings, secrets, client)
        self._scratch_folder = scratch_folder
        self._converters: dict[ModelGeometry, StateDictConverter] = {}

    async def load(
        self, reference: Reference, geometry: ModelGeometry, known_revision: str | None = None
    ) -> LoadedLora | None:
        """The LoRA for models of `geometry`, or None if `known_revision` is still current.

        Raises `FetchFailed` and `InvalidLora`, with messages for the caller.
        """
        with tempfile.TemporaryDirectory(
            prefix="flux-serve-lora-", dir=self._scratch_folder, ignore_cleanup_errors=True
        ) as folder:
            start_s = time.monotonic()
            fetched = await self._fetcher.fetch(reference, Path(folder), known_revision)
            if fetched is None:
                return None
            fetched_s = time.monotonic()
            block = await asyncio.to_thread(self._convert, reference, fetched, geometry)
            return LoadedLora(
                unpack(block),
                block,
                fetched.revision,
                fetched.size_bytes,
                fetch_s=fetched_s - start_s,
                check_s=time.monotonic() - fetched_s,
            )

    def _convert(self, reference: Reference, fetched: FetchedFile, geometry: ModelGeometry) -> Block:
        """Unpacks, checks, converts and packs a fetched file."""
        converter = self._converters.setdefault(geometry, StateDictConverter(geometry, self._settings.max_rank))
        unpack_folder = fetched.path.with_name("unpacked")
        try:
            unpack_folder.mkdir()
            files = extract_weights(
                fetched.path,
                unpack_folder,
                self._settings.fetch.max_bytes,
                self._settings.max_unpacked_bytes,
                reference.path if isinstance(reference, ArchiveMember) else None,
            )
            header, tensors = _read_tensors(files.weights, self._settings.max_tensors)
            configs = adapter_configs_in_header(header.metadata)
            config = files.config if fetched.config is None else fetched.config
            if config is not None:
                configs = {"transformer": parse_adapter_config(config), **configs}
            return pack(converter.convert(tensors, configs))
        except InvalidLoraFile as error:
            raise InvalidLora(reference.display_name, str(error)) from error
        except OSError as error:
            log.exception("Unpacking the LoRA %s failed", reference.display_name)
            raise FetchFailed(
                reference.display_name, "it could not be stored; the operator's log has the cause"
            ) from error


def _read_tensors(path: Path, max_tensors: int) -> tuple[Header, dict[str, torch.Tensor]]:
    """Checks the header of a safetensors file, then reads its tensors. Raises `InvalidLoraFile`."""
    with path.open("rb") as file:
        header = read_header(file, path.stat().st_size, max_tensors)
    try:
        return header, safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise InvalidLoraFile("the file is damaged") from error
