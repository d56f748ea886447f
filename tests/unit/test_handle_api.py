"""The methods of the Python handle, without Ray."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, cast

import pytest
from ray.exceptions import OwnerDiedError

from serve import errors, handle_api, owner_death
from serve.handle_api import HandleApi
from serve.media.object_store import ObjectStore
from serve.media.output_store import OutputStore
from serve.predictions.prediction import Prediction
from serve.settings import Settings
from tests.app_factory import close_apps, make_app
from tests.fakes import ONE_IMAGE, FakePool

INPUTS = {"prompt": "a boat", "seed": 1}


@pytest.fixture(autouse=True)
async def closed_apps() -> AsyncGenerator[None, None]:
    yield
    await close_apps()


def make_api(pool: FakePool | None = None, opened: bool = True) -> HandleApi:
    settings = Settings()
    app = make_app(pool or FakePool(ONE_IMAGE), settings, opened=opened)
    outputs = OutputStore(settings.outputs, ObjectStore(app.state.as_uri()), app.links)
    return HandleApi(app.service, outputs, app.links, settings)


async def test_create_get_wait_and_list_return_the_same_prediction() -> None:
    api = make_api()
    created = await api.create(INPUTS)
    ended = await api.wait(created["id"], timeout_s=30)
    assert (ended["id"], ended["status"], len(ended["output"])) == (created["id"], "succeeded", 1)
    assert await api.get(created["id"]) == ended
    page = await api.list()
    assert [each["id"] for each in page["results"]] == [created["id"]]
    assert page["results"][0]["output"] is None
    assert (page["previous"], page["next"]) == (None, None)


async def test_pages_follow_each_other_by_their_cursors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handle_api, "PAGE_SIZE", 2)
    api = make_api()
    ids = [(await api.predict(INPUTS))["id"] for _ in range(3)][::-1]
    first = await api.list()
    second = await api.list(cursor=first["next"])
    assert [each["id"] for each in first["results"] + second["results"]] == ids
    assert [each["id"] for each in (await api.list(cursor=second["previous"]))["results"]] == ids[:2]


async def test_key_of_an_earlier_call_returns_its_prediction() -> None:
    api = make_api()
    created = await api.create(INPUTS, idempotency_key="a-key")
    assert (await api.create(INPUTS, idempotency_key="a-key"))["id"] == created["id"]
    with pytest.raises(ValueError, match="a-key"):
        await api.create({**INPUTS, "seed": 2}, idempotency_key="a-key")


async def test_watch_yields_states_up_to_the_end() -> None:
    api = make_api()
    created = await api.create(INPUTS)
    assert [state["status"] async for state in api.watch(created["id"])][-1] == "succeeded"


async def test_wait_raises_timeout_error_and_the_prediction_goes_on() -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    api = make_api(pool)
    created = await api.create(INPUTS)
    with pytest.raises(TimeoutError):
        await api.wait(created["id"], timeout_s=0)
    pool.may_start.set()
    assert (await api.wait(created["id"]))["status"] == "succeeded"


async def test_cancel_ends_the_prediction() -> None:
    api = make_api(FakePool(ONE_IMAGE, may_start=False))
    created = await api.create(INPUTS)
    assert (await api.cancel(created["id"]))["status"] == "canceled"


async def test_deadline_is_that_of_cancel_after() -> None:
    api = make_api()
    assert "deadline" in await api.create(INPUTS, cancel_after="90s")
    assert "deadline" in await api.predict(INPUTS, cancel_after="90s")


Call = Callable[[HandleApi], Coroutine[Any, Any, object]]
WRONG: Any = object()


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda api: api.create(WRONG), "inputs"),
        (lambda api: api.create({}), "input.prompt"),
        (lambda api: api.create({**INPUTS, "image": WRONG}), "input.image"),
        (lambda api: api.create(cast(Any, {1: WRONG})), "input.1"),
        (lambda api: api.create(INPUTS, version=WRONG), "version"),
        (lambda api: api.create(INPUTS, cancel_after=WRONG), "cancel_after"),
        (lambda api: api.create(INPUTS, idempotency_key=WRONG), "idempotency_key"),
        (lambda api: api.predict(INPUTS, owner=WRONG), "owner"),
        (lambda api: api.get(WRONG), "prediction_id"),
        (lambda api: api.cancel(WRONG), "prediction_id"),
        (lambda api: api.wait("a", timeout_s=WRONG), "timeout_s"),
        (lambda api: api.wait("a", timeout_s=float("nan")), "timeout_s"),
        (lambda api: api.wait("a", timeout_s=True), "timeout_s"),
        (lambda api: api.list(cursor=WRONG), "cursor"),
        (lambda api: api.list(created_before="yesterday"), "created_before"),
    ],
)
async def test_invalid_arguments_are_named(call: Call, field: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        await call(make_api())
    assert [each["field"] for each in cast(Any, caught.value).problem["invalid_fields"]] == [field]


async def test_unknown_prediction_is_a_lookup_error() -> None:
    api = make_api()
    for call in (api.get, api.cancel, api.wait):
        with pytest.raises(LookupError):
            await call("unknown")
    with pytest.raises(LookupError):
        await anext(api.watch("unknown"))


async def test_service_that_is_not_ready_is_a_runtime_error() -> None:
    with pytest.raises(RuntimeError) as caught:
        await make_api(opened=False).create(INPUTS)
    assert cast(Any, caught.value).problem["status"] == 503


async def test_unexpected_errors_do_not_tell_their_cause() -> None:
    with pytest.raises(RuntimeError) as caught:
        await HandleApi(cast(Any, None), cast(Any, None), cast(Any, None), Settings()).get("a")
    assert "NoneType" not in str(caught.value)


class ReferenceOfDeadProcess:
    def __await__(self) -> Any:
        raise OwnerDiedError("0" * 40, None, "")
        yield


async def test_attached_prediction_is_canceled_when_the_owner_has_died(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handle_api, "is_reference", bool)
    monkeypatch.setattr(owner_death, "CHECK_PERIOD_S", 0)
    api = make_api(FakePool(ONE_IMAGE, may_start=False))
    async with asyncio.timeout(30):
        assert (await api.predict(INPUTS, owner=[ReferenceOfDeadProcess()]))["status"] == "canceled"
        states = api.stream(INPUTS, owner=[ReferenceOfDeadProcess()])
        assert [state["status"] async for state in states][-1] == "canceled"


async def test_cancellation_waits_for_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handle_api, "is_reference", bool)
    monkeypatch.setattr(handle_api, "CANCEL_RETRY_S", 0)
    monkeypatch.setattr(owner_death, "CHECK_PERIOD_S", 0)
    api = make_api(FakePool(ONE_IMAGE, may_start=False))
    cancel, failures = api._predictions.cancel, [errors.DatabaseUnavailable("away")]

    async def cancel_later(prediction_id: str) -> Prediction:
        if failures:
            raise failures.pop()
        return await cancel(prediction_id)

    monkeypatch.setattr(api._predictions, "cancel", cancel_later)
    async with asyncio.timeout(30):
        assert (await api.predict(INPUTS, owner=[ReferenceOfDeadProcess()]))["status"] == "canceled"
