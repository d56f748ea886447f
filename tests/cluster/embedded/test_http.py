"""HTTP through Ray Serve's proxy: methods, headers, encodings and paths arrive, and responses return unchanged."""

import gzip
import http.client
import json
from urllib.parse import urlsplit

import pytest

from serve.launch.subprocess_service import LocalService
from tests.cluster.client import SMALL, connect

SEED = "fofr/flux-handwriting-and-sketch"


@pytest.mark.parametrize("path", ["/v1/models", "/v1/predictions/none", "/v1/nothing", "/predictions", "/health-check"])
def test_response_has_one_request_id(service: LocalService, path: str) -> None:
    with connect(service) as client:
        assert len(client.get(path).headers.get_list("X-Request-ID")) == 1
        response = client.get(path, headers={"X-Request-ID": "mine"})
        assert response.headers.get_list("X-Request-ID") == ["mine"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/v1/predictions", "GET, HEAD, POST"),
        ("PUT", "/v1/models", "GET, HEAD, POST, QUERY"),
        ("POST", f"/v1/models/{SEED}", "DELETE, GET, HEAD, PATCH"),
        ("GET", "/predictions", "POST"),
    ],
)
def test_wrong_method_is_rejected_with_all_allowed_ones(
    service: LocalService, method: str, path: str, allowed: str
) -> None:
    with connect(service) as client:
        response = client.request(method, path)
    assert (response.status_code, response.headers.get_list("Allow")) == (405, [allowed])


def test_query_is_a_method(service: LocalService) -> None:
    with connect(service) as client:
        response = client.request("QUERY", "/v1/models", content=b"handwriting", headers={"Content-Type": "text/plain"})
    assert response.status_code == 200
    assert [model["name"] for model in response.json()["results"]] == ["flux-handwriting-and-sketch"]


def test_encoded_slash_names_a_model_in_one_segment(service: LocalService) -> None:
    with connect(service) as client:
        encoded = client.get("/v1/models/fofr%2Fflux-handwriting-and-sketch").json()
        plain = client.get(f"/v1/models/{SEED}").json()
    assert encoded.keys() == {"id", "object", "created", "owned_by"}
    assert (plain["id"], plain["owner"]) == (encoded["id"], "fofr")


@pytest.mark.parametrize("path", ["/", "/health-check", "/readyz", "/openapi.json", "/v1/models", "/v1/hardware"])
def test_head_responds_as_get_does_without_a_body(service: LocalService, path: str) -> None:
    with connect(service) as client:
        head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers["Content-Length"] == get.headers["Content-Length"]


def test_trailing_slash_is_not_redirected(service: LocalService) -> None:
    with connect(service) as client:
        response = client.get("/v1/models/", headers={"Host": "evil.example"})
    assert response.status_code == 404
    assert "Location" not in response.headers


def test_bodies_are_compressed_in_both_directions(service: LocalService) -> None:
    address = urlsplit(service.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    body = gzip.compress(json.dumps({"input": {**SMALL, "prompt": "a cat", "model": "dev"}}).encode())
    headers = {"Content-Encoding": "gzip", "Accept-Encoding": "gzip"}
    try:
        connection.request("POST", "/v1/predictions", body=body, headers=headers)
        created = connection.getresponse()
        created.read()
        connection.request("GET", "/v1/models", headers={"Accept-Encoding": "gzip"})
        listed = connection.getresponse()
        content = listed.read()
    finally:
        connection.close()
    assert created.status == 201
    assert listed.headers["Content-Encoding"] == "gzip"
    assert json.loads(gzip.decompress(content))["results"]


def test_bomb_is_rejected_with_413(service: LocalService) -> None:
    with connect(service) as client:
        response = client.post(
            "/v1/predictions", content=gzip.compress(bytes(200 * 2**20)), headers={"Content-Encoding": "gzip"}
        )
    assert response.status_code == 413


def test_security_headers_are_on_every_response(service: LocalService) -> None:
    with connect(service) as client:
        for path in ("/v1/models", "/v1/nothing"):
            assert client.get(path).headers.get_list("X-Content-Type-Options") == ["nosniff"]
