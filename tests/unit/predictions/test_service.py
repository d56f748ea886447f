"""The life of predictions from the desk to their end, with a pool that tells a script."""

import asyncio
import contextvars
import time

import pytest

from serve.errors import (
    AllImagesFlagged,
    EngineFailed,
    FetchFailed,
    InvalidInput,
    NotFound,
    NotReady,
    PoolFull,
    ServiceError,
)
from serve.events import Event, ImageFlagged, Started, StepDone
from serve.predictions.prediction import Prediction
from serve.settings import PoolSettings, Settings
from tests.app_factory import AppUnderTest, make_app
from tests.fakes import DONE, ONE_IMAGE, FakeFetcher, FakePool, image_finished
from tests.images import data_uri, png
from tests.logs import Logs

CAT = {"prompt": "a cat", "seed": 7, "num_inference_steps": 2}
HERE = "https://here.example/image.png"


async def ended(home: AppUnderTest, inputs: dict[str, object]) -> Prediction:
    prediction = await home.create(inputs)
    return await asyncio.wait_for(home.service.wait(prediction.id), 5)


async def until(home: AppUnderTest, prediction: Prediction, status: str) -> None:
    async for change in home.service.watch(prediction.id):
        if change.status == status:
            return


async def test_a_prediction_goes_from_starting_over_processing_to_succeeded() -> None:
    home = make_app(FakePool(ONE_IMAGE))
    first = await home.create(CAT)
    changes = [change async for change in home.service.watch(first.id)]
    statuses = [first.status, *(change.status for change in changes)]
    assert list(dict.fromkeys(statuses)) == ["starting", "processing", "succeeded"]
    last = changes[-1]
    assert [output.index for output in last.outputs] == [0]
    assert last.started_at is not None
    assert last.completed_at is not None
    assert last.created_at <= last.started_at <= last.completed_at


async def test_the_pool_gets_the_plan_of_the_record() -> None:
    pool = FakePool(ONE_IMAGE)
    last = await ended(make_app(pool), CAT)
    assert [call[0] for call in pool.calls] == [last.plan]
    assert last.plan.pool == "dev-bf16"


async def test_logs_tell_the_seed_the_work_and_the_progress() -> None:
    lines = (await ended(make_app(FakePool(ONE_IMAGE)), CAT)).logs.splitlines()
    assert lines[:2] == ["Using seed: 7", "Drawing 1 image of 1024x1024 in 2 steps on dev-bf16"]
    assert [line.split("|")[0].strip() for line in lines[2:]] == ["50%", "100%"]


async def test_what_only_the_work_showed_is_told_once_though_a_lost_replica_began_it_twice() -> None:
    begun = Started(("T5 reads only the first 128 of the prompt's 300 tokens",))
    logs = (await ended(make_app(FakePool((begun, begun, *ONE_IMAGE[1:]))), CAT)).logs
    assert logs.count("T5 reads only the first 128") == 1


async def test_metrics_and_stages_tell_what_it_took() -> None:
    last = await ended(make_app(FakePool(ONE_IMAGE)), CAT)
    assert last.metrics["seed"] == 7
    assert last.metrics["pool"] == "dev-bf16"
    assert last.metrics["mean_batch"] == 2.5
    assert {"predict_time", "total_time"} <= last.metrics.keys()
    assert {"plan", "queue", "text", "denoise", "store"} <= last.stages_ms.keys()
    assert last.stages_ms["denoise"] == 30.0


async def test_the_queue_stage_counts_the_wait_for_a_replica_too() -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    home = make_app(pool)
    begun_s = time.perf_counter()
    prediction = await home.create(CAT)
    await asyncio.sleep(0.1)
    pool.may_start.set()
    last = await home.service.wait(prediction.id)
    # However slow the machine is, the stage is a part of what the whole took.
    assert 90 < last.stages_ms["queue"] < 1000 * (time.perf_counter() - begun_s)


