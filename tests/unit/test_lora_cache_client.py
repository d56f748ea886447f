"""The cluster's LoRA cache as the ingress sees it: one that dies is replaced, and what Ray raises becomes ours."""

import asyncio
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from serve import lora_cache
from serve.errors import EngineFailed, FetchFailed, InvalidLora, ServiceError
from serve.lora.reference import CacheHandle, LoraMetadata, Reference, ReplicateModel, ResolvedLora
from serve.lora_cache import LoraCacheClient
from serve.settings import Settings

INK, PENCIL = ReplicateModel("me", "ink"), ReplicateModel("me", "pencil")
FOUND = ResolvedLora(LoraMetadata("0", 8, 4), CacheHandle(None, "1"), "memory")


class FakeMethod:
    """A method of an actor: each call answers with the next of a script, the last for ever."""

    def __init__(self, *script: Any) -> None:
        self._script = list(script)
        self.calls: list[tuple[Any, ...]] = []

    async def remote(self, *given: Any) -> Any:
        self.calls.append(given)
        answer = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class FakeCache:
    def __init__(self, *script: Any) -> None:
        self.get = FakeMethod(*script)
        self.heartbeat = FakeMethod(None)


class Bench(LoraCacheClient):
    """Makes one cache after the other, of those that it was given."""

    def __init__(self, *caches: FakeCache, settings: Settings | None = None) -> None:
        super().__init__(settings or Settings(), "flux")
        self._caches = list(caches)

    def _make(self) -> Any:
        return self._caches.pop(0)

    async def one(self, reference: Reference = INK, lost: tuple[str, ...] = ()) -> ResolvedLora[Any]:
        return (await self.get({"it": reference}, "dev-fp8", lost))["it"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_cache, "BACKOFF_S", 0.001)


def wrapped(cause: Exception) -> Exception:
    """As Ray hands on what an actor raised: with a traceback that has addresses in it."""
    error: Exception = RayTaskError("bring", "Traceback: 10.0.0.1", cause).as_instanceof_cause()
    return error


async def test_all_loras_are_asked_for_at_once_for_the_model_of_the_pool() -> None:
    cache = FakeCache(FOUND)
    brought = await Bench(cache).get({"a": INK, "b": PENCIL}, "schnell", ["lost"])
    assert brought == {"a": FOUND, "b": FOUND}
    assert cache.get.calls == [(INK, "schnell", ("lost",)), (PENCIL, "schnell", ("lost",))]


async def test_without_references_there_is_nothing_to_ask() -> None:
    assert await Bench().get({}, "schnell") == {}


@pytest.mark.parametrize("death", [ActorDiedError(), ActorUnavailableError("gone", None)])
async def test_a_cache_that_dies_in_the_middle_is_replaced(death: Exception) -> None:
    assert await Bench(FakeCache(death), FakeCache(death), FakeCache(FOUND)).one() == FOUND


async def test_caches_that_die_all_the_time_are_given_up() -> None:
    bench = Bench(*(FakeCache(ActorDiedError()) for _ in range(lora_cache.ATTEMPTS)))
    with pytest.raises(EngineFailed, match="the LoRA cache is not available"):
        await bench.one()


@pytest.mark.parametrize("error", [FetchFailed("me/ink", "404"), InvalidLora("me/ink", "rank 4096")])
async def test_failures_of_a_lora_come_through_as_they_are(error: ServiceError) -> None:
    cache = FakeCache(wrapped(error), FOUND)
    bench = Bench(cache)
    with pytest.raises(type(error)) as caught:
        await bench.one()
    assert str(caught.value) == str(error)
    assert await bench.one() == FOUND


async def test_a_fault_of_the_cache_is_ours_and_shows_nothing() -> None:
    with pytest.raises(EngineFailed) as caught:
        await Bench(FakeCache(wrapped(RuntimeError("at 10.0.0.1")))).one()
    assert "10.0.0.1" not in str(caught.value)


async def test_a_cache_that_finds_no_node_is_not_waited_for_forever() -> None:
    cache = FakeCache(FOUND)

    async def never() -> None:
        await asyncio.Event().wait()

    cache.heartbeat.remote = never  # type: ignore[method-assign]
    settings = Settings.model_validate({"lora": {"cache": {"start_timeout_s": 0.01}}})
    with pytest.raises(EngineFailed, match="did not start"):
        await Bench(cache, settings=settings).one()


async def test_many_who_come_at_once_make_one_cache() -> None:
    cache = FakeCache(FOUND)
    bench = Bench(cache)
    await asyncio.gather(*(bench.one() for _ in range(20)))
    assert len(cache.get.calls) == 20


def test_caches_of_other_settings_have_other_names() -> None:
    changed = Settings.model_validate({"lora": {"max_rank": 8}})
    names = {LoraCacheClient(settings, "flux")._name for settings in (Settings(), Settings(), changed)}
    assert len(names) == 2
