"""The prediction service: creating, watching, waiting for, cancelling and closing predictions."""

import asyncio
import contextvars
import logging
from collections.abc import AsyncGenerator
from datetime import timedelta
from io import BytesIO
from typing import Any

import pytest
from PIL import Image
from sqlalchemy import update

from serve.access.caller import Caller
from serve.database.tables import predictions
from serve.errors import (
    DatabaseUnavailable,
    InvalidInput,
    NotFound,
    NotReady,
    PoolFull,
    PredictionExists,
    StorageUnavailable,
)
from serve.events import Event, Started
from serve.logs import request_id
from serve.predictions import service
from serve.predictions.create_options import CreateOptions
from serve.predictions.idempotency import IdempotencyKey
from serve.predictions.input_store import InputStore
from serve.predictions.prediction import Prediction
from serve.predictions.prediction_rows import read_prediction
from serve.predictions.runner import MAX_LOSSES, SUSPECT_LOSSES
from serve.predictions.store import PredictionStore
from serve.settings import PoolSettings, Settings
from tests.app_factory import AppUnderTest, make_app
from tests.fakes import ONE_IMAGE, FakePool
from tests.images import data_uri
from tests.logs import Logs
from tests.unit.predictions.helpers import CAT, run_to_end

ONE_IN_FLIGHT = Settings(pools={"dev-bf16": PoolSettings(model="dev", max_in_flight=1)})


async def watch_until(app: AppUnderTest, prediction: Prediction, status: str) -> None:
    async for change in app.service.watch(prediction.id):
        if change.status == status:
            return


async def test_prediction_goes_from_starting_to_processing_to_succeeded() -> None:
    app = make_app(FakePool(ONE_IMAGE))
    first = await app.create(CAT)
    changes = [change async for change in app.service.watch(first.id)]
    statuses = [first.status, *(change.status for change in changes)]
    assert list(dict.fromkeys(statuses)) == ["starting", "processing", "succeeded"]
    last = changes[-1]
    assert [output.index for output in last.outputs] == [0]
    assert last.started_at is not None
    assert last.completed_at is not None
    assert last.created_at <= last.started_at <= last.completed_at


async def test_random_seed_has_32_bits() -> None:
    app = make_app(FakePool(ONE_IMAGE))
    seeds = {(await run_to_end(app, {"prompt": "a cat"})).plan.seeds[0] for _ in range(4)}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize("events", [ONE_IMAGE, (Started(), RuntimeError()), (Started(), asyncio.CancelledError())])
async def test_every_ended_prediction_releases_its_permit(events: tuple[Event, ...]) -> None:
    app = make_app(FakePool(events), settings=ONE_IN_FLIGHT)
    for _ in range(3):
        await run_to_end(app, CAT)
        await asyncio.sleep(0)


async def test_full_pool_rejects_with_retry_after() -> None:
    settings = Settings(pools={"dev-bf16": PoolSettings(model="dev", max_in_flight=2)})
    app = make_app(FakePool(ONE_IMAGE, may_start=False), settings=settings)
    await app.create(CAT)
    await app.create(CAT)
    assert await app.service.state() == "full"
    with pytest.raises(PoolFull) as caught:
        await app.create(CAT)
    assert caught.value.retry_after_s >= 1


async def test_invalid_request_takes_no_permit() -> None:
    app = make_app(FakePool(ONE_IMAGE), settings=ONE_IN_FLIGHT)
    for inputs in ({}, CAT | {"image": "data:,no image"}, CAT | {"mask": "data:,no image"}):
        with pytest.raises(InvalidInput):
            await app.create(inputs)
    assert (await run_to_end(app, CAT)).status == "succeeded"


async def test_cancelling_ends_the_record_at_once_and_stops_the_pool() -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    app = make_app(pool)
    prediction = await app.create(CAT)
    await asyncio.sleep(0.01)
    canceled = await app.service.cancel(prediction.id)
    assert (canceled.status, canceled.outputs, canceled.error) == ("canceled", (), None)
    await app.service.close(grace_s=1)
    assert pool.stop_count == 1


async def test_canceled_prediction_keeps_its_permit_until_the_pool_has_stopped() -> None:
    pool = FakePool(ONE_IMAGE, may_start=False, slow_to_stop=True)
    app = make_app(pool, settings=ONE_IN_FLIGHT)
    prediction = await app.create(CAT)
    await asyncio.sleep(0.01)
    await app.service.cancel(prediction.id)
    await asyncio.sleep(0.01)
    with pytest.raises(PoolFull):
        await app.create(CAT)
    pool.may_stop.set()
    pool.may_start.set()
    await until_ready(app)
    assert (await run_to_end(app, CAT)).status == "succeeded"