async def test_a_random_seed_of_32_bits_is_fixed_when_none_is_given() -> None:
    home = make_app(FakePool(ONE_IMAGE))
    seeds = {(await ended(home, {"prompt": "a cat"})).plan.seeds[0] for _ in range(4)}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**32 for seed in seeds)


async def test_flagged_pictures_are_dropped_and_the_others_keep_their_index() -> None:
    events = (Started(), image_finished(2), ImageFlagged(1), image_finished(0), DONE)
    last = await ended(make_app(FakePool(events)), CAT | {"num_outputs": 3})
    assert [output.name for output in last.outputs] == ["out-0.webp", "out-2.webp"]
    assert "Image 1 was withheld" in last.logs


@pytest.mark.parametrize("how", ["by events", "by the error of the pool"])
async def test_all_flagged_fails_with_the_sentence_that_clients_know(how: str) -> None:
    events = (Started(), ImageFlagged(0), DONE) if how == "by events" else (Started(), AllImagesFlagged())
    last = await ended(make_app(FakePool(events)), CAT)
    assert (last.status, last.error) == (
        "failed",
        "All generated images contained NSFW content. Try running it again with a different prompt.",
    )


class Wrapper(EngineFailed):
    """An error as it comes through a handle: of our class, its text a traceback, the original its `cause`."""

    cause = PoolFull("dev-bf16", 3.0)

    def __str__(self) -> str:
        return "Traceback: 10.0.0.1"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (EngineFailed(), "the image engine failed; the operator's log has the cause"),
        (Wrapper(), "the pool 'dev-bf16' is full, try again in 3 s"),
    ],
)
async def test_an_error_of_ours_gives_its_own_sentence(error: ServiceError, text: str) -> None:
    last = await ended(make_app(FakePool((Started(), error))), CAT)
    assert (last.status, last.error) == ("failed", text)


async def test_any_other_error_gives_a_fixed_sentence_and_a_traceback_in_the_log(
    logs: Logs,
) -> None:
    last = await ended(make_app(FakePool((Started(), RuntimeError("secret at 10.0.0.1")))), CAT)
    assert last.status == "failed"
    assert last.error == f"an internal error; the operator's log has its cause under {last.id}"
    [logged] = logs.errors
    assert last.id in logged.getMessage()
    assert logged.exc_info is not None
    assert "secret" in str(logged.exc_info[1])


@pytest.mark.parametrize(
    "events", [(), (Started(), StepDone(0, 1, 2)), (Started(), DONE), (Started(), image_finished(0), image_finished(0), DONE)]
)
async def test_events_that_stop_short_fail_the_prediction(events: tuple[Event, ...]) -> None:
    last = await ended(make_app(FakePool(events)), CAT | {"num_outputs": 2})
    assert (last.status, last.error) == ("failed", str(EngineFailed()))


async def test_a_pool_that_was_cancelled_by_somebody_else_fails_the_prediction() -> None:
    last = await ended(make_app(FakePool((Started(), asyncio.CancelledError()))), CAT)
    assert (last.status, last.error) == ("failed", "the image engine was stopped before it had finished")


@pytest.mark.parametrize("events", [ONE_IMAGE, (Started(), RuntimeError()), (Started(), asyncio.CancelledError())])
async def test_every_end_gives_the_place_back(events: tuple[Event, ...]) -> None:
    home = make_app(FakePool(events), settings=Settings(pools={"dev-bf16": PoolSettings(model="dev", max_in_flight=1)}))
    for _ in range(3):
        await ended(home, CAT)
        await asyncio.sleep(0)


async def test_a_full_pool_refuses_with_a_time() -> None:
    settings = Settings(pools={"dev-bf16": PoolSettings(model="dev", max_in_flight=2)})
    home = make_app(FakePool(ONE_IMAGE, may_start=False), settings=settings)
    await home.create(CAT)
    await home.create(CAT)
    assert home.service.state == "full"
    with pytest.raises(PoolFull) as refused:
        await home.create(CAT)
    assert refused.value.retry_after_s >= 1


