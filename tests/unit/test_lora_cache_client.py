"""`LoraCacheClient` with fake actors: concurrency, actor deaths and error handling."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from serve import lora_cache_client
from serve.errors import EngineFailed, FetchFailed, InvalidLora, ServiceError
from serve.lora.reference import ArchiveMember, Reference, ReplicateModel
from serve.lora.resolved_lora import CacheHandle, LoraMetadata, ResolvedLora
from serve.lora.uploaded_file import ContentMissing, UploadedFile
from serve.lora_cache_client import LoraCacheClient
from serve.settings import Settings

REFERENCE, OTHER_REFERENCE = ReplicateModel("me", "style"), ReplicateModel("me", "other")
RESOLVED = ResolvedLora(LoraMetadata("0", 8, 4), CacheHandle(None, "1"), "memory")


class FakeMethod:
    """An actor method that returns or raises one of `results` per call, in order, and repeats the last one."""

    def __init__(self, *results: Any) -> None:
        self._results = list(results)
        self.calls: list[tuple[Any, ...]] = []

    async def remote(self, *arguments: Any) -> Any:
        self.calls.append(arguments)
        result = self._results.pop(0) if len(self._results) > 1 else self._results[0]
        if isinstance(result, Exception):
            raise result
        return result


class FakeActor:
    def __init__(self, *results: Any) -> None:
        self.get = FakeMethod(*results)
        self.heartbeat = FakeMethod(None)


class ClientWithFakeActors(LoraCacheClient):
    """Connects to `actors`, one after another."""

    def __init__(self, *actors: FakeActor, settings: Settings | None = None) -> None:
        super().__init__(settings or Settings(), "flux", self.local_copy)
        self._actors = list(actors)
        self.uploads = Path()
        self.requested_files: list[str] = []
        self.killed: list[FakeActor] = []

    @asynccontextmanager
    async def local_copy(self, file_id: str) -> AsyncGenerator[Path, None]:
        self.requested_files.append(file_id)
        yield self.uploads / file_id

    def _get_or_create_actor(self) -> Any:
        return self._actors.pop(0)

    def _kill(self, actor: Any) -> None:
        self.killed.append(actor)

    async def get_one(self, reference: Reference = REFERENCE, lost: tuple[str, ...] = ()) -> ResolvedLora[Any]:
        return (await self.get({"key": reference}, "dev-fp8", lost))["key"]


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_cache_client, "BACKOFF_S", 0.001)


def ray_error(cause: Exception) -> Exception:
    """The error that Ray raises in the caller for `cause` in an actor. Its message is a traceback with addresses."""
    error: Exception = RayTaskError("get", "Traceback: 10.0.0.1", cause).as_instanceof_cause()
    return error


async def test_references_are_resolved_for_the_model_of_the_pool() -> None:
    actor = FakeActor(RESOLVED)
    resolved = await ClientWithFakeActors(actor).get({"a": REFERENCE, "b": OTHER_REFERENCE}, "schnell", ["lost"])
    assert resolved == {"a": RESOLVED, "b": RESOLVED}
    assert actor.get.calls == [(REFERENCE, "schnell", ("lost",)), (OTHER_REFERENCE, "schnell", ("lost",))]


async def test_no_references_need_no_actor() -> None:
    assert await ClientWithFakeActors().get({}, "schnell") == {}


@pytest.mark.parametrize("death", [ActorDiedError(), ActorUnavailableError("gone", None)])
async def test_dead_actor_is_replaced(death: Exception) -> None:
    assert await ClientWithFakeActors(FakeActor(death), FakeActor(death), FakeActor(RESOLVED)).get_one() == RESOLVED


async def test_repeatedly_dying_actors_are_an_error() -> None:
    client = ClientWithFakeActors(*(FakeActor(ActorDiedError()) for _ in range(lora_cache_client.ATTEMPTS)))
    with pytest.raises(EngineFailed, match="not available"):
        await client.get_one()


@pytest.mark.parametrize("error", [FetchFailed("me/style", "404"), InvalidLora("me/style", "rank 4096")])
async def test_lora_errors_name_the_input(error: ServiceError) -> None:
    client = ClientWithFakeActors(FakeActor(ray_error(error), RESOLVED))
    with pytest.raises(type(error)) as caught:
        await client.get({"extra_lora": REFERENCE}, "dev-fp8")
    assert str(caught.value) == f"extra_lora: {error}"
    assert await client.get_one() == RESOLVED


async def test_unexpected_error_does_not_reveal_its_message() -> None:
    with pytest.raises(EngineFailed) as caught:
        await ClientWithFakeActors(FakeActor(ray_error(RuntimeError("at 10.0.0.1")))).get_one()
    assert "10.0.0.1" not in str(caught.value)


async def test_actor_that_does_not_start_is_an_error_for_all_calls() -> None:
    actor = FakeActor(RESOLVED)

    async def wait_forever() -> None:
        await asyncio.Event().wait()

    actor.heartbeat.remote = wait_forever  # type: ignore[method-assign]
    settings = Settings.model_validate({"lora": {"cache": {"start_timeout_s": 0.01}}})
    client = ClientWithFakeActors(actor, settings=settings)
    results = await asyncio.gather(*(client.get_one() for _ in range(20)), return_exceptions=True)
    assert {type(each) for each in results} == {EngineFailed}
    assert client.killed == [actor]


async def test_concurrent_calls_create_one_actor() -> None:
    actor = FakeActor(RESOLVED)
    client = ClientWithFakeActors(actor)
    await asyncio.gather(*(client.get_one() for _ in range(20)))
    assert len(actor.get.calls) == 20


class CacheWithoutContent:
    """An actor method that has the LoRA of an uploaded file only once its content was sent."""

    def __init__(self) -> None:
        self.received: list[Any] = []

    async def remote(self, reference: Reference, model: str, lost: tuple[str, ...], content: Any = None) -> Any:
        await asyncio.sleep(0)
        if content is not None:
            self.received.append(content)
        if not self.received:
            raise ray_error(ContentMissing("f1"))
        return RESOLVED


@pytest.mark.parametrize(("content", "in_archive"), [(b"weights", False), (b"", False), (b"archive", True)])
async def test_content_of_an_uploaded_file_is_sent_once_and_only_if_the_cache_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, in_archive: bool
) -> None:
    monkeypatch.setattr("serve.lora_cache_client.ray.put", bytes)
    (tmp_path / "f1").write_bytes(content)
    actor = FakeActor(RESOLVED)
    actor.get = CacheWithoutContent()  # type: ignore[assignment]
    client = ClientWithFakeActors(actor)
    client.uploads = tmp_path
    upload = UploadedFile("0" * 64, "f1")
    reference = ArchiveMember(upload, "a.safetensors") if in_archive else upload
    assert await asyncio.gather(*(client.get_one(reference) for _ in range(5))) == [RESOLVED] * 5
    assert actor.get.received == [content]  # type: ignore[attr-defined]
    assert client.requested_files == ["f1"]


async def test_equal_uploads_are_sent_once_and_each_by_its_own_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache reports the id of the upload whose load was joined: `f1`, which does not exist any more."""
    monkeypatch.setattr("serve.lora_cache_client.ray.put", bytes)
    for file_id in ("f2", "f3"):
        (tmp_path / file_id).write_bytes(b"weights")
    actor = FakeActor(RESOLVED)
    actor.get = CacheWithoutContent()  # type: ignore[assignment]
    client = ClientWithFakeActors(actor)
    client.uploads = tmp_path
    uploads = [UploadedFile("0" * 64, file_id) for file_id in ("f2", "f3")]
    assert await asyncio.gather(*map(client.get_one, uploads)) == [RESOLVED] * 2
    assert actor.get.received == [b"weights"]  # type: ignore[attr-defined]
    assert client.requested_files == ["f2"]


