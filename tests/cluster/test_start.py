"""Start-up errors are printed in one line, signals stop the service cleanly, and a token protects every API."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from serve.launch.subprocess_service import ROOT, LocalService, ServiceStartError, free_port, local_service
from tests.cluster.client import connect, until


def run_serve(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "serve", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_busy_port_is_reported_in_one_line(environment: dict[str, str]) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        process = run_serve(environment, "--port", str(listener.getsockname()[1]))
    assert process.returncode == 1
    assert len(process.stderr.strip().splitlines()) == 1
    assert "--port" in process.stderr


def test_public_host_without_token_is_rejected(environment: dict[str, str]) -> None:
    process = run_serve(environment, "--host", "0.0.0.0", "--port", str(free_port()))
    assert process.returncode == 1
    assert "FLUX_SERVE_TOKEN" in process.stderr


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("pools.schnell.max_bach=2", "max_bach"), ("nonsense", "KEY=VALUE"), ("max_body_bytes=many", "max_body_bytes")],
)
def test_invalid_setting_is_named_in_the_error(environment: dict[str, str], setting: str, expected: str) -> None:
    process = run_serve(environment, "--set", setting)
    assert process.returncode == 1
    assert expected in process.stderr
    assert "Traceback" not in process.stderr


def test_missing_model_fails_the_start_with_its_source(environment: dict[str, str]) -> None:
    with (
        pytest.raises(ServiceStartError, match=r"failed.*nowhere") as error,
        local_service("--set", "models.dev.source=./nowhere", environment=environment),
    ):
        pass
    assert "Traceback" not in str(error.value)


def test_sigterm_during_start_stops_the_service_cleanly(environment: dict[str, str]) -> None:
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


def test_token_protects_every_api_and_sigterm_stops_the_service(environment: dict[str, str]) -> None:
    lines: list[str] = []
    cors = ("--set", "cors_origins=[https://app.example]")
    token = {"FLUX_SERVE_TOKEN": "sesame"}
    with local_service(*cors, environment=environment | token, on_line=lines.append) as service:
        _assert_report(lines, service)
        _assert_every_api_requires_the_token(service)
        _assert_preflight_needs_no_token(service)
        os.kill(service.process_id, signal.SIGTERM)
        until(lambda: _responds(service), lambda responds: not responds)


def _assert_report(lines: list[str], service: LocalService) -> None:
    """The last lines before the service is ready: its addresses, and its pools."""
    *_, service_line, playground, metrics, logs, titles, started, fp8, schnell = [line.split() for line in lines]
    assert service_line == ["service", service.url]
    assert playground == ["playground", f"{service.url}/playground"]
    assert metrics[0] == "metrics"
    assert httpx.get(metrics[1]).status_code == 200
    assert logs[0] == "logs"
    assert list(Path(logs[1]).glob("replica_*.log"))
    assert titles[:5] == ["POOL", "MODEL", "DEVICE", "PRECISION", "COMPUTE"]
    assert started[:4] == ["dev-bf16", "dev", "cpu", "bf16"]
    assert started[4] in {"bfloat16", "float32"}
    assert started[5:] == ["1", "running"]
    assert fp8[:6] == ["dev-fp8", "dev", "cpu", "fp8", "auto", "none:"]
    assert schnell[:6] == ["schnell", "schnell", "cpu", "bf16", "auto", "none:"]


def _assert_preflight_needs_no_token(service: LocalService) -> None:
    headers = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    with connect(service) as client:
        response = client.options("/v1/predictions", headers=headers)
    assert (response.status_code, response.headers["Access-Control-Allow-Origin"]) == (200, "https://app.example")


def _responds(service: LocalService) -> bool:
    try:
        httpx.get(f"{service.url}/health-check")
    except httpx.TransportError:
        return False
    return True


def _assert_every_api_requires_the_token(service: LocalService) -> None:
    with connect(service) as client:
        paths = ("/", "/openapi.json", "/v1/models", "/v1/predictions/x", "/outputs/x/out-0.webp")
        assert {client.get(path).status_code for path in paths} == {401}
        assert client.post("/predictions", json={"input": {"prompt": "x"}}).status_code == 401
        assert client.post("/v1/predictions", json={"input": {"prompt": "x"}}).status_code == 401
        for scheme in ("Bearer", "Token"):
            assert client.get("/v1/models", headers={"Authorization": f"{scheme} sesame"}).status_code == 200
        assert client.get("/v1/models", headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert {client.get(path).status_code for path in ("/health-check", "/readyz")} == {200}