async def test_what_is_refused_takes_no_place() -> None:
    settings = Settings(pools={"dev-bf16": PoolSettings(model="dev", max_in_flight=1)})
    home = make_app(FakePool(ONE_IMAGE), settings=settings)
    for inputs in ({}, CAT | {"image": "data:,no picture"}, CAT | {"mask": "data:,no picture"}):
        with pytest.raises(InvalidInput):
            await home.create(inputs)
    assert (await ended(home, CAT)).status == "succeeded"


async def test_cancelling_stops_the_pool_and_ends_the_record_at_once() -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    home = make_app(pool)
    prediction = await home.create(CAT)
    await asyncio.sleep(0.01)
    canceled = await home.service.cancel(prediction.id)
    assert (canceled.status, canceled.outputs, canceled.error) == ("canceled", (), None)
    await home.service.close(grace_s=1)
    assert pool.stop_count == 1


async def test_cancelling_before_the_first_step_of_the_runner_gives_the_place_back() -> None:
    settings = Settings(pools={"dev-bf16": PoolSettings(model="dev", max_in_flight=1)})
    pool = FakePool(ONE_IMAGE)
    home = make_app(pool, settings=settings)
    prediction = await home.create(CAT)
    assert (await home.service.cancel(prediction.id)).status == "canceled"
    await asyncio.sleep(0.01)
    assert pool.calls == []
    assert (await ended(home, CAT)).status == "succeeded"


async def test_a_canceled_prediction_keeps_its_place_until_the_pool_let_go() -> None:
    settings = Settings(pools={"dev-bf16": PoolSettings(model="dev", max_in_flight=1)})
    pool = FakePool(ONE_IMAGE, may_start=False, slow_to_stop=True)
    home = make_app(pool, settings=settings)
    prediction = await home.create(CAT)
    await asyncio.sleep(0.01)
    await home.service.cancel(prediction.id)
    await asyncio.sleep(0.01)
    with pytest.raises(PoolFull):
        await home.create(CAT)
    pool.may_stop.set()
    pool.may_start.set()
    await asyncio.sleep(0.01)
    assert (await ended(home, CAT)).status == "succeeded"


async def test_cancelling_what_has_ended_changes_nothing() -> None:
    home = make_app(FakePool(ONE_IMAGE))
    last = await ended(home, CAT)
    assert await home.service.cancel(last.id) == last


@pytest.mark.parametrize("method", ["get", "wait", "cancel"])
async def test_an_unknown_id_is_not_found(method: str) -> None:
    with pytest.raises(NotFound):
        await getattr(make_app(FakePool(ONE_IMAGE)).service, method)("nobody")


async def test_waiting_ends_with_its_time() -> None:
    home = make_app(FakePool(ONE_IMAGE, may_start=False))
    prediction = await home.create(CAT)
    assert (await home.service.wait(prediction.id, timeout_s=0.05)).status == "starting"


async def test_a_picture_by_url_is_fetched_outside_the_pool() -> None:
    pool = FakePool(ONE_IMAGE)
    fetcher = FakeFetcher({HERE: png(200, 100)}, concurrent=2)
    home = make_app(pool, fetcher=fetcher)
    prediction = await home.create(CAT | {"image": HERE})
    assert prediction.plan.size is None
    await asyncio.sleep(0.05)
    assert pool.calls == []
    await fetcher.fetch(HERE)  # the second one that the fetcher waits for
    last = await home.service.wait(prediction.id)
    assert last.status == "succeeded"
    assert last.plan.size == (208, 96)
    [(plan, picture, mask)] = pool.calls
    assert picture is not None
    assert (plan, picture.shape, mask) == (last.plan, (96, 208, 3), None)
    assert last.stages_ms["fetch"] > 40


