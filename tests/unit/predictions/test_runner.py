"""The prediction runner: loading images and LoRAs, calling the pool, and ending the record on every failure."""

import asyncio
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from serve.errors import (
    EngineFailed,
    FetchFailed,
    InvalidInput,
    LorasMissing,
    PoolFull,
    ReplicaLost,
    ServiceError,
)
from serve.events import Started
from serve.predictions.runner import CALL_ATTEMPTS, MAX_LOSSES
from serve.settings import PoolSettings, Settings
from tests.app_factory import make_app
from tests.fakes import DONE, ONE_IMAGE, FakeFetcher, FakeLoraCache, FakePool, image_finished
from tests.images import data_uri, png
from tests.logs import Logs
from tests.unit.predictions.helpers import CAT, run_to_end

IMAGE_URL = "https://images.example/image.png"
SKETCH, PENCIL = "me/sketch", "huggingface.co/me/pencil"
WITH_SKETCH = {"prompt": "a cat", "replicate_weights": SKETCH, "lora_scale": 0.5}
WITH_BOTH = {**WITH_SKETCH, "extra_lora": f"https://{PENCIL}"}


async def test_pool_receives_the_plan_of_the_record() -> None:
    pool = FakePool(ONE_IMAGE)
    last = await run_to_end(make_app(pool), CAT)
    assert [call[0] for call in pool.calls] == [last.plan]
    assert last.plan.pool == "dev-bf16"


class WrappedError(EngineFailed):
    """An error as Ray Serve raises it: a subclass whose text is a traceback and whose `cause` is the original error."""

    cause = PoolFull("dev-bf16", 3.0)

    def __str__(self) -> str:
        return "Traceback: 10.0.0.1"


@pytest.mark.parametrize(
    ("error", "text"),
    [(EngineFailed(), str(EngineFailed())), (WrappedError(), str(PoolFull("dev-bf16", 3.0)))],
)
async def test_service_error_fails_the_prediction_with_its_own_message(error: ServiceError, text: str) -> None:
    last = await run_to_end(make_app(FakePool((Started(), error))), CAT)
    assert (last.status, last.error) == ("failed", text)


async def test_other_error_fails_the_prediction_with_a_fixed_message_and_is_logged(logs: Logs) -> None:
    last = await run_to_end(make_app(FakePool((Started(), RuntimeError("secret at 10.0.0.1")))), CAT)
    assert last.status == "failed"
    assert last.error is not None
    assert "internal error" in last.error
    assert last.id in last.error
    assert "secret" not in last.error
    assert "10.0.0.1" not in last.error
    [record] = logs.errors
    assert last.id in record.getMessage()
    assert record.exc_info is not None
    assert "secret" in str(record.exc_info[1])


async def test_prediction_fails_if_its_pool_call_is_cancelled() -> None:
    last = await run_to_end(make_app(FakePool((Started(), asyncio.CancelledError()))), CAT)
    assert last.status == "failed"
    assert "stopped" in (last.error or "")


async def test_image_url_is_fetched_before_the_pool_is_called() -> None:
    pool = FakePool(ONE_IMAGE)
    fetcher = FakeFetcher({IMAGE_URL: png(200, 100)}, concurrent=2)
    app = make_app(pool, fetcher=fetcher)
    prediction = await app.create(CAT | {"image": IMAGE_URL})
    assert prediction.plan.size is None
    await asyncio.sleep(0.05)
    assert pool.calls == []
    await fetcher.fetch(IMAGE_URL)  # the second of the two concurrent fetches
    last = await app.service.wait(prediction.id)
    assert last.status == "succeeded"
    assert last.plan.size == (208, 96)
    [(plan, image, mask)] = pool.calls
    assert image is not None
    assert (plan, image.shape, mask) == (last.plan, (96, 208, 3), None)
    assert last.stages_ms["fetch"] > 40


async def test_failed_fetch_of_an_image_fails_the_prediction_and_releases_its_permit() -> None:
    settings = Settings(pools={"dev-bf16": PoolSettings(model="dev", max_in_flight=1)})
    app = make_app(FakePool(ONE_IMAGE), settings=settings)
    for _ in range(2):
        last = await run_to_end(app, CAT | {"image": IMAGE_URL})
        assert last.status == "failed"
        assert IMAGE_URL in (last.error or "")
        assert "404" in (last.error or "")
        assert last.started_at is None
        await asyncio.sleep(0)


