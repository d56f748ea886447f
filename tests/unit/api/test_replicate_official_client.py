"""Replicate's official Python client against the application on a loopback port."""

import asyncio
import io
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from replicate.client import Client
from replicate.exceptions import ModelError, ReplicateError
from replicate.helpers import FileOutput
from replicate.version import Versions

from serve.events import Event, ImageFlagged, Started, StepDone
from serve.settings import DeploymentSettings, OutputSettings, PoolSettings, Settings
from tests.app_factory import make_app
from tests.asgi_server import listen, outputs_at
from tests.fakes import DONE, ONE_IMAGE, WEBP, FakeFetcher, FakeLoraCache, FakePool, image_finished
from tests.images import data_uri, png

MODEL = "fofr/flux-handwriting-and-sketch"
IMAGE, IMAGE_URL = png(200, 100), "https://images.example/boat.png"
CAT = {"prompt": "a cat", "num_inference_steps": 2}


@asynccontextmanager
async def client(
    pool: FakePool, settings: Settings | None = None, loras: FakeLoraCache | None = None
) -> AsyncGenerator[Client, None]:
    listener = listen()
    settings = settings or Settings(outputs=outputs_at(listener))
    app = make_app(pool, settings, FakeFetcher({IMAGE_URL: IMAGE}), loras, token="a token")
    async with app.listening(listener) as url:
        # The client has no method to close its connections, so the server must close them.
        replicate = Client(api_token="a token", base_url=url, headers={"Connection": "close"})
        replicate.poll_interval = 0.02
        yield replicate


async def run(replicate: Client, reference: str, **parameters: Any) -> Any:
    """`Client.run` in a thread, because it blocks."""
    return await asyncio.to_thread(replicate.run, reference, {**CAT, **parameters.pop("input", {})}, **parameters)


@pytest.mark.parametrize("reference", [MODEL, f"{MODEL}:d592f697"])
@pytest.mark.parametrize("wait", [True, 2, False])
async def test_run_returns_files(reference: str, wait: bool | int) -> None:
    async with client(FakePool(ONE_IMAGE)) as replicate:
        [output] = await run(replicate, reference, wait=wait)
    assert isinstance(output, FileOutput)
    assert output.read() == WEBP


async def test_async_run_returns_files() -> None:
    async with client(FakePool(ONE_IMAGE)) as replicate:
        outputs = await replicate.async_run(f"{MODEL}:d592f697", CAT)
        assert isinstance(outputs, list)
        [output] = outputs
        assert isinstance(output, FileOutput)
        assert await output.aread() == WEBP


async def test_run_polls_after_its_wait_has_expired() -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    async with client(pool, Settings(max_wait_s=0.05)) as replicate:
        asyncio.get_running_loop().call_later(0.2, pool.may_start.set)
        [output] = await run(replicate, MODEL)
    assert output.read() == WEBP


async def test_run_polls_if_its_wait_expires_during_generation() -> None:
    class PausingPool(FakePool):
        async def generate(self, *arguments: Any) -> AsyncGenerator[Event, None]:
            yield Started()
            yield StepDone(0, 1, 2)
            await asyncio.sleep(0.2)
            yield image_finished(0)
            yield DONE

    async with client(PausingPool(()), Settings(max_wait_s=0.05)) as replicate:
        [output] = await run(replicate, MODEL)
    assert output.read() == WEBP


async def test_flagged_images_are_left_out() -> None:
    settings = Settings(outputs=OutputSettings(public_url="https://flux.example"))
    async with client(FakePool((Started(), ImageFlagged(0), image_finished(1), DONE)), settings) as replicate:
        [output] = await run(replicate, MODEL, input={"num_outputs": 2})
    assert isinstance(output, FileOutput)
    assert output.url.endswith("/out-1.webp")


async def test_failed_prediction_raises_its_error() -> None:
    async with client(FakePool((Started(), ImageFlagged(0), DONE))) as replicate:
        with pytest.raises(ModelError, match="NSFW") as failed:
            await run(replicate, MODEL)
    assert failed.value.prediction.status == "failed"


async def test_prediction_is_polled_to_its_end() -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    async with client(pool) as replicate:
        prediction = await replicate.predictions.async_create(version="d592f697", input=CAT)
        assert (prediction.status, prediction.progress) == ("starting", None)
        pool.may_start.set()
        await prediction.async_wait()
        assert prediction.status == "succeeded"
        assert prediction.progress is not None
        assert (prediction.progress.current, prediction.progress.total) == (2, 2)
        assert prediction.metrics is not None
        assert prediction.metrics["predict_time"] >= 0


