"""Clients that never end their requests hold up nobody; tokens of a running service; a lost ingress is 503."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from serve.access.token import parse_token
from serve.api.connection_limits import MAX_HEAD_BYTES
from serve.launch.subprocess_service import LocalService, local_service
from serve.launch.tokens_command import manage_tokens
from tests.cluster.client import SMALL, until
from tests.open_files import allow_sockets

ENDLESS_BODIES = 1300
BODY_TIMEOUT_S = 10
ANSWER_S = 20


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    state = tmp_path_factory.mktemp("state")
    assignments = (f"state_folder={state}", "require_token=true", f"body_timeout_s={BODY_TIMEOUT_S}")
    return tuple(part for each in assignments for part in ("--set", each))


@pytest.fixture(scope="module")
def service(options: tuple[str, ...], environment: dict[str, str]) -> Iterator[LocalService]:
    with local_service(*options, environment=environment) as running_service:
        yield running_service


@pytest.fixture
def token(options: tuple[str, ...], service: LocalService, capsys: pytest.CaptureFixture[str]) -> str:
    assert manage_tokens(["create", "a test", *options]) == 0
    return capsys.readouterr().out.strip()


@pytest.fixture
def client(service: LocalService, token: str) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=service.url, headers=headers, timeout=ANSWER_S) as client:
        yield client


async def endless_post(url: str, token: str) -> bytes:
    """Sends a part of a body, and returns what the service answers before it closes the connection."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    head = (
        f"POST /v1/predictions HTTP/1.1\r\nHost: flux\r\nAuthorization: Bearer {token}\r\nContent-Length: 1000\r\n\r\n"
    )
    writer.write(head.encode() + b"{")
    try:
        return await reader.read()
    finally:
        writer.close()


async def answers_beside_endless_posts(url: str, token: str) -> tuple[list[int], list[bytes]]:
    """The statuses of ordinary requests while bodies do not end, and the answers to those."""
    endless = [asyncio.create_task(endless_post(url, token)) for _ in range(ENDLESS_BODIES)]
    headers = {"Authorization": f"Bearer {token}"}
    statuses = []
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=ANSWER_S) as client:
        await asyncio.sleep(1)  # Most of the connections are open.
        assert not all(task.done() for task in endless)
        for _ in range(3):
            created = await client.post("/v1/predictions", json={"input": {"prompt": "a boat", **SMALL}})
            read = await client.get(f"/v1/predictions/{created.json()['id']}")
            statuses += [created.status_code, read.status_code]
    async with asyncio.timeout(BODY_TIMEOUT_S + 60):
        return statuses, await asyncio.gather(*endless)


def test_endless_bodies_hold_up_nobody(service: LocalService, token: str) -> None:
    allow_sockets(ENDLESS_BODIES)
    statuses, endless = asyncio.run(answers_beside_endless_posts(service.url, token))
    assert statuses == [201, 200] * 3
    assert all(b" 408 " in answer for answer in endless)


async def response_to(url: str, sent: bytes) -> bytes:
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(sent)
    async with asyncio.timeout(ANSWER_S):
        response = await reader.read()
    writer.close()
    return response


def test_large_head_is_rejected_with_431(service: LocalService) -> None:
    assert b" 431 " in asyncio.run(response_to(service.url, b"GET / HTTP/1.1\r\nX-Long: " + b"x" * MAX_HEAD_BYTES))


def test_token_works_beside_a_running_service_until_it_is_revoked(
    client: httpx.Client, token: str, options: tuple[str, ...]
) -> None:
    parsed = parse_token(token)
    assert parsed is not None
    assert client.get("/v1/predictions").status_code == 200
    assert manage_tokens(["revoke", parsed[0], *options]) == 0
    until(lambda: client.get("/v1/predictions").status_code, lambda status: status == 401, 15)


def ingress_of(service: LocalService) -> psutil.Process:
    children = psutil.Process(service.process_id).children(recursive=True)
    (process,) = (each for each in children if "flux:ingress" in " ".join(each.cmdline()))
    return process


def test_lost_ingress_is_503_for_a_waiting_client(service: LocalService, client: httpx.Client) -> None:
    inputs = {"prompt": "a boat", **SMALL, "megapixels": "1", "num_inference_steps": 50}
    client.timeout = httpx.Timeout(120)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.post, "/v1/predictions", json={"input": inputs}, headers={"Prefer": "wait"})
        listed = until(lambda: client.get("/v1/predictions").json()["results"], bool)
        ingress_of(service).kill()
        response = waiting.result()
    assert response.status_code == 503
    assert response.headers["Content-Type"] == "application/problem+json"
    assert int(response.headers["Retry-After"]) >= 1
    path = f"/v1/predictions/{listed[0]['id']}"
    until(lambda: client.get(path).status_code, lambda status: status == 200, 60)
    client.post(f"{path}/cancel").raise_for_status()
