"""The events of a stream: previews, images that are finished one after the other, and errors."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from serve.api.openai.previews import Preview, Watch
from serve.api.openai.request import parse_request
from serve.api.openai.responses import ResponseWriter
from serve.api.openai.stream import image_events
from serve.media.links import LinkSigner
from serve.media.object_store import ObjectStore
from serve.media.output_store import OutputStore
from serve.predictions.prediction import Output, Prediction
from serve.settings import OutputSettings, Settings
from tests.fakes import NOON, prediction
from tests.logs import Logs

SETTINGS = Settings()


@pytest.fixture
async def outputs(tmp_path: Any) -> OutputStore:
    """A store with two images of the prediction."""

    async def load_key() -> bytes:
        return b"secret"

    store = OutputStore(OutputSettings(), ObjectStore(tmp_path.as_uri()), LinkSigner(load_key, 60))
    for index in range(2):
        await store.save(prediction().id, 1, index, b"image %d" % index, "png")
    return store


def scripted(*updates: Prediction | Preview | Exception) -> Watch:
    async def watch(prediction_id: str, previews: int) -> AsyncGenerator[Prediction | Preview, None]:
        for update in updates:
            if isinstance(update, Exception):
                raise update
            yield update

    return watch


async def events(watch: Watch, outputs: OutputStore, partial_images: int = 2, count: int = 1) -> list[dict[str, Any]]:
    body = {"prompt": "a cat", "stream": True, "partial_images": partial_images}
    writer = ResponseWriter("image_edit", parse_request(body, SETTINGS), outputs, SETTINGS, now=lambda: 1.5)
    encoded = [event async for event in image_events([prediction()] * count, writer, watch)]
    return [json.loads(event.split(b"data: ")[1]) for event in encoded]


def with_outputs(*indices: int) -> Prediction:
    running = prediction()
    for index in indices:
        running = running.with_output(Output(index=index, name=f"1/out-{index}.png"))
    return running


async def test_previews_are_partial_images(outputs: OutputStore) -> None:
    watch = scripted(
        prediction(), Preview(0, 1, b"first"), Preview(1, 1, b"other"), Preview(0, 2, b"second"),
        Preview(0, 3, b"third"), with_outputs(0, 1).succeeded(NOON),
    )  # fmt: skip
    found = await events(watch, outputs)
    assert [(each["type"], each.get("partial_image_index"), each["b64_json"]) for each in found] == [
        ("image_edit.partial_image", 0, "Zmlyc3Q="),
        ("image_edit.partial_image", 0, "b3RoZXI="),
        ("image_edit.partial_image", 1, "c2Vjb25k"),
        ("image_edit.completed", None, "aW1hZ2UgMA=="),
        ("image_edit.completed", None, "aW1hZ2UgMQ=="),
    ]
    assert found[0].keys() == {
        "type", "b64_json", "created_at", "partial_image_index", "background", "output_format", "quality", "size",
    }  # fmt: skip
    assert (found[0]["created_at"], found[0]["size"]) == (1, "512x512")


async def test_preview_of_a_finished_image_is_not_sent(outputs: OutputStore) -> None:
    watch = scripted(with_outputs(0), Preview(0, 4, b"late"), with_outputs(0).succeeded(NOON))
    assert [each["type"] for each in await events(watch, outputs)] == ["image_edit.completed"]


async def test_no_preview_is_sent_unless_requested(outputs: OutputStore) -> None:
    watch = scripted(Preview(0, 1, b"first"), with_outputs(0).succeeded(NOON))
    assert [each["type"] for each in await events(watch, outputs, partial_images=0)] == ["image_edit.completed"]


async def test_images_are_sent_before_a_failure(outputs: OutputStore) -> None:
    watch = scripted(with_outputs(1), with_outputs(1).failed(NOON, "the image engine failed"))
    completed, error = await events(watch, outputs)
    assert completed["type"] == "image_edit.completed"
    assert (error["type"], error["error"]["type"]) == ("error", "server_error")


async def test_removed_image_is_an_error(outputs: OutputStore) -> None:
    [error] = await events(scripted(with_outputs(3).succeeded(NOON)), outputs)
    assert "removed" in error["error"]["message"]


async def test_unexpected_error_is_logged_and_not_shown(outputs: OutputStore, logs: Logs) -> None:
    [error] = await events(scripted(RuntimeError("secret at 10.0.0.1")), outputs)
    assert error["error"]["type"] == "server_error"
    assert "secret" not in json.dumps(error)
    [record] = logs.errors
    assert prediction().id in record.getMessage()