async def test_a_picture_that_cannot_be_had_fails_the_prediction_and_frees_its_place() -> None:
    settings = Settings(pools={"dev-bf16": PoolSettings(model="dev", max_in_flight=1)})
    home = make_app(FakePool(ONE_IMAGE), settings=settings)
    for _ in range(2):
        last = await ended(home, CAT | {"image": HERE})
        assert (last.status, last.error) == ("failed", str(FetchFailed(HERE, "its server answered 404 Not Found")))
        assert last.started_at is None
        await asyncio.sleep(0)


async def test_a_fetched_picture_that_is_none_fails_with_the_sentence_of_the_refusal() -> None:
    home = make_app(FakePool(ONE_IMAGE), fetcher=FakeFetcher({HERE: b"no picture"}))
    with pytest.raises(InvalidInput) as refused:
        await home.create(CAT | {"image": data_uri(b"no picture")})
    assert (await ended(home, CAT | {"image": HERE})).error == str(refused.value)


async def test_the_runner_has_no_context_of_the_request() -> None:
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request")
    seen: list[str | None] = []

    class Asking(FakePool):
        def generate(self, *arguments):  # type: ignore[no-untyped-def]
            seen.append(request.get(None))
            return super().generate(*arguments)

    request.set("the request of a client that may hang up")
    await ended(make_app(Asking(ONE_IMAGE)), CAT)
    assert seen == [None]


async def test_an_attached_caller_who_is_cancelled_cancels_the_prediction() -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    home = make_app(pool)
    ids: list[str] = []

    async def attached() -> None:
        async with home.service.create_attached(CAT, home.served) as prediction:
            ids.append(prediction.id)
            await home.service.wait(prediction.id)

    caller = asyncio.create_task(attached())
    await asyncio.sleep(0.01)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    assert (await home.service.get(ids[0])).status == "canceled"
    await asyncio.sleep(0.01)
    assert pool.stop_count == 1


async def test_an_attached_caller_who_has_seen_enough_cancels_the_prediction() -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    home = make_app(pool)
    async with home.service.create_attached(CAT, home.served) as prediction:
        async for _ in home.service.watch(prediction.id):
            break
    assert (await home.service.get(prediction.id)).status == "canceled"


async def test_an_attached_caller_who_stays_gets_the_end() -> None:
    home = make_app(FakePool(ONE_IMAGE))
    async with home.service.create_attached(CAT, home.served) as prediction:
        last = await home.service.wait(prediction.id)
    assert last.status == "succeeded"
    assert await home.service.get(prediction.id) == last


async def test_a_caller_who_only_watches_may_leave() -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    home = make_app(pool)
    prediction = await home.create(CAT)
    watching = asyncio.create_task(until(home, prediction, "succeeded"))
    await asyncio.sleep(0)
    watching.cancel()
    pool.may_start.set()
    assert (await home.service.wait(prediction.id)).status == "succeeded"


async def test_nothing_is_taken_before_the_desk_is_open_and_after_it_is_closed() -> None:
    home = make_app(FakePool(ONE_IMAGE), opened=False)
    states = [home.service.state]
    with pytest.raises(NotReady, match="starting"):
        await home.create(CAT)
    home.service.open()
    states.append(home.service.state)
    assert (await ended(home, CAT)).status == "succeeded"
    await home.service.close(grace_s=1)
    states.append(home.service.state)
    assert states == ["starting", "ready", "closing"]
    with pytest.raises(NotReady, match="stopping"):
        await home.create(CAT)


async def test_closing_lets_predictions_end() -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    home = make_app(pool)
    prediction = await home.create(CAT)
    asyncio.get_running_loop().call_later(0.05, pool.may_start.set)
    await home.service.close(grace_s=5)
    assert (await home.service.get(prediction.id)).status == "succeeded"


async def test_closing_fails_what_does_not_end_in_time() -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    home = make_app(pool)
    prediction = await home.create(CAT)
    await asyncio.sleep(0)
    await home.service.close(grace_s=0.05)
    last = await home.service.get(prediction.id)
    assert (last.status, last.error) == (
        "failed",
        "the service was stopped before the prediction had ended; send it again",
    )
    assert pool.stop_count == 1
