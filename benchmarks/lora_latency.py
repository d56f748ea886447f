"""How long a request waits for its LoRA over HTTP: never seen before, at hand on the node, on the device, or none."""

import functools
import http.server
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import safetensors.torch
import torch

from serve.engine.checkpoint_files import read_geometry
from serve.launch.subprocess_service import LocalService, local_service
from serve.lora.model_geometry import ModelGeometry
from serve.settings import Settings

BYTES_A_NUMBER = 2
"""Of the rows on the device, in bfloat16."""
SETTLE_S = 0.3
INPUTS = {"prompt": "a red sailboat", "megapixels": "0.25", "num_inference_steps": 4, "disable_safety_checker": True}


def latency(rank: int, rounds: int) -> dict[str, Any]:
    """Milliseconds over HTTP and in the stage `lora`, medians over rounds. The device has room for one LoRA."""
    geometry = read_geometry(Settings().models["dev"], None)
    with _files(geometry, rank, rounds) as base_url, _service(geometry, rank, base_url) as service:
        _ask(service, f"{base_url}/0.safetensors")
        spent: dict[str, list[tuple[float, float]]] = {"none": [], "cold": [], "on_node": [], "on_device": []}
        for number in range(rounds):
            # Of the two that ask for LoRA 0, the first finds the device with another one.
            texts = "", *(f"{base_url}/{which}.safetensors" for which in (number + 1, 0, 0))
            for times, text in zip(spent.values(), texts, strict=True):
                time.sleep(SETTLE_S)  # until the cache has written what it brought
                times.append(_ask(service, text))
            print(f"latency: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return {
        name: {
            "request_ms": round(statistics.median(request_ms for request_ms, _ in times), 1),
            "lora_ms": round(statistics.median(lora_ms for _, lora_ms in times), 2),
        }
        for name, times in spent.items()
    }


def _ask(service: LocalService, lora: str) -> tuple[float, float]:
    """The time of one request, and what of it was for its LoRA."""
    inputs = INPUTS | {"replicate_weights": lora}
    begun = time.perf_counter()
    answer = httpx.post(
        f"{service.url}/v1/predictions", json={"input": inputs}, headers={"Prefer": "wait=60"}, timeout=120
    )
    request_ms = 1000 * (time.perf_counter() - begun)
    if answer.raise_for_status().json()["status"] != "succeeded":
        raise RuntimeError(answer.json()["error"])
    stages = dict(stage.split(";dur=") for stage in answer.headers["server-timing"].split(", "))
    return request_ms, float(stages.get("lora", 0))


@contextmanager
def _service(geometry: ModelGeometry, rank: int, base_url: str) -> Iterator[LocalService]:
    row_bytes = BYTES_A_NUMBER * sum(
        outputs + inputs
        for layers in (geometry.transformer_layers(), geometry.clip_layers())
        for outputs, inputs in layers.values()
    )
    settings = (
        f"pools.dev-bf16.lora_bytes={(rank + 1) * row_bytes}",
        "pools.dev-fp8.scaling.min_replicas=0",
        "pools.schnell.scaling.min_replicas=0",
        "lora.allow_http=true",
        f"lora.fetch.allowed_hosts=['{base_url.removeprefix('http://')}']",
    )
    with local_service(*(part for setting in settings for part in ("--set", setting)), on_line=print) as running:
        yield running


@contextmanager
def _files(geometry: ModelGeometry, rank: int, rounds: int) -> Iterator[str]:
    """A web server with a LoRA for each round, and one more."""
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(rounds + 1):
            safetensors.torch.save_file(_tensors(geometry, rank, seed), Path(folder) / f"{seed}.safetensors")
        handler = functools.partial(_Quiet, directory=folder)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()


def _tensors(geometry: ModelGeometry, rank: int, seed: int) -> dict[str, torch.Tensor]:
    """For every linear of the transformer, in float16, as most LoRAs are published."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        f"transformer.{layer}.lora_{side}.weight": shape
        for layer, (outputs, inputs) in geometry.transformer_layers().items()
        for side, shape in (("A", (rank, inputs)), ("B", (outputs, rank)))
    }
    return {name: (0.02 * torch.randn(shape, generator=generator)).half() for name, shape in shapes.items()}


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        """The benchmark's own lines are enough."""
