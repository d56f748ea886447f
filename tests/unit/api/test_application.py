"""What the application does for every request: security headers, CORS, compression, and no redirects."""

import gzip
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from serve.api.application import http_application
from serve.settings import OutputSettings, Settings
from tests.app_factory import AppUnderTest, make_app
from tests.fakes import ONE_IMAGE, WEBP, FakePool

CAT = {"prompt": "a cat", "seed": 7, "num_inference_steps": 2}
ORIGIN = "https://app.example"
PREFLIGHT = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,prefer,x-stainless-lang",
}
TEXT = "a" * 2000


async def request(app: AppUnderTest, method: str, path: str, **arguments: Any) -> httpx.Response:
    async with app.http as client:
        return await client.request(method, path, **arguments)


def app_with_cors(*origins: str) -> AppUnderTest:
    return make_app(FakePool(ONE_IMAGE), Settings(cors_origins=origins), token="secret")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health-check", 200),
        ("GET", "/v1/models", 401),
        ("GET", "/", 401),
        ("OPTIONS", "/v1/predictions", 200),
    ],
)
async def test_every_response_has_security_headers(method: str, path: str, status: int) -> None:
    response = await request(app_with_cors(ORIGIN), method, path, headers=PREFLIGHT)
    assert response.status_code == status
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["X-Frame-Options"] == "DENY"
    assert response.headers["Referrer-Policy"] == "no-referrer"


async def test_security_header_of_an_endpoint_is_not_repeated() -> None:
    app = make_app(FakePool(ONE_IMAGE), Settings(outputs=OutputSettings(public_url="https://flux.example")))
    created = await request(app, "POST", "/v1/predictions", json={"input": CAT}, headers={"Prefer": "wait"})
    image = await request(app, "GET", created.json()["output"][0])
    assert image.headers.get_list("X-Content-Type-Options") == ["nosniff"]


@pytest.mark.parametrize("origins", [(ORIGIN,), ("https://other.example", ORIGIN), ("*",)])
async def test_preflight_request_needs_no_token(origins: tuple[str, ...]) -> None:
    response = await request(app_with_cors(*origins), "OPTIONS", "/v1/predictions", headers=PREFLIGHT)
    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Origin"] in (ORIGIN, "*")
    assert "POST" in response.headers["Access-Control-Allow-Methods"]
    assert "authorization" in response.headers["Access-Control-Allow-Headers"]


async def test_responses_and_errors_allow_the_origin_and_expose_headers() -> None:
    app, token = app_with_cors(ORIGIN), {"Authorization": "Bearer secret"}
    for headers, status in ((token, 200), ({}, 401)):
        response = await request(app, "GET", "/v1/models", headers={**headers, "Origin": ORIGIN})
        assert (response.status_code, response.headers["Access-Control-Allow-Origin"]) == (status, ORIGIN)
        assert "Retry-After" in response.headers["Access-Control-Expose-Headers"]


async def test_other_origins_are_not_allowed() -> None:
    headers = {**PREFLIGHT, "Origin": "https://evil.example"}
    response = await request(app_with_cors(ORIGIN), "OPTIONS", "/v1/predictions", headers=headers)
    assert response.status_code == 400
    assert "Access-Control-Allow-Origin" not in response.headers


async def test_no_origin_is_allowed_by_default() -> None:
    app = make_app(FakePool(ONE_IMAGE))
    response = await request(app, "GET", "/v1/models", headers={"Origin": ORIGIN})
    assert "Access-Control-Allow-Origin" not in response.headers
    assert (await request(app, "OPTIONS", "/v1/models", headers=PREFLIGHT)).status_code == 405


@pytest.mark.parametrize("path", ["/v1/models/", "/v1/predictions/", "/health-check/", "/predictions/"])
async def test_trailing_slash_is_not_redirected_to_the_host_header(path: str) -> None:
    response = await request(make_app(FakePool(ONE_IMAGE)), "GET", path, headers={"Host": "evil.example"})
    assert response.status_code == 404
    assert "Location" not in response.headers
    assert path in response.json()["detail"]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/nothing" + "x" * 2000])