async def test_invalid_fetched_image_fails_with_the_same_message_as_a_data_uri() -> None:
    app = make_app(FakePool(ONE_IMAGE), fetcher=FakeFetcher({IMAGE_URL: b"no image"}))
    with pytest.raises(InvalidInput) as caught:
        await app.create(CAT | {"image": data_uri(b"no image")})
    assert (await run_to_end(app, CAT | {"image": IMAGE_URL})).error == str(caught.value)


@pytest.mark.parametrize("by_url", [True, False])
async def test_logs_say_how_the_mask_was_read(by_url: bool) -> None:
    file = BytesIO()
    Image.new("L", (200, 100), 255).save(file, "PNG")
    app = make_app(FakePool(ONE_IMAGE), fetcher=FakeFetcher({IMAGE_URL: png(200, 100)}))
    image = IMAGE_URL if by_url else data_uri(png(200, 100))
    last = await run_to_end(app, CAT | {"image": image, "mask": data_uri(file.getvalue())})
    assert [line for line in last.logs.splitlines() if line.startswith("mask has no effect")]


async def test_pool_receives_the_loras_and_a_plan_with_their_weights_keys() -> None:
    pool, lora_cache = FakePool(ONE_IMAGE), FakeLoraCache()
    last = await run_to_end(make_app(pool, loras=lora_cache), WITH_BOTH)
    assert last.status == "succeeded"
    assert lora_cache.calls == [((SKETCH, PENCIL), "dev-bf16", ())]
    weights_keys, scales = [f"{SKETCH} 1", f"{PENCIL} 1"], [0.5, 1.0]
    assert pool.calls[0][0].loras == last.plan.loras
    assert [lora.weights_key for lora in last.plan.loras] == weights_keys
    assert [lora.scale for lora in last.plan.loras] == scales
    assert [lora.metadata.key for lora in pool.loras[0]] == weights_keys


async def test_record_contains_log_lines_metrics_and_stage_time_of_loras() -> None:
    last = await run_to_end(make_app(FakePool(ONE_IMAGE)), WITH_BOTH)
    sketch, pencil = (line for line in last.logs.splitlines() if "LoRA" in line)
    assert all(fact in sketch for fact in (SKETCH, "scale 0.5", "10.0 MB", "0.50 s", "0.25 s"))
    assert all(fact in pencil for fact in (PENCIL, "scale 1", "downloaded"))
    assert [(metric["lora"], metric["scale"]) for metric in last.metrics["loras"]] == [(SKETCH, 0.5), (PENCIL, 1.0)]
    assert last.stages_ms["lora"] >= 0


async def test_record_without_loras_does_not_mention_them() -> None:
    pool = FakePool(ONE_IMAGE)
    last = await run_to_end(make_app(pool), {"prompt": "a cat"})
    assert "LoRA" not in last.logs
    assert "loras" not in last.metrics
    assert "lora" not in last.stages_ms
    assert list(pool.loras[0]) == []


async def test_lora_that_two_inputs_name_is_sent_to_the_pool_once() -> None:
    pool = FakePool(ONE_IMAGE)
    last = await run_to_end(make_app(pool), {**WITH_SKETCH, "extra_lora": f"https://replicate.com/{SKETCH}"})
    assert [lora.metadata.key for lora in pool.loras[0]] == [f"{SKETCH} 1"]
    assert [metric["scale"] for metric in last.metrics["loras"]] == [0.5, 1.0]


async def test_failed_lora_fails_only_its_own_prediction() -> None:
    failure = FetchFailed(SKETCH, "its server answered 404 Not Found")
    app = make_app(FakePool(ONE_IMAGE), loras=FakeLoraCache({SKETCH: failure}))
    last = await run_to_end(app, WITH_BOTH)
    assert (last.status, last.error) == ("failed", str(failure))
    assert (await run_to_end(app, {"prompt": "a cat", "extra_lora": PENCIL})).status == "succeeded"


