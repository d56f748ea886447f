"""Predictions survive the loss of the ingress, of replicas, and of the whole service."""

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from serve.launch.subprocess_service import LocalService, local_service
from tests.cluster.client import SMALL, contents, create, finish, get, until

INPUTS: dict[str, Any] = SMALL | {"num_inference_steps": 4, "aspect_ratio": "custom", "width": 256, "height": 256}
COUNT = 8


@pytest.fixture(params=[1, pytest.param(3, marks=pytest.mark.slow_cluster)])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, ...]:
    """With one and with several ingress replicas."""
    assignments = {
        "state_folder": str(tmp_path / "state"),
        "ingress_replicas": str(request.param),
        "pools.dev-fp8.scaling.min_replicas": "0",
        "pools.schnell.scaling.min_replicas": "0",
    }
    return tuple(part for key, value in assignments.items() for part in ("--set", f"{key}={value}"))


def create_all(service: LocalService) -> list[str]:
    return [create(service, prompt="a red sailboat", seed=seed, **INPUTS)["id"] for seed in range(COUNT)]


def images_of(service: LocalService, ids: list[str]) -> list[bytes]:
    """The image of each prediction, when all have ended. The service may be unreachable meanwhile."""

    def ended(prediction_id: str) -> bool:
        try:
            return get(service, prediction_id)["completed_at"] is not None
        except httpx.HTTPError:
            return False

    for each in ids:
        until(partial(ended, each), bool, 180)
    return [contents(get(service, each))[0] for each in ids]


def processes(service: LocalService, title: str) -> list[psutil.Process]:
    """The workers of the service whose process title contains `title`."""
    return [
        process
        for process in psutil.Process(service.process_id).children(recursive=True)
        if process.is_running() and title in " ".join(process.cmdline())
    ]


def kill_all(service: LocalService) -> None:
    """Kills every process of the service, as a power failure would."""
    root = psutil.Process(service.process_id)
    tree = [root, *root.children(recursive=True)]
    for process in tree:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(tree, 30)


def test_no_prediction_is_lost(settings: tuple[str, ...], environment: dict[str, str]) -> None:
    with local_service(*settings, environment=environment) as service:
        expected = images_of(service, create_all(service))

        for title in ("flux:ingress", "flux:dev-bf16"):
            ids = create_all(service)
            until(partial(get, service, ids[0]), lambda prediction: prediction["status"] != "starting", 60)
            processes(service, title)[0].kill()
            assert images_of(service, ids) == expected

        finished = ids[0]
        unfinished = create_all(service)
        kill_all(service)

    with local_service(*settings, environment=environment) as service:
        assert images_of(service, [finished]) == expected[:1]
        assert images_of(service, unfinished) == expected
        finish(service, create(service, prompt="a red sailboat", **INPUTS)["id"])
