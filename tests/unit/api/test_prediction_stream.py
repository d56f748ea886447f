"""The server-sent events of a prediction: their order and ids, resumption, and clients of another process."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import pytest

from serve.api.event_stream import encode_text_event
from serve.api.prediction_stream import Position
from serve.events import Event, ImageFlagged, Preview, Started, StepDone
from serve.predictions import leased_record
from serve.predictions.preview_rows import StoredPreview
from serve.settings import OutputSettings, Settings
from tests.app_factory import AppUnderTest, make_app
from tests.fakes import DONE, FakePool, image_finished, prediction
from tests.unit.predictions.helpers import CAT, run_to_end

URL = "https://flux.example"
SETTINGS = Settings(outputs=OutputSettings(public_url=URL))
TOKEN = {"Authorization": "Bearer secret"}
TWO_CATS = {"prompt": "a cat", "seed": 7, "num_outputs": 2}
TWO_IMAGES: tuple[Event, ...] = (
    *(Started(), StepDone(0, 1, 2), StepDone(1, 1, 2), StepDone(0, 2, 2), image_finished(0)),
    *(StepDone(1, 2, 2), image_finished(1), DONE),
)


class ServerSentEvent(NamedTuple):
    name: str
    data: str
    id: str


def make_service(*events: Event, state: Path | None = None) -> AppUnderTest:
    return make_app(FakePool(events or TWO_IMAGES), SETTINGS, state=state)


def parse(text: str) -> list[ServerSentEvent]:
    """The events of a complete stream, without comments."""
    events = []
    for block in text.split("\n\n"):
        fields: dict[str, list[str]] = {}
        for line in block.split("\n"):
            name, _, value = line.partition(": ")
            fields.setdefault(name, []).append(value)
        if "event" in fields:
            events.append(ServerSentEvent(fields["event"][0], "\n".join(fields["data"]), fields["id"][0]))
    return events


async def request(app: AppUnderTest, prediction_id: str, last_id: str | None = None, query: str = "") -> httpx.Response:
    headers = {} if last_id is None else {"Last-Event-ID": last_id}
    async with app.http as client:
        return await client.get(f"/v1/predictions/{prediction_id}/stream{query}", headers=headers)


async def events_of(
    app: AppUnderTest, prediction_id: str, last_id: str | None = None, query: str = ""
) -> list[ServerSentEvent]:
    response = await request(app, prediction_id, last_id, query)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    return parse(response.text)


async def test_stream_has_logs_then_outputs_then_done() -> None:
    app = make_service()
    ended = await run_to_end(app, TWO_CATS)
    events = await events_of(app, ended.id)
    assert [event.name for event in events] == ["logs", "output", "output", "done"]
    logs, first, second, done = (event.data for event in events)
    assert logs == ended.logs
    assert first.startswith(f"{URL}/links/")
    assert first.endswith(f"/outputs/{ended.id}/1/out-0.webp")
    assert second.endswith(f"/outputs/{ended.id}/1/out-1.webp")
    assert json.loads(done) == {}


async def test_ids_are_the_time_of_creation_and_an_increasing_sequence() -> None:
    app = make_service()
    ended = await run_to_end(app, TWO_CATS)
    ids = [event.id.split(":") for event in await events_of(app, ended.id)]
    assert {timestamp for timestamp, _ in ids} == {str(int(ended.created_at.timestamp() * 1000))}
    sequences = [int(sequence) for _, sequence in ids]
    assert sequences == sorted(set(sequences))


async def test_failed_prediction_ends_with_its_error() -> None:
    app = make_service(Started(), ImageFlagged(0), ImageFlagged(1), DONE)
    *_, error, done = await events_of(app, (await run_to_end(app, TWO_CATS)).id)
    assert (error.name, done.name) == ("error", "done")
    assert "NSFW" in json.loads(error.data)["detail"]
    assert json.loads(done.data) == {"reason": "error"}


async def test_canceled_prediction_ends_with_the_reason() -> None:
    app = make_app(FakePool(TWO_IMAGES, may_start=False), SETTINGS)
    created = await app.create(TWO_CATS)
    await app.service.cancel(created.id)
    *_, done = await events_of(app, created.id)
    assert (done.name, json.loads(done.data)) == ("done", {"reason": "canceled"})


async def test_head_of_a_running_prediction_is_answered_at_once() -> None:
    app = make_app(FakePool(TWO_IMAGES, may_start=False), SETTINGS)
    created = await app.create(TWO_CATS)
    async with app.http as client, asyncio.timeout(5):
        response = await client.head(f"/v1/predictions/{created.id}/stream")
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"].startswith("text/event-stream")


async def test_any_process_resumes_after_any_event() -> None:
    app = make_service()
    ended = await run_to_end(app, TWO_CATS)
    other = make_service(state=app.state)
    events = await events_of(app, ended.id)
    for number, event in enumerate(events[:-1], 1):
        assert await events_of(other, ended.id, last_id=event.id) == events[number:]


async def test_client_that_has_all_events_gets_204() -> None:
    app = make_service()
    ended = await run_to_end(app, TWO_CATS)
    last = (await events_of(app, ended.id))[-1]
    response = await request(app, ended.id, last_id=last.id)
    assert (response.status_code, response.text) == (204, "")


@pytest.mark.parametrize("last_id", ["", "7", "1:2:3", "x:1", "1:1", "-1:0", f"{'9' * 30}:0"])
async def test_id_of_no_event_of_the_prediction_is_rejected(last_id: str) -> None:
    app = make_service()
    response = await request(app, (await run_to_end(app, TWO_CATS)).id, last_id)
    assert response.status_code == 422
    assert response.json()["invalid_fields"][0]["field"] == "Last-Event-ID"


async def test_progress_is_sent_only_if_it_is_requested() -> None:
    app = make_service()
    ended = await run_to_end(app, TWO_CATS)
    events = await events_of(app, ended.id, query="?progress=true")
    assert [json.loads(event.data) for event in events if event.name == "progress"] == [
        {"step": 2, "total": 2, "image": 0},
        {"step": 2, "total": 2, "image": 1},
    ]
    assert "progress" not in {event.name for event in await events_of(app, ended.id, query="?progress=false")}
    rejected = await request(app, ended.id, query="?progress=1")
    assert (rejected.status_code, rejected.json()["invalid_fields"][0]["field"]) == (422, "progress")


async def link_of(app: AppUnderTest, prediction_id: str) -> str:
    """The path of `urls.stream`."""
    async with app.http as client:
        response = await client.get(f"/v1/predictions/{prediction_id}", headers=TOKEN)
    url: str = response.json()["urls"]["stream"]
    return urlsplit(url).path


async def test_link_of_any_process_needs_no_token_and_the_path_alone_does() -> None:
    app, pool = make_app(FakePool(TWO_IMAGES), SETTINGS, token="secret"), FakePool(TWO_IMAGES)
    other = make_app(pool, SETTINGS, token="secret", state=app.state)
    ended = await run_to_end(app, TWO_CATS)
    link = await link_of(other, ended.id)
    async with app.http as client:
        linked = await client.get(link, params={"progress": "true"})
        assert (await client.get(f"/v1/predictions/{ended.id}/stream")).status_code == 401
        assert (await client.get(f"/v1/predictions/{ended.id}/stream", headers=TOKEN)).status_code == 200
    assert [event.name for event in parse(linked.text)] == ["logs", "progress", "progress", "output", "output", "done"]


async def test_link_reads_only_its_stream() -> None:
    app = make_app(FakePool(TWO_IMAGES), SETTINGS, token="secret")
    first, second = await run_to_end(app, TWO_CATS), await run_to_end(app, TWO_CATS)
    link = await link_of(app, first.id)
    ticket = link.split("/")[2]
    async with app.http as client:
        for forged in (link.replace(first.id, second.id), link.replace(ticket, "1-x")):
            assert (await client.get(forged)).status_code == 403
        for other in (link.removesuffix("/stream"), f"/links/{ticket}/outputs/{first.id}/1/out-0.webp"):
            assert (await client.get(other)).status_code in (403, 404)


async def test_unknown_prediction_is_404() -> None:
    assert (await request(make_service(), "unknown")).status_code == 404


async def test_events_arrive_while_the_prediction_runs() -> None:
    pool = FakePool((Started(), StepDone(0, 1, 2), image_finished(0)), slow_to_stop=True)
    app = make_app(pool, SETTINGS)
    created = await app.create(TWO_CATS)
    names, statuses = [], []
    async with app.listening() as base, httpx.AsyncClient(base_url=base) as client:
        path = f"/v1/predictions/{created.id}/stream?progress=true"
        async with client.stream("GET", path) as response, asyncio.timeout(5):
            async for event in iterate(response):
                names.append(event)
                if event == "output":
                    statuses.append((await app.service.get(created.id)).status)
                    pool.may_stop.set()
    assert statuses == ["processing"]
    assert names[0] == "logs"
    assert "progress" in names
    assert names[-2:] == ["error", "done"]


async def iterate(response: httpx.Response) -> AsyncIterator[str]:
    """The names of the events as they arrive."""
    async for line in response.aiter_lines():
        if line.startswith("event: "):
            yield line.removeprefix("event: ")


@pytest.mark.parametrize("line_break", ["\n", "\r", "\r\n", "\u2028", "\x0b", "\x85"])
def test_line_break_does_not_end_the_data(line_break: str) -> None:
    event = encode_text_event("logs", f"a{line_break}event: done{line_break}", "1:1").decode()
    assert event.split("\n") == ["event: logs", "id: 1:1", "data: a", "data: event: done", "data: ", "", ""]


@pytest.mark.parametrize("position", [Position(), Position(5, frozenset({0})), Position(2**20, frozenset(), True)])
def test_id_has_the_position(position: Position) -> None:
    record = prediction()
    assert Position.parse(position.event_id(record), record) == position


async def test_logs_that_were_lost_with_a_process_do_not_hide_later_ones() -> None:
    app = make_service()
    ended = await run_to_end(app, TWO_CATS)
    lost = Position(len(ended.logs) + 100).event_id(ended)
    assert [event.name for event in await events_of(app, ended.id, lost)] == ["output", "output", "done"]


PREVIEW = "data:image/webp;base64,cHJldmlldw=="
PREVIEWED: tuple[Event, ...] = (Started(), StepDone(0, 1, 4), Preview(0, 1, 4, b"preview"), StepDone(0, 2, 4))


class PausingPool(FakePool):
    """Waits after its events, until `may_stop` is set, and then finishes the image."""

    def __init__(self) -> None:
        super().__init__(PREVIEWED, slow_to_stop=True)

    async def generate(self, *arguments: Any) -> AsyncGenerator[Event, None]:
        self.calls.append(arguments[:3])
        for event in PREVIEWED:
            yield event
        await self.may_stop.wait()
        yield image_finished(0)
        yield DONE


async def create_streaming(app: AppUnderTest, **body: Any) -> str:
    async with app.http as client:
        response = await client.post("/v1/predictions", json={"input": CAT | {"num_inference_steps": 4}} | body)
    assert response.status_code == 201
    prediction_id: str = response.json()["id"]
    return prediction_id


async def progress_until_preview(app: AppUnderTest, prediction_id: str) -> list[dict[str, Any]]:
    """The data of the events of progress, up to the first one with a preview."""
    found: list[dict[str, Any]] = []
    path = f"/v1/predictions/{prediction_id}/stream?progress=true"
    async with (
        app.listening() as base,
        httpx.AsyncClient(base_url=base) as client,
        asyncio.timeout(10),
        client.stream("GET", path) as response,
    ):
        async for line in response.aiter_lines():
            if line.startswith('data: {"step"'):
                found.append(json.loads(line.removeprefix("data: ")))
                if "preview" in found[-1]:
                    break
    return found


async def test_progress_has_previews_if_the_prediction_was_created_with_stream() -> None:
    pool = PausingPool()
    app = make_app(pool, SETTINGS)
    prediction_id = await create_streaming(app, stream=True)
    *_, last = await progress_until_preview(app, prediction_id)
    assert (last["image"], last["total"], last["preview"]) == (0, 4, PREVIEW)
    pool.may_stop.set()
    await app.service.wait(prediction_id, 5)
    assert "preview" not in "".join(event.data for event in await events_of(app, prediction_id, query="?progress=true"))


async def test_previews_are_streamed_by_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leased_record, "STORE_PERIOD_S", 0.01)
    pool = PausingPool()
    app = make_app(pool, SETTINGS)
    other = make_app(FakePool(()), SETTINGS, state=app.state)
    prediction_id = await create_streaming(app, stream=True)
    async with asyncio.timeout(5):
        while not await other.service.previews(prediction_id):
            await asyncio.sleep(0.01)
    *_, last = await progress_until_preview(other, prediction_id)
    assert last == {"step": 2, "total": 4, "image": 0, "preview": PREVIEW}
    pool.may_stop.set()
    await app.service.wait(prediction_id, 5)
    assert await other.service.previews(prediction_id) == {}


async def test_previews_are_read_only_for_streams_with_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, reads = PausingPool(), []
    app = make_app(pool, SETTINGS)

    async def previews(prediction_id: str) -> dict[int, StoredPreview]:
        reads.append(prediction_id)
        return {}

    monkeypatch.setattr(app.service, "previews", previews)
    prediction_id = await create_streaming(app, stream=True)
    pool.may_stop.set()
    await events_of(app, prediction_id)
    assert reads == []


@pytest.mark.parametrize(
    ("body", "steps", "previews"),
    [
        ({}, 28, 0),
        ({"stream": False}, 28, 0),
        ({"stream": True}, 28, 8),
        ({"stream": True}, 4, 1),
        ({"stream": True}, 2, 0),
    ],
)
async def test_stream_asks_the_pool_for_previews(body: dict[str, Any], steps: int, previews: int) -> None:
    pool = FakePool(TWO_IMAGES, may_start=False)
    app = make_app(pool, SETTINGS)
    prediction_id = await create_streaming(app, **body, input=CAT | {"num_inference_steps": steps})
    assert (await app.service.get(prediction_id)).plan.previews == previews