async def test_prediction_is_cancelled() -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    async with client(pool) as replicate:
        prediction = await replicate.predictions.async_create(version="d592f697", input=CAT)
        await prediction.async_cancel()
        assert prediction.status == "canceled"
        await prediction.async_wait()
        assert (await replicate.predictions.async_get(prediction.id)).status == "canceled"


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    path = tmp_path / "boat.png"
    path.write_bytes(IMAGE)
    return path


@pytest.mark.parametrize("strategy", ["url", "base64"])
@pytest.mark.parametrize("form", ["open", "BytesIO", "path"])
async def test_local_file_is_an_input_image(form: str, strategy: str, image_file: Path) -> None:
    pool = FakePool(ONE_IMAGE)
    async with client(pool) as replicate:
        with image_file.open("rb") as opened:
            image = {"open": opened, "BytesIO": io.BytesIO(IMAGE), "path": image_file}[form]
            await run(replicate, MODEL, input={"image": image}, file_encoding_strategy=strategy)
    [(plan, decoded, _)] = pool.calls
    assert plan.size == (208, 96)
    assert decoded is not None


async def test_async_run_takes_a_local_file(image_file: Path) -> None:
    pool = FakePool(ONE_IMAGE)
    async with client(pool) as replicate:
        with image_file.open("rb") as opened:
            await replicate.async_run(MODEL, {**CAT, "image": opened, "mask": io.BytesIO(IMAGE)})
    assert pool.calls[0][0].size == (208, 96)


@pytest.mark.parametrize("image", [IMAGE_URL, data_uri(IMAGE)])
async def test_url_and_data_uri_are_input_images(image: str) -> None:
    pool = FakePool(ONE_IMAGE)
    async with client(pool) as replicate:
        await run(replicate, MODEL, input={"image": image})
    assert pool.calls[0][0].size == (208, 96)


async def test_local_file_is_a_lora() -> None:
    loras = FakeLoraCache()
    async with client(FakePool(ONE_IMAGE), loras=loras) as replicate:
        await run(replicate, MODEL, input={"replicate_weights": io.BytesIO(b"weights"), "extra_lora": ""})
    [((name,), _, _)] = loras.calls
    assert name.startswith("/v1/files/")


async def test_files_are_created_read_listed_and_deleted(image_file: Path) -> None:
    async with client(FakePool(ONE_IMAGE)) as replicate:
        created = await replicate.files.async_create(image_file, metadata={"album": "boats"})
        assert (created.name, created.content_type, created.size) == ("boat.png", "image/png", len(IMAGE))
        assert created.metadata == {"album": "boats"}
        assert await replicate.files.async_get(created.id) == created
        assert await replicate.files.async_list() == [created]
        assert await replicate.files.async_delete(created.id) is True
        with pytest.raises(ReplicateError) as raised:
            await replicate.files.async_get(created.id)
    assert raised.value.status == 404


async def test_predictions_are_listed() -> None:
    async with client(FakePool(ONE_IMAGE)) as replicate:
        created = await replicate.predictions.async_create(version="d592f697", input=CAT)
        page = await replicate.predictions.async_list()
    assert [prediction.id for prediction in page.results] == [created.id]


async def test_models_and_the_account_are_read() -> None:
    async with client(FakePool(ONE_IMAGE)) as replicate:
        model = await replicate.models.async_get(MODEL)
        models = (await replicate.models.async_list()).results
        versions = (await Versions(replicate, MODEL).async_list()).results
        account = await replicate.accounts.async_current()
    assert model.latest_version is not None
    assert model.latest_version.id == "d592f697"
    assert model.latest_version.openapi_schema["components"]["schemas"]["Input"]
    assert [version.id for version in versions] == ["d592f697"]
    assert MODEL in [each.id for each in models]
    assert account.type == "organization"


async def test_models_are_searched() -> None:
    async with client(FakePool(ONE_IMAGE)) as replicate:
        page = await replicate.models.async_search("handwriting")
    assert [model.id for model in page.results] == [MODEL]


async def test_deployments_are_read_and_run() -> None:
    deployment = DeploymentSettings(owner="studio", name="fast", model="black-forest-labs/flux-schnell")
    async with client(FakePool(ONE_IMAGE), Settings(deployments=(deployment,))) as replicate:
        listed = (await replicate.deployments.async_list()).results
        read = await replicate.deployments.async_get("studio/fast")
        created = await replicate.deployments.predictions.async_create("studio/fast", {"prompt": "a cat"}, wait=True)
        with pytest.raises(ReplicateError) as raised:
            await replicate.deployments.async_delete("studio", "fast")
    assert [each.name for each in listed] == ["fast"]
    assert read.current_release is not None
    assert read.current_release.configuration.hardware == "schnell"
    assert read.current_release.model == created.model == "black-forest-labs/flux-schnell"
    assert created.status == "succeeded"
    assert raised.value.status == 403


