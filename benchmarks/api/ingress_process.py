"""Runs the application of the ingress with uvicorn, without Ray, and with pools that answer at once.

    python -m benchmarks.api.ingress_process PORT SETTINGS

`SETTINGS` is JSON. What the ingress asks Ray is replaced, so that the rest is that of the service.
"""

import gc
import sys
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import uvicorn

from serve import ingress
from serve.events import Event, Finished, ImageFinished, Started, StepDone
from serve.generation_plan import GenerationPlan
from serve.settings import Settings

IMAGE = bytes(50_000)
"""About the size of a webp file of a megapixel."""
STAGES_MS = {"queue": 1.0, "text": 2.0, "denoise": 30.0, "decode": 5.0, "safety": 5.0, "encode": 5.0}


class InstantPool:
    """A pool that answers at once."""

    def __init__(self, *_: object) -> None:
        pass

    async def generate(self, plan: GenerationPlan, *_: object) -> AsyncGenerator[Event, None]:
        images = range(len(plan.seeds))
        yield Started()
        for index in images:
            yield StepDone(index, plan.steps, plan.steps)
        for index in images:
            yield ImageFinished(index, IMAGE)
        yield Finished(STAGES_MS, mean_batch=1.0, compute_dtype="bfloat16")


class NoLoraCache:
    """A LoRA cache for predictions without LoRAs."""

    def __init__(self, *_: object) -> None:
        pass

    async def keep_alive(self) -> None:
        pass


def ray_replacements(port: int) -> dict[str, Any]:
    """What replaces the names of `serve.ingress` that need Ray."""
    http_config = SimpleNamespace(host="127.0.0.1", port=port)
    context = SimpleNamespace(app_name="benchmark")
    return {
        "_get_global_client": lambda: SimpleNamespace(http_config=http_config),
        "serve": SimpleNamespace(get_replica_context=lambda: context),
        "own_reference": lambda: (),
        "use_ray_metrics": lambda: None,
        "PoolClient": InstantPool,
        "LoraCacheClient": NoLoraCache,
        "_pool_statuses": lambda *_: {ingress.HEALTHY},
        "_count_nodes": lambda *_: 1,
    }


def main() -> None:
    port, settings = int(sys.argv[1]), Settings.model_validate_json(sys.argv[2])
    with mock.patch.multiple(ingress, **ray_replacements(port)):
        app = ingress.Ingress(settings, dict.fromkeys(settings.pools))
        # As Ray Serve does when a replica has started.
        gc.collect()
        gc.freeze()
        uvicorn.run(app.__serve_build_asgi_app__(), host="127.0.0.1", port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
