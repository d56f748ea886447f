"""The servers that are compared: how to start them, and how they expect requests and return images."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.peers import environment
from benchmarks.peers.workload import GUIDANCE, ImageRequest
from serve.deployment import replica_environment
from serve.launch.subprocess_service import ROOT
from serve.model_specs import EMBEDDED_MODELS_FOLDER
from serve.settings import Settings

POOL = "dev-bf16"
OURS = "flux-serve"
COG_RUNNER = "benchmarks/peers/cog_runner.py:Runner"


@dataclass(frozen=True, slots=True)
class Server:
    """A server to compare."""

    name: str
    description: str
    """How it handles concurrent requests."""
    command: tuple[str, ...]
    """`{port}` stands for the port."""
    path: str
    """Of the endpoint that generates images."""
    make_body: Callable[[ImageRequest], object]
    max_in_flight: int | None = None
    """Requests that it accepts at once; the client queues further ones. None means any number."""
    is_peer: bool = True


def read_outputs(body: object) -> list[str]:
    """The `data:` URIs in a response of any of the servers. Raises ValueError if there are none."""
    outputs = (
        body.get("output") if isinstance(body, dict) else next(iter(body), None) if isinstance(body, list) else None
    )
    if not isinstance(outputs, list) or not all(isinstance(uri, str) for uri in outputs):
        raise ValueError(f"no images in the response: {json.dumps(body)[:200]}")
    return outputs


def our_inputs(request: ImageRequest) -> dict[str, Any]:
    """The inputs of the service. The safety checker is off, because the peers have none."""
    fixed = {"aspect_ratio": "custom", "guidance_scale": GUIDANCE, "disable_safety_checker": True}
    return {"input": request.to_json() | fixed}


def our_server(threads: int) -> Server:
    scaling = {"min_replicas": 0, "initial_replicas": 0}
    settings = {
        f"pools.{pool}.scaling.{key}": value for pool in ("dev-fp8", "schnell") for key, value in scaling.items()
    }
    settings[f"pools.{POOL}.num_threads"] = threads
    assignments = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return Server(
        name=OURS,
        description="batches between steps",
        command=(sys.executable, "-m", "serve", "--port", "{port}", *assignments),
        path="/predictions",
        make_body=our_inputs,
        is_peer=False,
    )


def peers() -> dict[str, Server]:
    """All peers by name."""
    python = str(environment.BIN / "python")
    bentoml = (str(environment.BIN / "bentoml"), "serve", "benchmarks.peers.bentoml_service:FluxService")
    servers = (
        Server(
            name="fastapi",
            description="one lock",
            command=(python, "-m", "benchmarks.peers.fastapi_server"),
            path="/generate",
            make_body=ImageRequest.to_json,
        ),
        Server(
            name="litserve",
            description="one worker",
            command=(python, "-m", "benchmarks.peers.litserve_server"),
            path="/predict",
            make_body=ImageRequest.to_json,
        ),
        Server(
            name="bentoml",
            description="adaptive batching",
            command=(*bentoml, "--host", "127.0.0.1", "--port", "{port}"),
            path="/generate",
            make_body=lambda request: {"requests": [request.to_json()]},
        ),
        Server(
            name="ray",
            description="serve.batch",
            command=(python, "-m", "benchmarks.peers.ray_server"),
            path="/generate",
            make_body=ImageRequest.to_json,
        ),
        Server(
            name="cog",
            description="one prediction at a time",
            command=(python, "-m", "cog.server.http", "--host", "127.0.0.1"),
            path="/predictions",
            make_body=lambda request: {"input": request.to_json()},
            max_in_flight=1,
        ),
    )
    return {server.name: server for server in servers}


def server_environment(server: Server, base: Mapping[str, str], port: int, threads: int, dtype: str) -> dict[str, str]:
    """The environment of a server. That of the peers has the malloc and OpenMP settings of the service's replica."""
    variables = dict(base) | {"HF_HUB_OFFLINE": "1", "PORT": str(port), "PYTHONPATH": str(ROOT)}
    if not server.is_peer:
        return variables
    pool = Settings().pools[POOL].model_copy(update={"num_threads": threads})
    return (
        variables
        | replica_environment(pool)
        | {
            "PATH": environment.search_path(),
            "PEERS_CHECKPOINT": str(EMBEDDED_MODELS_FOLDER / "dev"),
            "PEERS_DTYPE": dtype,
            "PEERS_THREADS": str(threads),
            "COG_PREDICT_TYPE_STUB": COG_RUNNER,
            "BENTOML_DO_NOT_TRACK": "True",
        }
    )
