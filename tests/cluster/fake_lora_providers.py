"""Fake LoRA providers for a service under test: local HTTP servers that run in a thread."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager

import safetensors.torch
import torch

from serve.engine.checkpoint_files import read_geometry
from serve.lora.model_geometry import ModelGeometry
from serve.settings import Settings
from tests.local_server import LocalServer
from tests.unit.lora.lora_files import Pair, diffusers


class FakeProviders:
    """`provider` acts as Replicate, Hugging Face, CivitAI and S3. `file_host` is the host that they redirect to."""

    def __init__(self, geometry: ModelGeometry) -> None:
        self.geometry = geometry
        self.provider, self.file_host = LocalServer(), LocalServer()
        self.loop = asyncio.new_event_loop()
        """The event loop of both servers."""

    @property
    def settings(self) -> tuple[str, ...]:
        """Values of `--set` that make a service use these servers."""
        base_url = f"http://127.0.0.1:{self.provider.port}"
        hosts = [f"127.0.0.1:{server.port}" for server in (self.provider, self.file_host)]
        values = {
            "huggingface_url": base_url,
            "civitai_url": base_url,
            "replicate_url": base_url,
            "s3_url": f"'{base_url}/{{bucket}}'",
            "allow_http": "true",
            "fetch.allowed_hosts": hosts,
            "fetch.backoff_s": 0.01,
        }
        return tuple(f"lora.{key}={value}" for key, value in values.items())

    def make_weights(self, seed: int, rank: int = 4, strength: float = 0.2) -> bytes:
        """A safetensors file with random matrices for every linear layer of the transformer."""
        return safetensors.torch.save(diffusers(self._random_pairs(seed, rank, strength)))

    def _random_pairs(self, seed: int, rank: int, strength: float) -> dict[str, Pair]:
        generator = torch.Generator().manual_seed(seed)

        def matrix(*shape: int) -> torch.Tensor:
            return strength * torch.randn(shape, generator=generator)

        shapes = self.geometry.transformer_layers()
        return {name: (matrix(rank, inputs), matrix(outputs, rank)) for name, (outputs, inputs) in shapes.items()}


@contextmanager
def run_fake_providers() -> Iterator[FakeProviders]:
    providers = FakeProviders(read_geometry(Settings().models["dev"], None))
    thread = threading.Thread(target=providers.loop.run_forever, daemon=True)
    thread.start()

    def run(*coroutines: Coroutine[None, None, None]) -> None:
        for coroutine in coroutines:
            asyncio.run_coroutine_threadsafe(coroutine, providers.loop).result(30)

    try:
        run(providers.provider.start(), providers.file_host.start())
        yield providers
        run(providers.provider.stop(), providers.file_host.stop())
    finally:
        providers.loop.call_soon_threadsafe(providers.loop.stop)
        thread.join(30)
        providers.loop.close()
