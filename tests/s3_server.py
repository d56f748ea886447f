"""Starts moto's S3 server for tests, on a free loopback port."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from serve.launch.subprocess_service import free_port

START_TIMEOUT_S = 60
BUCKET = "flux"


def find_server() -> str | None:
    return shutil.which("moto_server")


def environment(url: str) -> dict[str, str]:
    """The variables with which clients use the server at `url`."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }


@contextmanager
def s3_server(command: str) -> Iterator[str]:
    """Yields the URL of a server with an empty bucket `BUCKET`."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [command, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _create_bucket(process, url)
        yield url
    finally:
        process.kill()
        process.wait()


def _create_bucket(process: "subprocess.Popen[bytes]", url: str) -> None:
    end_s = time.monotonic() + START_TIMEOUT_S
    while True:
        assert process.poll() is None, "moto_server has ended"
        assert time.monotonic() < end_s, "moto_server does not start"
        try:
            httpx.put(f"{url}/{BUCKET}").raise_for_status()
            break
        except httpx.TransportError:
            time.sleep(0.1)