async def test_loras_and_images_are_fetched_concurrently_and_before_the_pool_is_called() -> None:
    pool, lora_cache, fetcher = FakePool(ONE_IMAGE), FakeLoraCache(may_start=False), FakeFetcher({})
    app = make_app(pool, loras=lora_cache, fetcher=fetcher)
    prediction = await app.create({**WITH_SKETCH, "image": IMAGE_URL})
    await asyncio.sleep(0.05)
    assert (len(lora_cache.calls), len(fetcher.fetched), pool.calls) == (1, 1, [])
    last = await app.service.wait(prediction.id)
    assert last.status == "failed", "a failed fetch must not wait for the LoRA"


async def test_lost_weights_are_resolved_again() -> None:
    class LosesWeightsOnce(FakePool):
        def generate(self, *arguments: Any) -> Any:
            self.events = ONE_IMAGE if self.calls else (LorasMissing((f"{SKETCH} 1",)),)
            return super().generate(*arguments)

    pool, lora_cache = LosesWeightsOnce(()), FakeLoraCache()
    last = await run_to_end(make_app(pool, loras=lora_cache), WITH_BOTH)
    assert (last.status, last.plan.loras[0].weights_key) == ("succeeded", f"{SKETCH} 1")
    assert [lost for _, _, lost in lora_cache.calls] == [(), (f"handle 1 of {SKETCH}",)]
    assert [call[0].loras[0].weights_key for call in pool.calls] == [f"{SKETCH} 1", f"{SKETCH} 2"]


async def test_weights_lost_in_every_attempt_fail_the_prediction() -> None:
    error = LorasMissing((f"{SKETCH} 1",))
    pool = FakePool((error,))
    last = await run_to_end(make_app(pool), WITH_SKETCH)
    assert (last.status, len(pool.calls)) == ("failed", CALL_ATTEMPTS)
    assert last.error == str(error)


async def test_another_replica_generates_a_prediction_whose_replica_was_lost() -> None:
    class LosesFirstReplica(FakePool):
        def generate(self, *arguments: Any) -> Any:
            self.events = ONE_IMAGE if self.calls else (Started(), ReplicaLost(started=True))
            return super().generate(*arguments)

    pool = LosesFirstReplica(())
    assert (await run_to_end(make_app(pool), CAT)).status == "succeeded"
    assert pool.calls[0] == pool.calls[1]


@pytest.mark.parametrize(("started", "attempts"), [(True, MAX_LOSSES), (False, CALL_ATTEMPTS)])
async def test_prediction_that_loses_its_replicas_fails(started: bool, attempts: int) -> None:
    pool = FakePool((ReplicaLost(started),))
    last = await run_to_end(make_app(pool), CAT)
    assert (last.status, len(pool.calls)) == ("failed", attempts)
    assert "lost" in (last.error or "")


async def test_images_finished_before_weights_were_lost_are_stored_once() -> None:
    class LosesWeightsAfterImage1(FakePool):
        def generate(self, *arguments: Any) -> Any:
            first_attempt = (Started(), image_finished(1), LorasMissing((f"{SKETCH} 1",)))
            second_attempt = (Started(), image_finished(0), image_finished(1), DONE)
            self.events = second_attempt if self.calls else first_attempt
            return super().generate(*arguments)

    last = await run_to_end(make_app(LosesWeightsAfterImage1(())), WITH_SKETCH | {"num_outputs": 2})
    assert [output.index for output in last.outputs] == [0, 1]
    assert last.status == "succeeded"


async def test_cancelled_prediction_stops_waiting_for_its_lora() -> None:
    app = make_app(FakePool(ONE_IMAGE), loras=FakeLoraCache(may_start=False))
    prediction = await app.create(WITH_SKETCH)
    await asyncio.sleep(0)
    assert (await app.service.cancel(prediction.id)).status == "canceled"
    await asyncio.wait_for(app.service.close(1), 5)


async def test_unavailable_lora_cache_fails_the_prediction_with_its_message() -> None:
    failure = EngineFailed("the LoRA cache is not available")
    last = await run_to_end(make_app(FakePool(ONE_IMAGE), loras=FakeLoraCache({SKETCH: failure})), WITH_SKETCH)
    assert (last.status, last.error) == ("failed", str(failure))