async def until_ready(app: AppUnderTest) -> None:
    async with asyncio.timeout(5):
        while await app.service.state() != "ready":
            await asyncio.sleep(0.01)


async def test_cancelling_an_ended_prediction_changes_nothing() -> None:
    app = make_app(FakePool(ONE_IMAGE))
    last = await run_to_end(app, CAT)
    assert await app.service.cancel(last.id) == last


@pytest.mark.parametrize("method", ["get", "wait", "cancel"])
async def test_unknown_id_raises_not_found(method: str) -> None:
    with pytest.raises(NotFound):
        await getattr(make_app(FakePool(ONE_IMAGE)).service, method)("unknown")


async def test_wait_returns_the_current_state_after_its_timeout() -> None:
    app = make_app(FakePool(ONE_IMAGE, may_start=False))
    prediction = await app.create(CAT)
    assert (await app.service.wait(prediction.id, timeout_s=0.05)).status == "starting"


async def test_prediction_task_does_not_inherit_the_context_of_the_request() -> None:
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request")
    values: list[str | None] = []

    class ContextReadingPool(FakePool):
        def generate(self, *arguments):  # type: ignore[no-untyped-def]
            values.append(request.get(None))
            return super().generate(*arguments)

    request.set("a request whose client may disconnect")
    await run_to_end(make_app(ContextReadingPool(ONE_IMAGE)), CAT)
    assert values == [None]


async def test_cancelling_an_attached_caller_cancels_the_prediction() -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    app = make_app(pool)
    ids: list[str] = []

    async def attached() -> None:
        async with app.service.create_attached(CAT, app.served) as prediction:
            ids.append(prediction.id)
            await app.service.wait(prediction.id)

    caller = asyncio.create_task(attached())
    while not pool.calls:
        await asyncio.sleep(0.01)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    assert (await app.service.get(ids[0])).status == "canceled"
    await asyncio.sleep(0.01)
    assert pool.stop_count == 1


async def test_leaving_create_attached_early_cancels_the_prediction() -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    app = make_app(pool)
    async with app.service.create_attached(CAT, app.served) as prediction:
        async for _ in app.service.watch(prediction.id):
            break
    assert (await app.service.get(prediction.id)).status == "canceled"


async def test_leaving_create_attached_after_the_end_changes_nothing() -> None:
    app = make_app(FakePool(ONE_IMAGE))
    async with app.service.create_attached(CAT, app.served) as prediction:
        last = await app.service.wait(prediction.id)
    assert last.status == "succeeded"
    assert await app.service.get(prediction.id) == last


async def test_cancelling_a_watcher_does_not_cancel_the_prediction() -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    app = make_app(pool)
    prediction = await app.create(CAT)
    watcher = asyncio.create_task(watch_until(app, prediction, "succeeded"))
    await asyncio.sleep(0)
    watcher.cancel()
    pool.may_start.set()
    assert (await app.service.wait(prediction.id)).status == "succeeded"


async def test_creation_waits_until_the_process_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "OPEN_TIMEOUT_S", 5)
    app = make_app(FakePool(ONE_IMAGE), opened=False)
    creating = asyncio.create_task(app.create(CAT))
    await asyncio.sleep(0.01)
    assert not creating.done()
    app.service.open()
    assert (await creating).status == "starting"


async def test_creation_does_not_wait_for_a_pool_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "OPEN_TIMEOUT_S", 1000)
    app = make_app(FakePool(ONE_IMAGE), opened=False)
    app.service.fail_setup()
    with pytest.raises(NotReady):
        await app.create(CAT)


async def test_predictions_are_accepted_only_between_open_and_close() -> None:
    app = make_app(FakePool(ONE_IMAGE), opened=False)
    states = [await app.service.state()]
    with pytest.raises(NotReady, match="starting"):
        await app.create(CAT)
    app.service.open()
    states.append(await app.service.state())
    assert (await run_to_end(app, CAT)).status == "succeeded"
    await app.service.close(grace_s=1)
    states.append(await app.service.state())
    assert states == ["starting", "ready", "closing"]
    with pytest.raises(NotReady, match="stopping"):
        await app.create(CAT)


async def test_close_waits_for_running_predictions() -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    app = make_app(pool)
    prediction = await app.create(CAT)
    asyncio.get_running_loop().call_later(0.05, pool.may_start.set)
    await app.service.close(grace_s=5)
    assert (await app.service.get(prediction.id)).status == "succeeded"


async def test_close_leaves_predictions_that_run_longer_than_its_grace_period_to_another_process() -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    app = make_app(pool)
    prediction = await app.create(CAT)
    await app.service.close(grace_s=0.05)
    assert pool.stop_count == 1
    successor = make_app(FakePool(ONE_IMAGE), state=app.state)
    await successor.service.renew_leases()
    last = await asyncio.wait_for(successor.service.wait(prediction.id), 5)
    assert (last.status, last.plan) == ("succeeded", prediction.plan)
    assert "starts it again" in last.logs


