"""Replicate's own Python client, pointed at the faces on a real port."""

import asyncio
import io
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from replicate.client import Client
from replicate.exceptions import ModelError, ReplicateError
from replicate.helpers import FileOutput
from replicate.version import Versions

from serve.events import Event, ImageFlagged, Started, StepDone
from serve.settings import OutputSettings, PoolSettings, Settings
from tests.app_factory import house
from tests.fakes import DONE, ONE_IMAGE, WEBP, FakePool, drawn
from tests.images import png

MODEL = "fofr/flux-handwriting-and-sketch"
CAT = {"prompt": "a cat", "num_inference_steps": 2}


@asynccontextmanager
async def client(pool: FakePool, settings: Settings | None = None) -> AsyncGenerator[Client, None]:
    async with house(pool, settings).listening() as url:
        # It keeps connections open for ever otherwise, and has no way of its own to close them.
        official = Client(api_token="a token", base_url=url, headers={"Connection": "close"})
        official.poll_interval = 0.02
        yield official


async def run(official: Client, reference: str, **parameters: Any) -> Any:
    """The client waits with its whole thread, so it gets one of its own."""
    return await asyncio.to_thread(official.run, reference, {**CAT, **parameters.pop("input", {})}, **parameters)


@pytest.mark.parametrize("reference", [MODEL, f"{MODEL}:d592f697"])
@pytest.mark.parametrize("wait", [True, 2, False])
async def test_run_gives_files(reference: str, wait: bool | int) -> None:
    async with client(FakePool(ONE_IMAGE)) as official:
        [output] = await run(official, reference, wait=wait)
    assert isinstance(output, FileOutput)
    assert output.read() == WEBP


async def test_run_gives_files_to_asynchronous_callers() -> None:
    async with client(FakePool(ONE_IMAGE)) as official:
        outputs = await official.async_run(f"{MODEL}:d592f697", CAT)
        assert isinstance(outputs, list)
        [output] = outputs
        assert isinstance(output, FileOutput)
        assert await output.aread() == WEBP


async def test_run_polls_on_when_its_wait_has_expired() -> None:
    pool = FakePool(ONE_IMAGE, going=False)
    async with client(pool, Settings(max_wait_s=0.05)) as official:
        asyncio.get_running_loop().call_later(0.2, pool.going.set)
        [output] = await run(official, MODEL)
    assert output.read() == WEBP


async def test_run_polls_on_when_its_wait_expires_while_pictures_are_drawn() -> None:
    class Pausing(FakePool):
        async def generate(self, *arguments: Any) -> AsyncGenerator[Event, None]:
            yield Started()
            yield StepDone(0, 1, 2)
            await asyncio.sleep(0.2)
            yield drawn(0)
            yield DONE

    async with client(Pausing(()), Settings(max_wait_s=0.05)) as official:
        [output] = await run(official, MODEL)
    assert output.read() == WEBP


async def test_withheld_pictures_are_missing_in_the_list() -> None:
    settings = Settings(outputs=OutputSettings(public_url="https://flux.example"))
    async with client(FakePool((Started(), ImageFlagged(0), drawn(1), DONE)), settings) as official:
        [output] = await run(official, MODEL, input={"num_outputs": 2})
    assert isinstance(output, FileOutput)
    assert output.url.endswith("/out-1.webp")


async def test_a_failed_run_raises_what_the_service_said() -> None:
    async with client(FakePool((Started(), ImageFlagged(0), DONE))) as official:
        with pytest.raises(ModelError, match="All generated images contained NSFW content") as failed:
            await run(official, MODEL)
    assert failed.value.prediction.status == "failed"


async def test_a_prediction_is_followed_to_its_end() -> None:
    pool = FakePool(ONE_IMAGE, going=False)
    async with client(pool) as official:
        prediction = await official.predictions.async_create(version="d592f697", input=CAT)
        assert (prediction.status, prediction.progress) == ("starting", None)
        pool.going.set()
        await prediction.async_wait()
        assert prediction.status == "succeeded"
        assert prediction.progress is not None
        assert (prediction.progress.current, prediction.progress.total) == (2, 2)
        assert prediction.metrics is not None
        assert prediction.metrics["predict_time"] >= 0


async def test_a_prediction_is_cancelled() -> None:
    pool = FakePool(ONE_IMAGE, going=False)
    async with client(pool) as official:
        prediction = await official.predictions.async_create(version="d592f697", input=CAT)
        await prediction.async_cancel()
        assert prediction.status == "canceled"
        await prediction.async_wait()
        assert (await official.predictions.async_get(prediction.id)).status == "canceled"


async def test_a_picture_is_sent_along_as_a_file() -> None:
    pool = FakePool(ONE_IMAGE)
    async with client(pool) as official:
        await run(official, MODEL, input={"image": io.BytesIO(png(200, 100))}, file_encoding_strategy="base64")
    [(plan, picture, _)] = pool.calls
    assert plan.size == (208, 96)
    assert picture is not None


async def test_the_schema_of_a_version_is_read() -> None:
    async with client(FakePool(ONE_IMAGE)) as official:
        version = await Versions(official, MODEL).async_get("d592f697")
    assert version.id == "d592f697"
    assert version.openapi_schema["components"]["schemas"]["Output"]["type"] == "array"


async def test_streams_of_text_are_refused_by_the_client_itself() -> None:
    async with client(FakePool(ONE_IMAGE)) as official:
        with pytest.raises(ReplicateError, match="does not support streaming"):
            await asyncio.to_thread(lambda: list(official.stream(MODEL, input=CAT)))


@pytest.mark.parametrize(
    ("version", "parameters", "status", "title", "detail"),
    [
        ("d592f697", {"input": {}}, 422, "Input validation failed", "- prompt: Field required"),
        ("nobody", {"input": CAT}, 422, "Invalid version or not permitted", "'nobody'"),
        ("d592f697", {"input": CAT, "webhook": "https://me.example"}, 422, "Input validation failed", "- webhook: "),
        ("d592f697", {"input": {**CAT, "image": "data:,x"}}, 422, "Input validation failed", "- image: "),
    ],
)
async def test_refusals_are_errors_with_a_title_and_a_detail(
    version: str, parameters: dict[str, Any], status: int, title: str, detail: str
) -> None:
    async with client(FakePool(ONE_IMAGE)) as official:
        with pytest.raises(ReplicateError) as refused:
            await official.predictions.async_create(version=version, **parameters)
    assert (refused.value.status, refused.value.title) == (status, title)
    assert detail in (refused.value.detail or "")


async def test_an_unknown_prediction_is_an_error() -> None:
    async with client(FakePool(ONE_IMAGE)) as official:
        with pytest.raises(ReplicateError) as refused:
            await official.predictions.async_get("nobody")
    assert refused.value.status == 404


async def test_a_full_pool_is_an_error() -> None:
    settings = Settings(pools={"dev-bf16": PoolSettings(model="dev", max_in_flight=1)})
    async with client(FakePool(ONE_IMAGE, going=False), settings) as official:
        await official.predictions.async_create(version="d592f697", input=CAT)
        with pytest.raises(ReplicateError) as refused:
            await official.predictions.async_create(version="d592f697", input=CAT)
    assert (refused.value.status, refused.value.title) == (429, "Too many requests")
