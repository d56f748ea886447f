"""What whoever starts the service meets: one clear line when it cannot start, and a clean end."""

import os
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from serve.launch.subprocess_service import ROOT, LocalService, ServiceStartError, free_port, local_service
from tests.cluster.client import connect, until


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "serve", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_busy_port_is_one_line(environment: dict[str, str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = run(environment, "--port", str(taken.getsockname()[1]))
    assert ended.returncode == 1
    assert len(ended.stderr.strip().splitlines()) == 1
    assert "try another --port" in ended.stderr


def test_an_open_door_is_refused(environment: dict[str, str]) -> None:
    ended = run(environment, "--host", "0.0.0.0", "--port", str(free_port()))
    assert ended.returncode == 1
    assert "set FLUX_SERVE_TOKEN" in ended.stderr


@pytest.mark.parametrize(
    ("setting", "said"),
    [("pools.schnell.max_bach=2", "max_bach"), ("nonsense", "KEY=VALUE"), ("max_body_bytes=many", "max_body_bytes")],
)
def test_a_setting_that_does_not_fit_is_named(environment: dict[str, str], setting: str, said: str) -> None:
    ended = run(environment, "--set", setting)
    assert ended.returncode == 1
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_missing_model_fails_the_start_with_one_line_that_says_what_to_do(environment: dict[str, str]) -> None:
    with (
        pytest.raises(ServiceStartError, match=r"start-up failed: .*nowhere") as caught,
        local_service("--set", "models.dev.source=./nowhere", environment=environment),
    ):
        pass
    assert "Traceback" not in str(caught.value)


def test_a_signal_ends_the_service_in_order_while_it_starts(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "serve", "--port", str(free_port())]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        while "updating" not in service.stdout.readline():
            assert service.poll() is None
        service.send_signal(signal.SIGTERM)
        rest = service.stdout.read()
    assert service.returncode == 0
    assert "stopping" in rest
    assert "received" not in rest


def test_a_token_guards_every_face_and_a_signal_ends_the_service(environment: dict[str, str]) -> None:
    with local_service(environment=environment | {"FLUX_SERVE_TOKEN": "sesame"}) as service:
        _every_face_asks_for_the_token(service)
        os.kill(service.process_id, signal.SIGTERM)
        until(lambda: _answers(service), lambda answers: not answers)


def _answers(service: LocalService) -> bool:
    try:
        httpx.get(f"{service.url}/health-check")
    except httpx.TransportError:
        return False
    return True


def _every_face_asks_for_the_token(service: LocalService) -> None:
    with connect(service) as client:
        paths = ("/", "/health-check", "/openapi.json", "/v1/predictions/x", "/outputs/x/out-0.webp")
        assert {client.get(path).status_code for path in paths} == {401}
        assert client.post("/predictions", json={"input": {"prompt": "x"}}).status_code == 401
        assert client.post("/v1/predictions", json={"input": {"prompt": "x"}}).status_code == 401
        for scheme in ("Bearer", "Token"):
            assert client.get("/health-check", headers={"Authorization": f"{scheme} sesame"}).status_code == 200
        assert client.get("/health-check", headers={"Authorization": "Bearer open"}).status_code == 401
