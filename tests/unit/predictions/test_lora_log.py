"""Predictions with LoRAs, from the desk to their end: what the pool gets, what is told, and what is lost on the way."""

import asyncio
from typing import Any

import pytest

from serve.errors import EngineFailed, FetchFailed, LorasMissing
from serve.events import Started
from serve.lora.reference import CacheHandle, LoraMetadata, ReplicateModel, ResolvedLora
from serve.plan import PlannedLora
from serve.predictions.event_recorder import lora_log_lines, lora_metrics
from serve.predictions.prediction import Prediction
from tests.app_factory import AppUnderTest, make_app
from tests.fakes import DONE, ONE_IMAGE, FakeFetcher, FakeLoraCache, FakePool, image_finished

INK, PENCIL = "me/ink", "huggingface.co/me/pencil"
WITH_INK = {"prompt": "a cat", "replicate_weights": INK, "lora_scale": 0.5}
WITH_BOTH = {**WITH_INK, "extra_lora": f"https://{PENCIL}"}


async def ended(home: AppUnderTest, inputs: dict[str, Any]) -> Prediction:
    prediction = await home.create(inputs)
    return await asyncio.wait_for(home.service.wait(prediction.id), 5)


async def test_the_pool_gets_the_weights_and_a_plan_that_names_them() -> None:
    pool, loras = FakePool(ONE_IMAGE), FakeLoraCache()
    last = await ended(make_app(pool, loras=loras), WITH_BOTH)
    assert last.status == "succeeded"
    assert loras.calls == [((INK, PENCIL), "dev-bf16", ())]
    weights_keys, scales = [f"{INK} 1", f"{PENCIL} 1"], [0.5, 1.0]
    assert pool.calls[0][0].loras == last.plan.loras
    assert [lora.weights_key for lora in last.plan.loras] == weights_keys
    assert [lora.scale for lora in last.plan.loras] == scales
    assert [lora.metadata.key for lora in pool.loras[0]] == weights_keys


async def test_the_record_tells_which_ran_from_where_and_what_it_took() -> None:
    last = await ended(make_app(FakePool(ONE_IMAGE)), WITH_BOTH)
    assert f"LoRA {INK} at scale 0.5: downloaded 10.0 MB in 0.50 s, checked in 0.25 s\n" in last.logs
    assert f"LoRA {PENCIL} at scale 1: downloaded" in last.logs
    assert [(each["lora"], each["scale"]) for each in last.metrics["loras"]] == [(INK, 0.5), (PENCIL, 1.0)]
    assert last.stages_ms["lora"] >= 0


async def test_without_loras_nothing_is_said_of_them() -> None:
    pool = FakePool(ONE_IMAGE)
    last = await ended(make_app(pool), {"prompt": "a cat"})
    assert "LoRA" not in last.logs
    assert "loras" not in last.metrics
    assert "lora" not in last.stages_ms
    assert list(pool.loras[0]) == []


async def test_a_lora_that_cannot_be_had_fails_its_prediction_alone() -> None:
    home = make_app(FakePool(ONE_IMAGE), loras=FakeLoraCache({INK: FetchFailed(INK, "its server answered 404 Not Found")}))
    last = await ended(home, WITH_BOTH)
    assert (last.status, last.error) == ("failed", f"could not fetch {INK}: its server answered 404 Not Found")
    assert (await ended(home, {"prompt": "a cat", "extra_lora": PENCIL})).status == "succeeded"


async def test_loras_and_pictures_are_waited_for_at_once_and_in_no_pool() -> None:
    pool, loras, fetcher = FakePool(ONE_IMAGE), FakeLoraCache(may_start=False), FakeFetcher({})
    home = make_app(pool, loras=loras, fetcher=fetcher)
    prediction = await home.create({**WITH_INK, "image": "https://there.example/cat.png"})
    await asyncio.sleep(0.05)
    assert (len(loras.calls), len(fetcher.fetched), pool.calls) == (1, 1, [])
    last = await home.service.wait(prediction.id)
    assert last.status == "failed", "the picture was not there, and nobody waits for the LoRA of a failed prediction"