async def test_json_is_compressed_for_clients_that_accept_it(path: str) -> None:
    app = make_app(FakePool(ONE_IMAGE))
    plain = await request(app, "GET", path, headers={"Accept-Encoding": "identity"})
    compressed = await request(app, "GET", path, headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in plain.headers
    assert compressed.json().keys() == plain.json().keys()
    if path == "/v1/models":
        assert compressed.headers["Content-Encoding"] == "gzip"
        assert int(compressed.headers["Content-Length"]) < len(plain.content) / 2


async def test_small_responses_are_not_compressed() -> None:
    response = await request(make_app(FakePool(ONE_IMAGE)), "GET", "/health-check", headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in response.headers


@pytest.mark.parametrize(
    ("media_type", "compressed"),
    [
        ("application/json", True),
        ("application/problem+json", True),
        ("text/plain", True),
        ("image/webp", False),
        ("image/bmp", False),
        ("application/octet-stream", False),
        ("text/event-stream", False),
    ],
)
async def test_images_files_and_event_streams_are_not_compressed(media_type: str, compressed: bool) -> None:
    async def endpoint(request: Request) -> Response:
        return Response(TEXT, media_type=media_type)

    async def streaming_endpoint(request: Request) -> Response:
        async def pieces() -> AsyncIterator[str]:
            yield TEXT
            yield TEXT

        return StreamingResponse(pieces(), media_type=media_type)

    app = http_application([Route("/whole", endpoint), Route("/stream", streaming_endpoint)], Settings(), None)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
        for path, body in (("/whole", TEXT), ("/stream", TEXT * 2)):
            response = await client.get(path, headers={"Accept-Encoding": "gzip"})
            assert response.text == body
            assert ("Content-Encoding" in response.headers) is compressed


@pytest.mark.parametrize("path", ["/v1/predictions", "/predictions"])
async def test_data_uris_of_a_prediction_are_not_compressed(path: str) -> None:
    app, headers = make_app(FakePool(ONE_IMAGE)), {"Accept-Encoding": "gzip", "Prefer": "wait"}
    created = await request(app, "POST", path, json={"input": {**CAT, "prompt": TEXT}}, headers=headers)
    read = await request(app, "GET", f"/v1/predictions/{created.json()['id']}", headers=headers)
    listed = await request(app, "GET", "/v1/predictions", headers=headers)
    assert created.json()["output"][0].startswith("data:")
    assert all("Content-Encoding" not in response.headers for response in (created, read))
    assert listed.headers["Content-Encoding"] == "gzip"


async def test_image_of_a_prediction_is_not_compressed() -> None:
    app = make_app(
        FakePool(ONE_IMAGE), Settings(outputs=OutputSettings(public_url="https://flux.example", delivery="url"))
    )
    created = await request(app, "POST", "/v1/predictions", json={"input": CAT}, headers={"Prefer": "wait"})
    image = await request(app, "GET", created.json()["output"][0], headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in image.headers
    assert image.content == WEBP


async def test_head_responds_as_get_does() -> None:
    app = make_app(FakePool(ONE_IMAGE))
    created = await app.create(CAT)
    await app.service.wait(created.id)
    values = {"owner": "fofr", "name": "flux-handwriting-and-sketch", "version": "d592f697", "slug": "text-to-image"}
    values |= {"prediction_id": created.id, "model_id": "flux-schnell"}
    routes = [route for route in app.app.routes if isinstance(route, Route) and "GET" in (route.methods or ())]
    for route in routes:
        if route.path.startswith(("/v1/files/", "/outputs", "/links", "/v1/deployments/", "/playground/")):
            continue
        path = route.path.format(**values) + ("?query=flux" if route.path == "/v1/search" else "")
        get, head = await request(app, "GET", path), await request(app, "HEAD", path)
        assert (path, head.status_code) == (path, 200)
        assert head.headers["Content-Type"] == get.headers["Content-Type"]


async def test_compressed_body_is_read() -> None:
    async def endpoint(request: Request) -> Response:
        return JSONResponse({"body": (await request.body()).decode(), "length": request.headers.get("content-length")})

    app = http_application([Route("/", endpoint, methods=["POST"])], Settings(), None)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
        response = await client.post("/", content=gzip.compress(b"a cat"), headers={"Content-Encoding": "gzip"})
    assert response.json() == {"body": "a cat", "length": None}