def random_png() -> bytes:
    """An image that is too large for a record."""
    file = BytesIO()
    Image.effect_noise((256, 256), 100).convert("RGB").save(file, "png")
    return file.getvalue()


async def expire_leases(app: AppUnderTest) -> None:
    """Makes all leases look as if their processes were lost."""
    await app.database.write(lambda connection: connection.execute(update(predictions).values(lease_expires_us=0)))


@pytest.mark.parametrize("inputs", [CAT, CAT | {"image": data_uri(random_png())}])
async def test_prediction_of_a_lost_process_runs_again_with_the_same_plan_and_inputs(inputs: dict[str, Any]) -> None:
    lost_pool, pool = FakePool(ONE_IMAGE, may_start=False), FakePool(ONE_IMAGE)
    app = make_app(lost_pool)
    prediction = await app.create(inputs)
    await expire_leases(app)
    successor = make_app(pool, state=app.state)
    await successor.service.renew_leases()
    assert (await asyncio.wait_for(successor.service.wait(prediction.id), 5)).status == "succeeded"
    (plan, image, _), (lost_plan, lost_image, _) = pool.calls[0], lost_pool.calls[0]
    assert plan == lost_plan
    assert (image is None) == (lost_image is None)
    assert image is None or (image == lost_image).all()


async def test_inputs_of_a_prediction_that_is_not_accepted_are_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: Any) -> None:
        raise PoolFull("dev-bf16", 1.0)

    app = make_app(FakePool(ONE_IMAGE))
    monkeypatch.setattr(PredictionStore, "create", fail)
    with pytest.raises(PoolFull):
        await app.create(CAT | {"image": data_uri(random_png())})
    assert [path for path in (app.state / "inputs").rglob("*") if path.is_file()] == []


async def test_request_that_is_sent_again_after_the_answer_of_the_database_was_lost_has_its_inputs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app, options = make_app(FakePool(ONE_IMAGE)), CreateOptions(idempotency=IdempotencyKey("a key", "a hash"))
    inputs = CAT | {"image": data_uri(random_png())}
    write = app.database.write

    async def lose_answer(work: Any) -> None:
        await write(work)
        raise DatabaseUnavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(app.database, "write", lose_answer)
        patched.setattr(service, "with_patience", lambda call: call())
        with pytest.raises(DatabaseUnavailable):
            await app.create(inputs, options)
    created = await app.create(inputs, options)
    await expire_leases(app)
    await app.service.renew_leases()
    assert (await asyncio.wait_for(app.service.wait(created.id), 5)).status == "succeeded"


async def test_output_of_a_lost_process_is_not_replaced_and_not_used() -> None:
    app = make_app(FakePool(ONE_IMAGE, may_start=False))
    prediction = await app.create(CAT)
    await expire_leases(app)
    successor = make_app(FakePool(ONE_IMAGE), state=app.state)
    await successor.service.renew_leases()
    last = await asyncio.wait_for(successor.service.wait(prediction.id), 5)
    assert [output.name for output in last.outputs] == ["2/out-0.webp"]


@pytest.mark.parametrize("error", [StorageUnavailable(), DatabaseUnavailable("away")])
async def test_prediction_is_taken_up_later_if_its_inputs_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def fail(*_: Any) -> None:
        raise error

    app = make_app(FakePool(ONE_IMAGE, may_start=False))
    prediction = await app.create(CAT)
    await expire_leases(app)
    successor = make_app(FakePool(ONE_IMAGE), state=app.state)
    with monkeypatch.context() as patched:
        patched.setattr(InputStore, "load", fail)
        await successor.service.renew_leases()
        await successor.service._tasks.join()
    assert not (await successor.service.get(prediction.id)).ended
    await successor.service.renew_leases()
    assert (await asyncio.wait_for(successor.service.wait(prediction.id), 5)).status == "succeeded"


async def test_attached_prediction_of_a_lost_process_is_canceled() -> None:
    app, pool = make_app(FakePool(ONE_IMAGE, may_start=False)), FakePool(ONE_IMAGE)
    prediction = await app.create(CAT, CreateOptions(attached=True))
    await expire_leases(app)
    successor = make_app(pool, state=app.state)
    await successor.service.renew_leases()
    assert (await successor.service.get(prediction.id)).status == "canceled"
    assert pool.calls == []