async def test_weights_that_were_lost_are_brought_again() -> None:
    loras = FakeLoraCache()

    class Loses(FakePool):
        """Cannot read what it is given, once."""

        def generate(self, *given: Any) -> Any:
            self.events = ONE_IMAGE if self.calls else (LorasMissing((f"{INK} 1",)),)
            return super().generate(*given)

    pool = Loses(())
    last = await ended(make_app(pool, loras=loras), WITH_BOTH)
    assert (last.status, last.plan.loras[0].weights_key) == ("succeeded", f"{INK} 1")
    assert [lost for _, _, lost in loras.calls] == [(), (f"copy 1 of {INK}",)]
    assert [call[0].loras[0].weights_key for call in pool.calls] == [f"{INK} 1", f"{INK} 2"]


async def test_weights_that_are_lost_again_and_again_fail_the_prediction() -> None:
    pool = FakePool((LorasMissing((f"{INK} 1",)),))
    last = await ended(make_app(pool), WITH_INK)
    assert (last.status, len(pool.calls)) == ("failed", 3)
    assert last.error == "the weights of a LoRA were not at hand; send the request again"


async def test_what_was_drawn_before_weights_were_lost_is_kept_once() -> None:
    class LosesLate(FakePool):
        def generate(self, *given: Any) -> Any:
            first = (Started(), image_finished(1), LorasMissing((f"{INK} 1",)))
            self.events = (Started(), image_finished(0), image_finished(1), DONE) if self.calls else first
            return super().generate(*given)

    last = await ended(make_app(LosesLate(())), WITH_INK | {"num_outputs": 2})
    assert [output.index for output in last.outputs] == [0, 1]
    assert last.status == "succeeded"


async def test_a_prediction_that_is_cancelled_stops_waiting_for_its_lora() -> None:
    home = make_app(FakePool(ONE_IMAGE), loras=FakeLoraCache(may_start=False))
    prediction = await home.create(WITH_INK)
    await asyncio.sleep(0)
    assert (await home.service.cancel(prediction.id)).status == "canceled"
    await asyncio.wait_for(home.service.close(1), 5)


async def test_a_cache_that_is_not_there_fails_the_prediction_with_a_reason() -> None:
    failure = EngineFailed("the LoRA cache is not available; the operator's log has the cause")
    last = await ended(make_app(FakePool(ONE_IMAGE), loras=FakeLoraCache({INK: failure})), WITH_INK)
    assert (last.status, last.error) == ("failed", str(failure))


COPY = CacheHandle(None, "1")
KEY = ReplicateModel("me", "ink").key


def told(**changes: Any) -> tuple[str, ...]:
    facts = LoraMetadata("0", size_bytes=8, rank=4, unapplied=changes.pop("unapplied", ()))
    lora = ResolvedLora(facts, COPY, **{"origin": "memory", **changes})
    return lora_log_lines([PlannedLora(reference_key=KEY, scale=-1.5)], {KEY: ReplicateModel("me", "ink")}, {KEY: lora})


@pytest.mark.parametrize(
    ("lora", "lines"),
    [
        ({}, ["cached in memory"]),
        ({"origin": "disk"}, ["cached on disk"]),
        (
            {"stale": True},
            ["cached in memory", "its source cannot be reached, so the cached weights are used"],
        ),
        (
            {"unapplied": ("a: odd", "b: odd", "c: odd", "d: odd", "e: odd")},
            ["cached in memory", "some tensors are not applied: a: odd; b: odd; c: odd; and 2 more"],
        ),
    ],
)
def test_lines_say_what_a_caller_should_know(lora: dict[str, Any], lines: list[str]) -> None:
    assert list(told(**lora)) == [f"LoRA me/ink at scale -1.5: {line}" for line in lines]


def test_metrics_have_an_entry_for_each_use() -> None:
    lora = ResolvedLora(LoraMetadata("0", size_bytes=8, rank=4), COPY, "download", 6, 0.12345, 0.5)
    uses = [PlannedLora(reference_key=KEY, scale=scale) for scale in (1.0, 0.5)]
    (first, second) = lora_metrics(uses, {KEY: ReplicateModel("me", "ink")}, {KEY: lora})["loras"]
    assert first == {
        "lora": "me/ink",
        "scale": 1.0,
        "origin": "download",
        "rank": 4,
        "size_bytes": 8,
        "fetched_bytes": 6,
        "fetch_s": 0.123,
        "check_s": 0.5,
    }
    assert second == {**first, "scale": 0.5}
