"""A pool of replicas: what Ray raises becomes ours, and a replica that dies is forgiven once."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from serve.errors import AllImagesFlagged, EngineFailed, PoolFull, ServiceError
from serve.events import Event, Finished, ImageFinished, Started
from serve.generation_plan import GenerationPlan, make_plan
from serve.inputs import validate_inputs
from serve.pool_client import PoolClient
from serve.settings import Settings

Script = Sequence[Event | Exception]


class FakeStream:
    """The answer of a handle: events, and an error that Ray may raise between them."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.cancelled = False

    async def __aiter__(self) -> AsyncIterator[Event]:
        for entry in self._script:
            if isinstance(entry, Exception):
                raise entry
            yield entry

    def cancel(self) -> None:
        self.cancelled = True


class FakeHandle:
    """A deployment's handle whose calls play one script after the other."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = list(scripts)
        self.streams: list[FakeStream] = []

    def options(self, **options: Any) -> "FakeHandle":
        assert options == {"method_name": "generate", "stream": True}
        return self

    def remote(self, *arguments: object) -> FakeStream:
        self.streams.append(FakeStream(self._scripts.pop(0)))
        return self.streams[-1]


def plan() -> GenerationPlan:
    inputs, _ = validate_inputs({"prompt": "x", "num_outputs": 2}, 100)
    return make_plan(inputs, Settings(), 0)


async def told(handle: FakeHandle) -> list[Event]:
    pool = PoolClient("dev-bf16", cast(DeploymentHandle, handle))
    return [event async for event in pool.generate(plan())]


def picture(image: int) -> ImageFinished:
    return ImageFinished(image, b"")


WHOLE = (Started(), picture(0), picture(1), Finished())


async def test_events_pass_in_order() -> None:
    handle = FakeHandle(WHOLE)
    assert await told(handle) == list(WHOLE)
    assert not handle.streams[0].cancelled


async def test_a_replica_that_dies_is_replaced_once() -> None:
    handle = FakeHandle((Started(), picture(1), ActorDiedError()), WHOLE)
    assert await told(handle) == [Started(), picture(1), *WHOLE]


async def test_a_second_death_fails_the_prediction() -> None:
    handle = FakeHandle((ActorDiedError(),), (Started(), ActorDiedError()))
    with pytest.raises(EngineFailed, match="lost, twice"):
        await told(handle)


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (BackPressureError(num_queued_requests=1, max_queued_requests=1), PoolFull),
        (RayTaskError("generate", "a traceback of 10.0.0.1", AllImagesFlagged()), AllImagesFlagged),
        (RayTaskError("generate", "a traceback of 10.0.0.1", KeyError("secret")), EngineFailed),
    ],
)
async def test_what_ray_raises_becomes_an_error_of_ours(raised: Exception, error: type[ServiceError]) -> None:
    with pytest.raises(error) as caught:
        await told(FakeHandle((Started(), raised)))
    assert "10.0.0.1" not in str(caught.value)
    assert "secret" not in str(caught.value)


async def test_who_leaves_cancels_the_call() -> None:
    handle = FakeHandle(WHOLE)
    events = PoolClient("dev-bf16", cast(DeploymentHandle, handle)).generate(plan())
    await anext(events)
    await events.aclose()
    assert handle.streams[0].cancelled
