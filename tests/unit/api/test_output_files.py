"""Serving finished images as files, to clients with the token and with links."""

import shutil
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from serve.events import ImageFinished, Started
from serve.settings import OutputSettings, Settings
from tests.app_factory import AppUnderTest, make_app
from tests.fakes import DONE, ONE_IMAGE, WEBP, FakePool
from tests.images import png

SETTINGS = Settings(outputs=OutputSettings(public_url="https://flux.example", max_age_s=600))
TOKEN = {"Authorization": "Bearer secret"}


async def request(app: AppUnderTest, method: str, path: str, **options: Any) -> httpx.Response:
    async with app.http as client:
        return await client.request(method, path, **options)


async def predict(app: AppUnderTest, **inputs: Any) -> dict[str, Any]:
    body = {"input": {"prompt": "a cat", **inputs}}
    response = await request(app, "POST", "/v1/predictions", json=body, headers={"Prefer": "wait", **TOKEN})
    return dict(response.json())


async def output_path(app: AppUnderTest) -> str:
    """The path of a signed link."""
    url: str = (await predict(app))["output"][0]
    return urlsplit(url).path


def without_link(path: str) -> str:
    return path[path.index("/outputs/") :]


async def test_output_url_serves_the_image() -> None:
    app = make_app(FakePool(ONE_IMAGE), SETTINGS)
    path = await output_path(app)
    assert path.endswith("/out-0.webp")
    file = await request(app, "GET", path)
    assert (file.status_code, file.content) == (200, WEBP)
    assert file.headers["Content-Type"] == "image/webp"
    assert file.headers["Content-Length"] == str(len(WEBP))
    assert file.headers["Content-Disposition"].startswith("inline")
    assert "out-0.webp" in file.headers["Content-Disposition"]
    assert file.headers["Cache-Control"] == "private, max-age=600, immutable"
    assert file.headers["X-Content-Type-Options"] == "nosniff"


async def test_link_needs_no_token_and_the_path_alone_does() -> None:
    app = make_app(FakePool(ONE_IMAGE), SETTINGS, token="secret")
    path = await output_path(app)
    assert (await request(app, "GET", path)).content == WEBP
    assert (await request(app, "GET", without_link(path))).status_code == 401
    assert (await request(app, "GET", without_link(path), headers=TOKEN)).content == WEBP


async def test_forged_link_is_refused() -> None:
    app = make_app(FakePool(ONE_IMAGE), SETTINGS, token="secret")
    path, other = await output_path(app), await output_path(app)
    ticket = path.split("/")[2]
    paths = (
        path.replace("/links/", "/links/1"),
        path.replace(ticket, "x"),
        path.replace(ticket, ticket[:-1] + ("a" if ticket[-1] != "a" else "b")),
        f"/links/{ticket}{without_link(other)}",
    )
    for forged in paths:
        refused = await request(app, "GET", forged)
        assert (refused.status_code, refused.content == WEBP) == (403, False)
        assert "link" in refused.json()["detail"]
    assert (await request(app, "GET", f"/links/{ticket}/outputs/x/1/y")).status_code == 404


async def test_expired_link_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_app(FakePool(ONE_IMAGE), SETTINGS)
    path = await output_path(app)
    ticket = path.split("/")[2]
    expiry_s = int(ticket.partition("-")[0])
    monkeypatch.setattr(app.links, "_now", lambda: expiry_s - 1)
    assert (await request(app, "GET", path)).status_code == 200
    monkeypatch.setattr(app.links, "_now", lambda: expiry_s)
    assert (await request(app, "GET", path)).status_code == 403


async def test_link_of_one_process_is_valid_in_another() -> None:
    first = make_app(FakePool(ONE_IMAGE), SETTINGS, token="secret")
    second = make_app(FakePool(ONE_IMAGE), SETTINGS, token="secret", state=first.state)
    assert (await request(second, "GET", await output_path(first))).content == WEBP


async def test_link_is_an_input_image_of_any_process() -> None:
    pool = FakePool((Started(), ImageFinished(0, png(200, 100)), DONE))
    first = make_app(pool, SETTINGS, token="secret")
    [url] = (await predict(first))["output"]
    second = make_app(pool, SETTINGS, token="secret", state=first.state)
    assert (await predict(second, image=url))["status"] == "succeeded"
    assert pool.calls[1][0].size == (208, 96)


@pytest.mark.parametrize(
    ("headers", "status", "content"),
    [
        ({"Range": "bytes=0-3"}, 206, WEBP[:4]),
        ({"Range": "bytes=-4"}, 206, WEBP[-4:]),
        ({"Range": "bytes=100000000-"}, 416, b""),
        ({"Range": "bytes=0-1,3-4"}, 200, WEBP),
        ({"Range": "bytes=0-3", "If-Range": '"other"'}, 200, WEBP),
        ({"If-None-Match": '"other"'}, 200, WEBP),
    ],
)
async def test_ranges_are_served(headers: dict[str, str], status: int, content: bytes) -> None:
    app = make_app(FakePool(ONE_IMAGE), SETTINGS)
    path = await output_path(app)
    response = await request(app, "GET", path, headers=headers)
    assert (response.status_code, response.content) == (status, content)
    if status == 206:
        assert response.headers["Content-Range"].endswith(f"/{len(WEBP)}")
    if status == 416:
        assert response.headers["Content-Range"] == f"bytes */{len(WEBP)}"


async def test_entity_tag_saves_a_download() -> None:
    app = make_app(FakePool(ONE_IMAGE), SETTINGS)
    path = await output_path(app)
    etag = (await request(app, "GET", path)).headers["ETag"]
    again = await request(app, "GET", path, headers={"If-None-Match": etag})
    assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", etag)
    part = await request(app, "GET", path, headers={"Range": "bytes=0-3", "If-Range": etag})
    assert part.status_code == 206


async def test_head_has_the_headers_of_get() -> None:
    app = make_app(FakePool(ONE_IMAGE), SETTINGS)
    path = await output_path(app)
    read, head = [await request(app, method, path) for method in ("GET", "HEAD")]
    assert (head.status_code, head.content) == (200, b"")
    for name in ("Content-Type", "Content-Length", "ETag", "Content-Disposition", "Accept-Ranges"):
        assert head.headers[name] == read.headers[name]


async def test_removed_image_is_not_found() -> None:
    app = make_app(FakePool(ONE_IMAGE), SETTINGS)
    path = await output_path(app)
    shutil.rmtree(app.state / "outputs")
    assert (await request(app, "GET", path)).status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "/outputs/unknown/out-0.webp",
        "/outputs/unknown/1/out-0.webp",
        "/outputs/../etc/passwd",
        "/outputs/x/..%2f..%2fetc%2fpasswd",
        "/outputs/x/",
        "/links/x/outputs/x/..%2f..%2fetc%2fpasswd",
    ],
)
async def test_other_paths_are_not_found(path: str) -> None:
    missing = await request(make_app(FakePool(ONE_IMAGE), SETTINGS), "GET", path)
    assert missing.status_code == 404
    assert missing.json()["detail"]