async def test_uploaded_file_over_the_limit_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def put(_: object) -> None:
        raise AssertionError("sent")

    monkeypatch.setattr("serve.lora_cache_client.ray.put", put)
    (tmp_path / "f1").write_bytes(b"x" * 11)
    settings = Settings.model_validate({"lora": {"fetch": {"max_bytes": 10}}})
    client = ClientWithFakeActors(FakeActor(ray_error(ContentMissing("f1"))), settings=settings)
    client.uploads = tmp_path
    with pytest.raises(FetchFailed, match="10 bytes"):
        await client.get_one(UploadedFile("0" * 64, "f1"))


async def test_few_uploads_are_sent_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.lora_cache_client.ray.put", bytes)
    running, most = 0, 0

    class CountingCache:
        async def remote(self, reference: Reference, model: str, lost: tuple[str, ...], content: Any = None) -> Any:
            nonlocal running, most
            if content is None:
                raise ray_error(ContentMissing("?"))
            running += 1
            most = max(most, running)
            for _ in range(20):
                await asyncio.sleep(0)
            running -= 1
            return RESOLVED

    actor = FakeActor(RESOLVED)
    actor.get = CountingCache()  # type: ignore[assignment]
    client = ClientWithFakeActors(actor)
    client.uploads = tmp_path
    uploads = [UploadedFile(f"{number}" * 64, f"f{number}") for number in range(8)]
    for upload in uploads:
        (tmp_path / upload.file_id).write_bytes(b"weights")
    monkeypatch.setattr("serve.lora_cache_client.asyncio.to_thread", call_at_once)
    assert await asyncio.gather(*map(client.get_one, uploads)) == [RESOLVED] * 8
    assert most == lora_cache_client.CONCURRENT_SENDS


