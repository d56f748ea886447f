"""Hosts of LoRAs on this machine, for a service that runs beside the tests: they answer from a thread of their own."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import safetensors.torch
import torch

from serve.engine.checkpoint_files import read_geometry
from serve.lora.model_geometry import ModelGeometry
from serve.settings import Settings
from tests.local_server import LocalServer
from tests.unit.lora.lora_files import Pair, diffusers


class World:
    """`site` stands for the sites, `store` for the hosts of files that they redirect to."""

    def __init__(self, geometry: ModelGeometry) -> None:
        self.geometry = geometry
        self.site, self.store = LocalServer(), LocalServer()
        self.loop = asyncio.new_event_loop()

    @property
    def settings(self) -> tuple[str, ...]:
        """What makes a service take these servers for the real ones."""
        site = f"http://127.0.0.1:{self.site.port}"
        hosts = [f"127.0.0.1:{server.port}" for server in (self.site, self.store)]
        values = {
            "huggingface_url": site,
            "civitai_url": site,
            "replicate_url": site,
            "s3_url": f"'{site}/{{bucket}}'",
            "allow_http": "true",
            "fetch.allowed_hosts": hosts,
            "fetch.backoff_s": 0.01,
        }
        return tuple(f"lora.{key}={value}" for key, value in values.items())

    def weights(self, seed: int, rank: int = 4, strength: float = 0.2) -> bytes:
        """A safetensors file with a LoRA for every linear of the transformer."""
        return safetensors.torch.save(diffusers(self._pairs(seed, rank, strength)))

    def _pairs(self, seed: int, rank: int, strength: float) -> dict[str, Pair]:
        generator = torch.Generator().manual_seed(seed)

        def matrix(*shape: int) -> torch.Tensor:
            return strength * torch.randn(shape, generator=generator)

        shapes = self.geometry.transformer_layers()
        return {name: (matrix(rank, inputs), matrix(outputs, rank)) for name, (outputs, inputs) in shapes.items()}


@contextmanager
def world() -> Iterator[World]:
    made = World(read_geometry(Settings().models["dev"], None))
    thread = threading.Thread(target=made.loop.run_forever, daemon=True)
    thread.start()

    def run(*work: "asyncio.Future[None]") -> None:
        for each in work:
            asyncio.run_coroutine_threadsafe(each, made.loop).result(30)  # type: ignore[arg-type]

    try:
        run(made.site.start(), made.store.start())  # type: ignore[arg-type]
        yield made
        run(made.site.stop(), made.store.stop())  # type: ignore[arg-type]
    finally:
        made.loop.call_soon_threadsafe(made.loop.stop)
        thread.join(30)
        made.loop.close()
