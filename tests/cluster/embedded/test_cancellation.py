"""Cancellation and client disconnects: which predictions stop, and that the engine becomes idle afterwards."""

import asyncio
import time
from typing import Any

import httpx
import pytest

from serve.launch.subprocess_service import LocalService
from tests.cluster.client import SMALL, cancel, connect, create, finish, get, predict, until
from tests.cluster.probe import Probe

POOL = "dev-bf16"
STEPS = 50
LONG: dict[str, Any] = {**SMALL, "prompt": "a slow boat", "num_inference_steps": STEPS, "megapixels": "1", "seed": 1}
OPENAI_LONG = {
    "prompt": "a slow boat", "size": "1024x1024", "num_inference_steps": STEPS, "disable_safety_checker": True,
}  # fmt: skip


def steps_done(service: LocalService, prediction_id: str) -> int:
    """The last step that the logs of the prediction report, or 0."""
    lines = [line for line in get(service, prediction_id)["logs"].splitlines() if f"/{STEPS}" in line]
    return int(lines[-1].rpartition(f"/{STEPS}")[0].split()[-1]) if lines else 0


def idle_steps(probe: Probe) -> int:
    """The engine's step counter, read once the engine is idle."""
    return int(until(lambda: probe.stats(POOL), lambda stats: stats["images"] == 0)["image_steps"])


def test_cancelled_prediction_stops_within_one_step(service: LocalService, probe: Probe) -> None:
    before = idle_steps(probe)
    prediction = create(service, **LONG)
    until(lambda: steps_done(service, prediction["id"]), lambda done: done >= 3)
    at_cancel = int(probe.stats(POOL)["image_steps"])
    assert cancel(service, prediction["id"])["status"] == "canceled"
    # Reading the counter and cancelling take less than a step each, so at most two more steps start before the cancel.
    assert idle_steps(probe) - at_cancel <= 3
    assert idle_steps(probe) - before < STEPS / 2
    assert get(service, prediction["id"])["status"] == "canceled"
    assert predict(service, **SMALL, prompt="the slot is free")["status"] == "succeeded"


def test_v1_prediction_succeeds_after_its_client_disconnects(service: LocalService, probe: Probe) -> None:
    prediction_id = _post_and_disconnect(service, probe, "/v1/predictions", {"input": LONG}, {"Prefer": "wait=60"})
    assert finish(service, prediction_id)["status"] == "succeeded"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predictions", {"input": LONG}),
        ("/v1/images/generations", OPENAI_LONG),
        ("/v1/images/generations", OPENAI_LONG | {"stream": True}),
    ],
)
def test_attached_prediction_stops_when_its_client_disconnects(
    service: LocalService, probe: Probe, path: str, body: dict[str, Any]
) -> None:
    before = idle_steps(probe)
    prediction_id = _post_and_disconnect(service, probe, path, body)
    assert finish(service, prediction_id)["status"] == "canceled"
    assert 3 <= idle_steps(probe) - before < STEPS / 2
    assert predict(service, **SMALL, prompt="the slot is free")["status"] == "succeeded"


def _post_and_disconnect(
    service: LocalService, probe: Probe, path: str, body: dict[str, Any], headers: dict[str, str] | None = None
) -> str:
    """Posts a long request, disconnects after three denoising steps, and returns the prediction's id."""
    steps_at_start = int(probe.stats(POOL)["image_steps"])

    async def post_then_disconnect() -> None:
        async with httpx.AsyncClient(base_url=service.url, timeout=120) as client:
            post = asyncio.create_task(client.post(path, json=body, headers=headers))
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                stats = await asyncio.to_thread(probe.stats, POOL)
                if stats["image_steps"] - steps_at_start >= 3:
                    break
                assert not post.done(), post.result().text
            post.cancel()

    asyncio.run(post_then_disconnect())
    with connect(service) as client:
        return str(client.get("/v1/predictions").json()["results"][0]["id"])