async def call_at_once(function: Any, *arguments: Any) -> Any:
    return function(*arguments)


async def test_uploaded_file_that_was_removed_is_an_error(tmp_path: Path) -> None:
    client = ClientWithFakeActors(FakeActor(ray_error(ContentMissing("f1"))))
    client.uploads = tmp_path
    with pytest.raises(FetchFailed, match="removed"):
        await client.get_one(UploadedFile("0" * 64, "f1"))


def test_actor_name_depends_on_the_settings() -> None:
    changed = Settings.model_validate({"lora": {"max_rank": 8}})
    names = {ClientWithFakeActors(settings=settings)._actor_name for settings in (Settings(), Settings(), changed)}
    assert len(names) == 2


class HangingMethod(FakeMethod):
    """An actor method that never returns."""

    async def remote(self, *arguments: Any) -> Any:
        self.calls.append(arguments)
        await asyncio.Event().wait()


class HungActor(FakeActor):
    """Answers the first heartbeat, of its start, and nothing after."""

    def __init__(self) -> None:
        super().__init__(None)
        self.get = HangingMethod()
        self.heartbeat = FirstOnly()


class FirstOnly(HangingMethod):
    async def remote(self, *arguments: Any) -> Any:
        if self.calls:
            await super().remote(*arguments)
        self.calls.append(arguments)


@pytest.fixture
def short_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_cache_client, "CHECK_PERIOD_S", 0.001)
    monkeypatch.setattr(lora_cache_client, "CHECK_TIMEOUT_S", 0.01)


@pytest.mark.usefixtures("short_checks")
async def test_hung_actor_is_killed_once_and_replaced_for_all_calls() -> None:
    hung, healthy = HungActor(), FakeActor(RESOLVED)
    client = ClientWithFakeActors(hung, healthy)
    assert await asyncio.gather(*(client.get_one() for _ in range(20))) == [RESOLVED] * 20
    assert client.killed == [hung]
    assert len(hung.get.calls) == len(healthy.get.calls) == 20


@pytest.mark.usefixtures("short_checks")
async def test_second_hung_actor_is_an_error() -> None:
    actors = [HungActor() for _ in range(lora_cache_client.MAX_HANGS)]
    client = ClientWithFakeActors(*actors)
    with pytest.raises(EngineFailed, match="answer"):
        await client.get_one()
    assert client.killed == actors


@pytest.mark.usefixtures("short_checks")
async def test_long_download_is_not_a_hang() -> None:
    actor, may_end = FakeActor(RESOLVED), asyncio.Event()

    class Download(FakeMethod):
        async def remote(self, *arguments: Any) -> Any:
            await may_end.wait()
            return await super().remote(*arguments)

    actor.get = Download(RESOLVED)
    client = ClientWithFakeActors(actor)
    resolving = asyncio.create_task(client.get_one())
    while len(actor.heartbeat.calls) < 5:
        await asyncio.sleep(0)
    may_end.set()
    assert await resolving == RESOLVED
    assert client.killed == []
