"""Uploading files, called in this process: the file object, bad bodies, limits, downloads, and use as inputs."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import pytest

from serve.events import ImageFinished, Started
from serve.lora.reference import Reference
from serve.lora.resolved_lora import ResolvedLora
from serve.settings import FileSettings, OutputSettings, Settings
from tests.app_factory import AppUnderTest, make_app
from tests.fakes import DONE, ONE_IMAGE, FakeLoraCache, FakePool
from tests.images import data_uri, png

PROBLEM = "application/problem+json"
IMAGE = png(200, 100)
WAIT = {"Prefer": "wait=5"}
TOKEN = {"Authorization": "Bearer secret"}
Part = tuple[str | None, bytes | str] | tuple[str | None, bytes | str, str]


def app_with(**limits: Any) -> AppUnderTest:
    return make_app(FakePool(ONE_IMAGE), Settings(files=FileSettings.model_validate(limits)))


async def upload(app: AppUnderTest, *parts: tuple[str, Part]) -> httpx.Response:
    async with app.http as client:
        return await client.post("/v1/files", files=list(parts))


async def request(app: AppUnderTest, method: str, path: str, **options: Any) -> httpx.Response:
    async with app.http as client:
        return await client.request(method, path, **options)


def files_on_disk(app: AppUnderTest) -> int:
    return len([path for path in (app.state / "files").rglob("*") if path.is_file()])


async def upload_image(app: AppUnderTest, content: bytes = IMAGE) -> dict[str, Any]:
    created = await upload(app, ("content", ("cat.png", content, "image/png")))
    assert created.status_code == 201, created.text
    return dict(created.json())


async def test_file_object_has_every_field() -> None:
    app = app_with()
    created = await upload(
        app,
        ("content", ("cat.png", IMAGE, "image/png")),
        ("metadata", (None, json.dumps({"album": "café", "n": [1]}), "application/json")),
    )
    assert created.status_code == 201
    file = created.json()
    assert (file["name"], file["content_type"], file["size"]) == ("cat.png", "image/png", len(IMAGE))
    assert file["checksums"] == {"sha256": hashlib.sha256(IMAGE).hexdigest()}
    assert file["metadata"] == {"album": "café", "n": [1]}
    assert file["etag"]
    assert file["created_at"].endswith("Z")
    assert file["created_at"] < file["expires_at"]
    url = f"http://127.0.0.1:8000/v1/files/{file['id']}"
    assert file["urls"]["get"] == url
    assert file["urls"]["download"].endswith(f"/v1/files/{file['id']}/download")
    assert (await request(app, "GET", f"/v1/files/{file['id']}")).json() == file


async def test_filename_and_type_have_parts_of_their_own() -> None:
    named = await upload(
        app_with(),
        ("content", ("blob", b"x", "text/plain")),
        ("filename", (None, "cat.webp")),
        ("type", (None, "image/webp")),
        ("metadata", ("blob", b"{}", "application/json")),
    )
    assert (named.json()["name"], named.json()["content_type"]) == ("cat.webp", "image/webp")


async def test_files_are_listed_in_pages_and_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.api.files.PAGE_SIZE", 2)
    app = app_with()
    ids = [(await upload_image(app))["id"] for _ in range(3)]
    first = (await request(app, "GET", "/v1/files")).json()
    assert [file["id"] for file in first["results"]] == ids[:0:-1]
    second = (await request(app, "GET", first["next"])).json()
    assert ([file["id"] for file in second["results"]], second["next"]) == (ids[:1], None)
    deleted = await request(app, "DELETE", f"/v1/files/{ids[0]}")
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert files_on_disk(app) == 2
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/download")):
        missing = await request(app, method, f"/v1/files/{ids[0]}{path}")
        assert (missing.status_code, missing.headers["Content-Type"]) == (404, PROBLEM)
        assert "removed" in missing.json()["detail"]


@pytest.mark.parametrize("content", [b"", b"x", b"large" * 1_000_000])
async def test_download_returns_the_content(content: bytes) -> None:
    app = app_with()
    file = await upload_image(app, content)
    downloaded = await request(app, "GET", f"/v1/files/{file['id']}/download")
    assert downloaded.content == content
    assert downloaded.headers["Content-Type"] == "image/png"


@pytest.mark.parametrize(
    "content_type", ["text/html", "image/svg+xml", "text/html; charset=utf-8", "x", "a/b\u00ff", "application/pdf"]
)
async def test_download_is_never_displayed_by_a_browser(content_type: str) -> None:
    app = app_with()
    file = (await upload(app, ("content", ("x.html", b"<script>", content_type)))).json()
    downloaded = await request(app, "GET", f"/v1/files/{file['id']}/download")
    assert downloaded.headers["Content-Type"] == "application/octet-stream"
    assert downloaded.headers["Content-Disposition"].startswith("attachment")
    assert downloaded.headers["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in downloaded.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("filename", "name", "disposition"),
    [
        ("../../etc/passwd", "passwd", 'attachment; filename="passwd"'),
        ("C:\\cats\\cat.png", "cat.png", 'attachment; filename="cat.png"'),
        ("кот.png", "кот.png", "attachment; filename*=utf-8''%D0%BA%D0%BE%D1%82.png"),
        ('a";\r\nSet-Cookie: x=1', None, None),
        ("x" * 400 + ".png", "x" * 251 + ".png", None),
        ("", "file", 'attachment; filename="file"'),
        ("..", "..", None),
        ("a/", "file", None),
        ("\ud800", None, None),
    ],
)
async def test_file_name_is_data(filename: str, name: str | None, disposition: str | None) -> None:
    app = app_with()
    raw = filename.encode("utf-8", "surrogatepass")
    created = await upload(app, ("filename", (None, raw)), ("content", ("blob", b"x")))
    file = created.json()
    assert created.status_code == 201
    if filename:
        assert name in (None, file["name"])
    else:
        assert file["name"] == "blob"
    downloaded = await request(app, "GET", f"/v1/files/{file['id']}/download")
    assert downloaded.status_code == 200
    assert "Set-Cookie" not in downloaded.headers
    if disposition and filename:
        assert downloaded.headers["Content-Disposition"] == disposition


@pytest.mark.parametrize(
    ("parts", "invalid"),
    [
        ([("metadata", (None, "{}"))], ["content"]),
        ([("content", (None, "text"))], ["content"]),
        ([("content", ("a", b"x")), ("content", ("b", b"x"))], ["content"]),
        ([("content", ("a", b"x")), ("owner", (None, "me"))], ["owner"]),
        ([("content", ("a", b"x")), ("metadata", (None, "{"))], ["metadata"]),
        ([("content", ("a", b"x")), ("metadata", (None, "[]"))], ["metadata"]),
        ([("content", ("a", b"x")), ("metadata", (None, '{"a": NaN}'))], ["metadata"]),
        ([("content", ("a", b"x")), ("metadata", (None, '{"a": "\\ud800"}'))], ["metadata"]),
        ([("content", ("a", b"x")), ("metadata", (None, '{"a":' + "[" * 60_000))], ["metadata"]),
        ([("content", ("a", b"x")), ("metadata", (None, json.dumps({"a": "x" * 70_000})))], ["metadata"]),
        ([("content", ("a", b"x")), ("metadata", ("blob", json.dumps({"a": "x" * 2_000_000}).encode()))], ["metadata"]),
    ],
)
async def test_invalid_parts_are_reported(parts: list[tuple[str, Part]], invalid: list[str]) -> None:
    app = app_with(max_file_bytes=4_000_000)
    response = await upload(app, *parts)
    assert (response.status_code, response.headers["Content-Type"]) == (422, PROBLEM)
    assert [error["field"] for error in response.json()["invalid_fields"]] == invalid
    assert files_on_disk(app) == 0


MANY_PARTS = b"".join(b'--b\r\nContent-Disposition: form-data; name="x%d"\r\n\r\n\r\n' % n for n in range(5000))


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{}"),
        ("application/x-www-form-urlencoded", b"content=x"),
        ("multipart/form-data", b"--b\r\n"),
        ("multipart/form-data; boundary=b", b"nothing like that"),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n"),
        ("multipart/form-data; boundary=b", MANY_PARTS + b"--b--\r\n"),
        ("", b"x"),
    ],
)
async def test_malformed_body_is_rejected_with_400(content_type: str, body: bytes) -> None:
    app = app_with()
    response = await request(app, "POST", "/v1/files", content=body, headers={"Content-Type": content_type})
    assert (response.status_code, response.headers["Content-Type"]) == (400, PROBLEM)
    assert "multipart" in response.json()["detail"]
    assert files_on_disk(app) == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # from a file that Starlette leaves open
async def test_body_without_its_last_boundary_has_no_file() -> None:
    app = app_with()
    body = b'--b\r\nContent-Disposition: form-data; name="content"; filename="a"\r\n\r\nxyz'
    response = await request(app, "POST", "/v1/files", content=body, headers=MULTIPART)
    assert response.status_code == 422
    assert files_on_disk(app) == 0


async def pieces(count: int) -> AsyncIterator[bytes]:
    yield b'--b\r\nContent-Disposition: form-data; name="content"; filename="a"\r\n\r\n'
    for _ in range(count):
        yield b"x" * 100_000
    yield b"\r\n--b--\r\n"


MULTIPART = {"Content-Type": "multipart/form-data; boundary=b"}


@pytest.mark.parametrize("count", [2, 30])
async def test_oversized_file_is_rejected_with_413(count: int) -> None:
    app = app_with(max_file_bytes=100_000)
    chunked = await request(app, "POST", "/v1/files", content=pieces(count), headers=MULTIPART)
    with_length = await upload(app, ("content", ("a", b"x" * count * 100_000)))
    for response in (chunked, with_length):
        assert (response.status_code, response.headers["Content-Type"]) == (413, PROBLEM)
        assert "100000" in response.json()["detail"]
    assert files_on_disk(app) == 0


async def test_oversized_body_is_not_read_to_its_end() -> None:
    sent = 0

    async def counted_pieces() -> AsyncIterator[bytes]:
        nonlocal sent
        async for piece in pieces(1000):
            sent += len(piece)
            yield piece

    response = await request(
        app_with(max_file_bytes=100_000), "POST", "/v1/files", content=counted_pieces(), headers=MULTIPART
    )
    assert response.status_code == 413
    assert sent < 2_000_000


async def test_uploads_that_take_all_the_space_are_rejected_with_507() -> None:
    app = app_with(max_file_bytes=150_000, max_bytes=200_000)
    async with app.files.upload() as other:
        await other.grow(150_000)
        response = await request(app, "POST", "/v1/files", content=pieces(1), headers=MULTIPART)
    assert (response.status_code, response.headers["Content-Type"]) == (507, PROBLEM)
    accepted = await request(app, "POST", "/v1/files", content=pieces(1), headers=MULTIPART)
    assert accepted.status_code == 201


async def test_disconnect_during_an_upload_leaves_nothing() -> None:
    app = app_with(max_file_bytes=3_000_000, max_bytes=3_000_000)
    first_received = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if not first_received.is_set():
            first_received.set()
            head = b'--b\r\nContent-Disposition: form-data; name="content"; filename="a"\r\n\r\n'
            return {"type": "http.request", "body": head + b"x" * 2_000_000, "more_body": True}
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    headers = [(b"content-type", b"multipart/form-data; boundary=b")]
    scope = {"type": "http", "method": "POST", "path": "/v1/files", "headers": headers, "query_string": b""}
    await app.app(scope, receive, send)
    assert files_on_disk(app) == 0
    async with app.files.upload() as upload_of_all_space:
        await upload_of_all_space.grow(3_000_000)


async def test_stalled_upload_is_rejected_with_408_and_leaves_nothing() -> None:
    app = app_with(max_file_bytes=3_000_000, max_bytes=3_000_000, upload_timeout_s=0.2)

    async def stalled_pieces() -> AsyncIterator[bytes]:
        async for piece in pieces(20):
            yield piece
            if len(piece) == 100_000:
                await asyncio.Event().wait()

    response = await request(app, "POST", "/v1/files", content=stalled_pieces(), headers=MULTIPART)
    assert (response.status_code, response.headers["Content-Type"]) == (408, PROBLEM)
    assert "0.2" in response.json()["detail"]
    assert files_on_disk(app) == 0
    async with app.files.upload() as upload_of_all_space:
        await upload_of_all_space.grow(3_000_000)


@pytest.mark.parametrize(
    ("if_none_match", "status"),
    [('"{etag}"', 304), ('W/"{etag}"', 304), ('"other", "{etag}"', 304), ("*", 304), ('"other"', 200), ("{etag}", 200)],
)
async def test_download_that_the_client_has_is_not_sent_again(if_none_match: str, status: int) -> None:
    app = app_with()
    file = await upload_image(app)
    path, headers = f"/v1/files/{file['id']}/download", {"If-None-Match": if_none_match.format(etag=file["etag"])}
    response = await request(app, "GET", path, headers=headers)
    assert (response.status_code, response.headers["ETag"]) == (status, f'"{file["etag"]}"')
    assert response.content == (b"" if status == 304 else IMAGE)


async def test_file_whose_content_is_missing_on_disk_is_not_found() -> None:
    app = app_with()
    file = await upload_image(app)
    (app.state / "files" / file["id"] / "content").unlink()
    missing = await request(app, "GET", f"/v1/files/{file['id']}/download")
    unknown = await request(app, "GET", "/v1/files/unknown/download")
    assert (missing.status_code, unknown.status_code) == (404, 404)
    assert missing.json()["detail"].replace(file["id"], "unknown") == unknown.json()["detail"]


async def predict(app: AppUnderTest, **inputs: Any) -> httpx.Response:
    body = {"input": {"prompt": "a cat", "num_inference_steps": 2, **inputs}}
    return await request(app, "POST", "/v1/predictions", json=body, headers={**WAIT, **TOKEN})


@pytest.mark.parametrize("suffix", ["", "/", "/download", "/download?expiry=1&signature=x"])
@pytest.mark.parametrize(
    "base", ["http://127.0.0.1:8000", "https://other.example/prefix", "http://127.0.0.1:8000/links/x"]
)
async def test_url_of_a_file_is_an_input_image_also_with_a_token(base: str, suffix: str) -> None:
    pool = FakePool(ONE_IMAGE)
    app = make_app(pool, token="secret")
    created = await request(app, "POST", "/v1/files", files={"content": ("a.png", IMAGE)}, headers=TOKEN)
    url = f"{base}/v1/files/{created.json()['id']}{suffix}"
    prediction = (await predict(app, image=url, mask=url)).json()
    assert prediction["status"] == "succeeded", prediction
    [(plan, image, mask)] = pool.calls
    assert plan.size == (208, 96)
    assert image is not None
    assert mask is not None


async def test_every_files_path_requires_the_token() -> None:
    app = make_app(FakePool(ONE_IMAGE), token="secret")
    created = await request(app, "POST", "/v1/files", files={"content": ("a.png", IMAGE)}, headers=TOKEN)
    path = f"/v1/files/{created.json()['id']}"
    for method, each in (("GET", path), ("GET", f"{path}/download"), ("DELETE", path), ("POST", "/v1/files")):
        assert (await request(app, method, each)).status_code == 401
    assert (await request(app, "GET", f"{path}/download", headers=TOKEN)).content == IMAGE


async def test_download_link_needs_no_token() -> None:
    app = make_app(FakePool(ONE_IMAGE), token="secret")
    created = await request(app, "POST", "/v1/files", files={"content": ("a.png", IMAGE)}, headers=TOKEN)
    url = created.json()["urls"]["download"]
    assert (await request(app, "GET", url)).content == IMAGE
    for forged in (url.replace("/links/", "/links/1"), url.replace("/files/", "/files/0")):
        refused = await request(app, "GET", forged)
        assert refused.status_code == 403
        assert "link" in refused.json()["detail"]
    for method in ("DELETE", "POST"):
        assert (await request(app, method, url)).status_code == 405
    for path in (url.replace("/download", ""), url.partition("/v1/")[0], "/links/x/v1/predictions"):
        assert (await request(app, "GET", path)).status_code == 404


@pytest.mark.parametrize(
    ("header", "status", "span"), [("bytes=2-5", 206, (2, 6)), ("bytes=0-1,3-4", 200, (0, None)), ("", 200, (0, None))]
)
async def test_part_of_a_file_is_downloaded(header: str, status: int, span: tuple[int, int | None]) -> None:
    app = app_with()
    file = await upload_image(app)
    part = await request(app, "GET", f"/v1/files/{file['id']}/download", headers={"Range": header})
    assert (part.status_code, part.content) == (status, IMAGE[slice(*span)])


async def test_file_is_found_by_another_process_and_after_a_restart() -> None:
    first = app_with()
    file = await upload_image(first)
    second = make_app(FakePool(ONE_IMAGE), state=first.state)
    assert (await request(second, "GET", "/v1/files")).json()["results"] == [file]
    assert (await request(second, "GET", f"/v1/files/{file['id']}/download")).content == IMAGE
    assert (await predict(second, image=file["urls"]["get"])).json()["status"] == "succeeded"


async def test_url_of_an_output_is_an_input_image() -> None:
    pool = FakePool((Started(), ImageFinished(0, IMAGE), DONE))
    app = make_app(pool, Settings(outputs=OutputSettings(delivery="url")), token="secret")
    [url] = (await predict(app)).json()["output"]
    assert (await predict(app, image=url)).json()["status"] == "succeeded"
    assert pool.calls[1][0].size == (208, 96)


@pytest.mark.parametrize("field", ["image", "mask", "replicate_weights", "extra_lora"])
async def test_removed_file_is_an_invalid_input(field: str) -> None:
    app = make_app(FakePool(ONE_IMAGE))
    inputs = {"image": data_uri(IMAGE), field: "http://127.0.0.1:8000/v1/files/0123"}
    response = await predict(app, **inputs)
    assert (response.status_code, response.headers["Content-Type"]) == (422, PROBLEM)
    assert [error["field"] for error in response.json()["invalid_fields"]] == [f"input.{field}"]


async def test_image_file_over_the_download_limit_fails_the_prediction() -> None:
    settings = Settings.model_validate({"fetch": {"max_bytes": 100}})
    app = make_app(FakePool(ONE_IMAGE), settings)
    failed = (await predict(app, image=(await upload_image(app))["urls"]["get"])).json()
    assert failed["status"] == "failed"
    assert "100" in failed["error"]


async def test_other_url_with_such_a_path_is_fetched() -> None:
    url = "https://other.example/v1/files/0123"
    failed = (await predict(make_app(FakePool(ONE_IMAGE)), image=url)).json()
    assert url in failed["error"]


async def test_url_of_a_file_is_a_lora_with_the_identity_of_its_content() -> None:
    keys: list[dict[str, str]] = []

    class RecordingCache(FakeLoraCache):
        async def get(self, references: Mapping[str, Reference], *arguments: Any) -> dict[str, ResolvedLora[Any]]:
            keys.append({field: reference.key for field, reference in references.items()})
            return await super().get(references, *arguments)

    app = make_app(FakePool(ONE_IMAGE), loras=RecordingCache())
    first, second = [(await upload_image(app, b"weights")) for _ in range(2)]
    other = await upload_image(app, b"other weights")
    prediction = await predict(app, replicate_weights=first["urls"]["get"], extra_lora=second["urls"]["get"])
    assert prediction.json()["status"] == "succeeded"
    await predict(app, replicate_weights=f" '{first['urls']['get']}' ", extra_lora=other["urls"]["download"])
    await predict(
        app, replicate_weights=f"{first['urls']['get']}#a.safetensors", extra_lora=first["urls"]["get"] + "#x"
    )
    same = keys[0]["replicate_weights"]
    assert keys[0] == {"replicate_weights": same, "extra_lora": same}
    assert keys[1]["replicate_weights"] == same != keys[1]["extra_lora"]
    assert keys[2]["replicate_weights"] != same == keys[2]["extra_lora"]