async def test_process_that_lost_its_lease_stops_its_work() -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    app = make_app(pool)
    prediction = await app.create(CAT)
    while not pool.calls:
        await asyncio.sleep(0.01)
    await expire_leases(app)
    successor = make_app(FakePool(ONE_IMAGE), state=app.state)
    await successor.service.renew_leases()
    await app.service.renew_leases()
    assert pool.stop_count == 1
    await successor.service.wait(prediction.id, timeout_s=30)
    assert (await app.service.wait(prediction.id, timeout_s=30)).status == "succeeded"


async def is_stored_as_generated(app: AppUnderTest, prediction_id: str) -> bool:
    record = await app.database.read(lambda connection: read_prediction(connection, prediction_id))
    return record is not None and record.is_generated


class HangingPool(FakePool):
    """A pool that starts a prediction and never ends it."""

    async def generate(self, *arguments: Any) -> AsyncGenerator[Event, None]:
        yield Started()
        await asyncio.Event().wait()


async def test_prediction_whose_processes_are_lost_too_often_while_generating_fails() -> None:
    apps = [make_app(HangingPool(()))]
    prediction = await apps[0].create(CAT)
    for _ in range(MAX_LOSSES):
        assert not (await apps[-1].service.get(prediction.id)).ended
        while not await is_stored_as_generated(apps[-1], prediction.id):
            await asyncio.sleep(0.01)
        await expire_leases(apps[0])
        apps.append(make_app(HangingPool(()), state=apps[0].state))
        await apps[-1].service.renew_leases()
    last = await apps[-1].service.get(prediction.id)
    assert last.status == "failed"
    assert "lost" in (last.error or "")


async def count_losses(app: AppUnderTest, prediction_id: str, losses: int) -> None:
    statement = update(predictions).where(predictions.c.id == prediction_id).values(losses=losses)
    await app.database.write(lambda connection: connection.execute(statement))


async def test_predictions_that_were_lost_twice_are_generated_one_after_another() -> None:
    app, pool = make_app(FakePool(ONE_IMAGE, may_start=False)), FakePool(ONE_IMAGE, may_start=False)
    suspects = [await app.create(CAT) for _ in range(3)]
    others = [await app.create(CAT) for _ in range(3)]
    for each in suspects:
        await count_losses(app, each.id, SUSPECT_LOSSES)
    await expire_leases(app)
    successor = make_app(pool, state=app.state)
    await successor.service.renew_leases()
    while len(pool.calls) < len(others) + 1:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert len(pool.calls) == len(others) + 1
    pool.may_start.set()
    for each in suspects + others:
        assert (await asyncio.wait_for(successor.service.wait(each.id), 5)).status == "succeeded"


async def test_prediction_is_canceled_after_its_deadline() -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    app = make_app(pool)
    late = await app.create(CAT, CreateOptions(lifetime=timedelta(0)))
    in_time = await app.create(CAT, CreateOptions(lifetime=timedelta(hours=1)))
    while len(pool.calls) < 2:
        await asyncio.sleep(0.01)
    await app.service.renew_leases()
    assert (await app.service.get(late.id)).status == "canceled"
    assert (await app.service.get(in_time.id)).status == "starting"
    await asyncio.sleep(0.01)
    assert pool.stop_count == 1


async def test_deadline_outlives_the_process() -> None:
    app, pool = make_app(FakePool(ONE_IMAGE, may_start=False)), FakePool(ONE_IMAGE)
    late = await app.create(CAT, CreateOptions(lifetime=timedelta(0)))
    await app.service.close(grace_s=0)
    successor = make_app(pool, state=app.state)
    await successor.service.renew_leases()
    assert (await successor.service.get(late.id)).status == "canceled"
    assert pool.calls == []


async def test_prediction_and_request_are_in_the_log_of_the_process_and_in_the_call_of_the_pool() -> None:
    pool, logs = FakePool(ONE_IMAGE), Logs()
    logger = logging.getLogger("serve.predictions")
    before = logger.level
    logger.addHandler(logs)
    logger.setLevel(logging.INFO)
    token = request_id.set("my-request")
    try:
        ended = await run_to_end(make_app(pool), CAT)
    finally:
        request_id.reset(token)
        logger.removeHandler(logs)
        logger.setLevel(before)
    log_id = f"prediction {ended.id} (request my-request)"
    lines = [record.getMessage() for record in logs.records]
    assert [line.startswith(log_id) for line in lines] == [True, True]
    assert "accepted" in lines[0]
    assert "succeeded" in lines[1]
    assert pool.log_ids == [log_id]


@pytest.mark.parametrize("owners", [("a", "b"), ("a", "a")])
async def test_id_that_another_request_takes_at_the_same_time_is_refused(owners: tuple[str, str]) -> None:
    app = make_app(FakePool(ONE_IMAGE))
    first, second = (CreateOptions(Caller(owner), id="p1") for owner in owners)
    await app.create(CAT, first)
    with pytest.raises(PredictionExists):
        await app.create(CAT, second)