async def test_hardware_and_collections_are_read() -> None:
    async with client(FakePool(ONE_IMAGE)) as replicate:
        hardware = await replicate.hardware.async_list()
        [listed] = (await replicate.collections.async_list()).results
        collection = await replicate.collections.async_get(listed.slug)
    assert [each.sku for each in hardware] == ["dev-bf16", "dev-fp8", "schnell"]
    assert collection.models is not None
    assert MODEL in [each.id for each in collection.models]


async def test_run_takes_all_64_digits_of_a_version() -> None:
    async with client(FakePool(ONE_IMAGE)) as replicate:
        [output] = await run(replicate, f"{MODEL}:d592f697{'0' * 56}")
    assert output.read() == WEBP


async def test_other_endpoints_are_errors_that_name_the_path() -> None:
    async with client(FakePool(ONE_IMAGE)) as replicate:
        with pytest.raises(ReplicateError) as raised:
            await replicate.trainings.async_list()
    assert raised.value.status == 404
    assert "does not serve GET /v1/trainings" in (raised.value.detail or "")


async def test_version_has_a_schema() -> None:
    async with client(FakePool(ONE_IMAGE)) as replicate:
        version = await Versions(replicate, MODEL).async_get("d592f697")
    assert version.id == "d592f697"
    assert version.openapi_schema["components"]["schemas"]["Output"]["type"] == "array"


async def test_stream_has_logs_files_and_an_end() -> None:
    async with client(FakePool(ONE_IMAGE)) as replicate:
        events = await asyncio.to_thread(lambda: list(replicate.stream(MODEL, input=CAT)))
    assert [event.event.value for event in events if event.event.value != "logs"] == ["output", "done"]
    [output] = [event.data for event in events if event.event.value == "output"]
    assert isinstance(output, FileOutput)
    assert output.read() == WEBP
    assert "Using seed" in "".join(event.data for event in events if event.event.value == "logs")


async def test_async_stream_of_a_prediction() -> None:
    async with client(FakePool(ONE_IMAGE)) as replicate:
        prediction = await replicate.predictions.async_create(version="d592f697", input=CAT)
        names = [event.event.value async for event in prediction.async_stream()]
    assert names[-2:] == ["output", "done"]


async def test_stream_of_a_failed_prediction_raises_its_error() -> None:
    async with client(FakePool((Started(), ImageFlagged(0), DONE))) as replicate:
        with pytest.raises(RuntimeError, match="NSFW"):
            await asyncio.to_thread(lambda: list(replicate.stream(MODEL, input=CAT)))


@pytest.mark.parametrize(
    ("version", "parameters", "status", "title", "detail"),
    [
        ("d592f697", {"input": {}}, 422, "Input validation failed", "- prompt: "),
        ("unknown", {"input": CAT}, 422, "Invalid version or not permitted", "'unknown'"),
        ("d592f697", {"input": CAT, "webhook": "ftp://me.example"}, 422, "Input validation failed", "- webhook: "),
        ("d592f697", {"input": {**CAT, "image": "data:,x"}}, 422, "Input validation failed", "- image: "),
    ],
)
async def test_rejected_request_raises_an_error_with_title_and_detail(
    version: str, parameters: dict[str, Any], status: int, title: str, detail: str
) -> None:
    async with client(FakePool(ONE_IMAGE)) as replicate:
        with pytest.raises(ReplicateError) as raised:
            await replicate.predictions.async_create(version=version, **parameters)
    assert (raised.value.status, raised.value.title) == (status, title)
    assert detail in (raised.value.detail or "")


async def test_unknown_prediction_raises_404() -> None:
    async with client(FakePool(ONE_IMAGE)) as replicate:
        with pytest.raises(ReplicateError) as raised:
            await replicate.predictions.async_get("unknown")
    assert raised.value.status == 404


async def test_full_pool_raises_429() -> None:
    settings = Settings(pools={"dev-bf16": PoolSettings(model="dev", max_in_flight=1)})
    async with client(FakePool(ONE_IMAGE, may_start=False), settings) as replicate:
        await replicate.predictions.async_create(version="d592f697", input=CAT)
        with pytest.raises(ReplicateError) as raised:
            await replicate.predictions.async_create(version="d592f697", input=CAT)
    assert (raised.value.status, raised.value.title) == (429, "Too many requests")
