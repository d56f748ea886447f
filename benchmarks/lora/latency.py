"""Measures the latency of requests whose LoRA is not cached, cached on the node, resident on the device, or absent."""

import functools
import http.server
import statistics
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

from benchmarks.report import print_progress
from serve.engine.checkpoint_files import read_geometry
from serve.launch.subprocess_service import LocalService, local_service
from serve.lora.model_geometry import ModelGeometry
from serve.settings import Settings

SLOT_DTYPE_BYTES = 2
"""The LoRA slots on the device hold bfloat16."""
CACHE_WRITE_S = 0.3
INPUTS = {"prompt": "a red sailboat", "megapixels": "0.25", "num_inference_steps": 4, "disable_safety_checker": True}


def measure_latency(rank: int, rounds: int) -> dict[str, Any]:
    """Medians over the rounds of the HTTP latency and of the stage `lora`, in milliseconds.

    The device has slots for only one LoRA.
    """
    geometry = read_geometry(Settings().models["dev"], None)
    with _lora_server(geometry, rank, rounds) as base_url, _start_service(geometry, rank, base_url) as service:
        _predict(service, f"{base_url}/0.safetensors")
        times_ms: dict[str, list[tuple[float, float]]] = {"none": [], "cold": [], "on_node": [], "on_device": []}
        for number in range(rounds):
            # The first request with LoRA 0 finds another LoRA on the device and replaces it. The second finds LoRA 0.
            urls = "", *(f"{base_url}/{index}.safetensors" for index in (number + 1, 0, 0))
            for case_times_ms, url in zip(times_ms.values(), urls, strict=True):
                time.sleep(CACHE_WRITE_S)  # The cache writes a downloaded LoRA to disk after its request has ended.
                case_times_ms.append(_predict(service, url))
            print_progress(f"latency: round {number + 1} of {rounds}")
    return {
        name: {
            "request_ms": round(statistics.median(request_ms for request_ms, _ in case_times_ms), 1),
            "lora_ms": round(statistics.median(lora_ms for _, lora_ms in case_times_ms), 2),
        }
        for name, case_times_ms in times_ms.items()
    }


def _predict(service: LocalService, lora_url: str) -> tuple[float, float]:
    """The duration of one request and of its stage `lora`, in milliseconds. Raises RuntimeError if it fails."""
    inputs = INPUTS | {"replicate_weights": lora_url}
    start_s = time.perf_counter()
    response = httpx.post(
        f"{service.url}/v1/predictions", json={"input": inputs}, headers={"Prefer": "wait=60"}, timeout=120
    )
    request_ms = 1000 * (time.perf_counter() - start_s)
    if response.raise_for_status().json()["status"] != "succeeded":
        raise RuntimeError(response.json()["error"])
    stages = dict(stage.split(";dur=") for stage in response.headers["server-timing"].split(", "))
    return request_ms, float(stages.get("lora", 0))


@contextmanager
def _start_service(geometry: ModelGeometry, rank: int, base_url: str) -> Iterator[LocalService]:
    """A service whose device has slots for one LoRA of `rank`."""
    slot_bytes = SLOT_DTYPE_BYTES * sum(
        outputs + inputs
        for layers in (geometry.transformer_layers(), geometry.clip_layers())
        for outputs, inputs in layers.values()
    )
    settings = (
        f"pools.dev-bf16.lora_bytes={(rank + 1) * slot_bytes}",
        "pools.dev-fp8.scaling.min_replicas=0",
        "pools.schnell.scaling.min_replicas=0",
        "lora.allow_http=true",
        f"lora.fetch.allowed_hosts=['{base_url.removeprefix('http://')}']",
    )
    with local_service(*(part for setting in settings for part in ("--set", setting)), on_line=print) as service:
        yield service


@contextmanager
def _lora_server(geometry: ModelGeometry, rank: int, rounds: int) -> Iterator[str]:
    """The base URL of a web server with LoRA 0 and one more LoRA for each round."""
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(rounds + 1):
            safetensors.torch.save_file(_lora_tensors(geometry, rank, seed), Path(folder) / f"{seed}.safetensors")
        handler = functools.partial(_SilentRequestHandler, directory=folder)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()


def _lora_tensors(geometry: ModelGeometry, rank: int, seed: int) -> dict[str, torch.Tensor]:
    """A LoRA on every linear layer of the transformer, in float16 as most published LoRAs are."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        f"transformer.{layer}.lora_{side}.weight": shape
        for layer, (outputs, inputs) in geometry.transformer_layers().items()
        for side, shape in (("A", (rank, inputs)), ("B", (outputs, rank)))
    }
    return {name: (0.02 * torch.randn(shape, generator=generator)).half() for name, shape in shapes.items()}


class _SilentRequestHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        """Does not log requests."""
