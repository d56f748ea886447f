"""Requests to OpenAI's Images API in this process, and what their responses say."""

import io
import json
from typing import Any

import httpx
import numpy as np
from PIL import Image

from tests.app_factory import AppUnderTest
from tests.images import png

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
CAT = {"prompt": "a cat"}
IMAGE = png(320, 256)


async def generate(app: AppUnderTest, **body: Any) -> httpx.Response:
    async with app.http as client:
        return await client.post(GENERATIONS, json={**CAT, **body})


async def edit(app: AppUnderTest, image: bytes = IMAGE, mask: bytes | None = None, **fields: str) -> httpx.Response:
    files = {"image": ("boat.png", image, "image/png")}
    if mask is not None:
        files["mask"] = ("mask.png", mask, "image/png")
    async with app.http as client:
        return await client.post(EDITS, data={**CAT, **fields}, files=files)


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of a response, which must have every field of OpenAI's form and no other."""
    assert response.headers["Content-Type"] == "application/json"
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return dict(error)


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, whose names must be their types."""
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/event-stream")
    events = []
    for block in response.text.split("\n\n"):
        if block and not block.startswith(":"):
            name, data = (line.partition(": ")[2] for line in block.splitlines())
            events.append(json.loads(data))
            assert events[-1]["type"] == name
    return events


async def inputs_of(app: AppUnderTest, index: int = 0) -> dict[str, Any]:
    return (await app.service.get(app.prediction_ids[index])).inputs


def mask_png(width: int, height: int, transparent_columns: int) -> bytes:
    """A mask in OpenAI's form: its left columns are transparent."""
    pixels = np.full((height, width, 4), 255, np.uint8)
    pixels[:, :transparent_columns, 3] = 0
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()
