"""Predictions survive the loss of the ingress, of replicas, and of the whole service."""

import random
import time
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.launch.subprocess_service import LocalService, free_port, local_service
from tests.cluster.client import SMALL, as_arguments, connect, contents, create, finish, get, until
from tests.cluster.databases import database_settings
from tests.cluster.processes import kill_all, processes
from tests.cluster.retrying_client import ANSWER_LIMIT_S, Crowd, Outcome

INPUTS: dict[str, Any] = SMALL | {"num_inference_steps": 4, "aspect_ratio": "custom", "width": 256, "height": 256}
COUNT = 8
CROWD_COUNT = 200
CROWD_SIZE = 80
"""More than the pool accepts at once, so that some clients are told to come back."""
KILLS = 10
SEED = 19
PAUSES_S = (1.0, 14.0)
"""Between two losses."""
CROWD_TIMEOUT_S = 400.0


@pytest.fixture(
    params=[
        ("sqlite", 1),
        pytest.param(("sqlite", 3), marks=pytest.mark.slow_cluster),
        pytest.param(("postgresql", 3), marks=pytest.mark.slow_cluster),
    ],
    ids="{0[0]}-{0[1]}".format,
)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """With a database, and one or several ingress replicas."""
    database, replicas = request.param
    with database_settings(database) as assignments:
        yield as_arguments(
            {
                **assignments,
                "state_folder": str(tmp_path / "state"),
                "ingress_replicas": str(replicas),
                "pools.dev-fp8.scaling.min_replicas": "0",
                "pools.schnell.scaling.min_replicas": "0",
            }
        )


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


@pytest.mark.slow_cluster
def test_requests_are_answered_while_the_ingress_hangs(settings: tuple[str, ...], environment: dict[str, str]) -> None:
    with local_service(*settings, environment=environment) as service:
        url = f"{service.url}/v1/predictions"
        for ingress in processes(service, "flux:ingress"):
            ingress.suspend()
        response = httpx.get(url, timeout=ANSWER_LIMIT_S)
        assert response.status_code == 503
        assert int(response.headers["Retry-After"]) >= 1
        until(lambda: httpx.get(url, timeout=ANSWER_LIMIT_S).status_code, lambda status: status == 200, 300)


def requests(run: str) -> list[tuple[str, dict[str, Any]]]:
    """The idempotency key and the inputs of each request of a run."""
    inputs = INPUTS | {"prompt": "a red sailboat", "num_inference_steps": 2}
    return [(f"{run}-{seed}", inputs | {"seed": seed}) for seed in range(CROWD_COUNT)]


def outcomes(futures: "list[Future[Outcome]]") -> list[Outcome]:
    deadline_s = time.monotonic() + CROWD_TIMEOUT_S
    return [future.result(deadline_s - time.monotonic()) for future in futures]


def all_ids(service: LocalService) -> list[str]:
    """The ids of all recorded predictions."""
    ids, path = [], "/v1/predictions"
    with connect(service) as client:
        while path:
            page = client.get(path).raise_for_status().json()
            ids += [each["id"] for each in page["results"]]
            path = page["next"]
    return ids


def kill_ingresses(service: LocalService, rng: random.Random, count: int) -> None:
    """Kills an ingress at each of `count` random moments."""
    for _ in range(count):
        time.sleep(rng.uniform(*PAUSES_S))
        victims = until(lambda: processes(service, "flux:ingress"), bool)
        rng.choice(victims).kill()


@pytest.mark.slow_cluster
def test_clients_get_the_images_of_an_undisturbed_run(
    settings: tuple[str, ...], environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(SEED)
    arguments = (*settings, "--port", str(free_port()))
    kills_before = rng.randrange(1, KILLS)
    with local_service(*arguments, environment=environment) as service, Crowd(service.url, CROWD_SIZE) as crowd:
        undisturbed = outcomes(crowd.start(requests("undisturbed")))
        futures = crowd.start(requests("disturbed"))
        kill_ingresses(service, rng, kills_before)
        outage_start_s = time.monotonic()
        kill_all(service)
        with local_service(*arguments, environment=environment) as successor:
            outage_end_s = time.monotonic()
            kill_ingresses(successor, rng, KILLS - kills_before)
            assert not all(future.done() for future in futures)
            disturbed = outcomes(futures)
            ids = all_ids(successor)

    extra_s = max(late.wait_s - early.wait_s for early, late in zip(undisturbed, disturbed, strict=True))
    with capsys.disabled():
        print(f"\nseed {SEED}: {crowd.summary()}, outage {outage_end_s - outage_start_s:.0f} s")
        longest_s = max(each.wait_s for each in undisturbed)
        print(f"longest wait: {longest_s:.0f} s undisturbed; up to {extra_s:.0f} s more disturbed")
    assert [each.error for each in undisturbed + disturbed if each.error] == []
    assert [each.images for each in disturbed] == [each.images for each in undisturbed]
    assert sorted(ids) == sorted(each.prediction_id for each in undisturbed + disturbed)
    assert crowd.silences_s == []
    assert all(outage_start_s <= error_s <= outage_end_s for error_s in crowd.connection_errors_s)
