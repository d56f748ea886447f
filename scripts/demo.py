"""One prompt to its pictures, over HTTP as any client goes: start the service, ask, save, tell, stop.

Knows the service's command line and its HTTP interface, nothing of what it does; --url takes one that runs already.
"""

import argparse
import base64
import json
import mimetypes
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import httpx

from serve.launch.subprocess_service import ServiceStartError, local_service

Prediction = dict[str, Any]

POLL_S = 0.5
READ_TIMEOUT_S = 120
"""Longer than the service holds a `Prefer: wait`, which is a minute."""
FAULT = "serve: "
"""How a line of the service begins that says why it cannot run."""
EXTENSIONS = {"image/webp": "webp", "image/jpeg": "jpg", "image/png": "png"}


class DemoFailed(Exception):
    """There will be no picture; the message is for the person at the terminal."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the demo and returns its exit status; what went wrong is one line on standard error."""
    options = parse(arguments)
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.default_int_handler)
    try:
        inputs = inputs_of(options)
        with running_service(options) as client:
            prediction, stages = predict(client, inputs)
            paths = save(client, prediction, options.out)
        print("\n".join(report(paths, prediction, stages)))
        return 0
    except DemoFailed as failure:
        tell(str(failure))
        return 1
    except KeyboardInterrupt:
        tell("interrupted")
        return 130


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/demo", description="Draw a prompt.", allow_abbrev=False)
    parser.add_argument("prompt", help="what the picture should show")
    parser.add_argument("--model", choices=("dev", "schnell"))
    parser.add_argument("--go-fast", action="store_const", const=True, help="draw with float8 weights")
    parser.add_argument("--num-outputs", type=int, metavar="N")
    parser.add_argument("--seed", type=int, metavar="N")
    parser.add_argument("--input", action="append", default=[], metavar="KEY=VALUE", help="image=@file sends a file")
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="folder for the pictures, default here")
    parser.add_argument("--url", help="use the service that runs there, instead of starting one")
    parser.add_argument("--port", type=int, metavar="N", help="start the service on this port, default a free one")
    return parser.parse_args(arguments)


def inputs_of(options: argparse.Namespace) -> dict[str, Any]:
    """What the options ask for, in the API's names; an option that was not given is left to the service."""
    named = {
        "prompt": options.prompt,
        "model": options.model,
        "go_fast": options.go_fast,
        "num_outputs": options.num_outputs,
        "seed": options.seed,
    }
    others = dict(read_input(text) for text in options.input)
    return {key: value for key, value in named.items() if value is not None} | others


def read_input(text: str) -> tuple[str, Any]:
    """KEY=VALUE: the value as JSON if it is, else as text; `@` before it means the file of that name."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise DemoFailed(f"--input {text}: should be KEY=VALUE")
    if value.startswith("@") and key in ("image", "mask"):
        return key, data_uri(Path(value[1:]))
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def data_uri(path: Path) -> str:
    media_type = mimetypes.guess_type(path)[0] or "application/octet-stream"
    try:
        return f"data:{media_type};base64,{base64.b64encode(path.read_bytes()).decode()}"
    except OSError as error:
        raise DemoFailed(f"cannot read {path}: {error.strerror}") from None


@contextmanager
def running_service(options: argparse.Namespace) -> Iterator[httpx.Client]:
    """A client of the service at --url, or of one that lives as long as the block."""
    if options.url:
        with open_client(options.url, trust_env=True) as client:
            yield client
        return
    port = ("--port", str(options.port)) if options.port else ()
    try:
        # What the environment says of proxies is for other machines than ours.
        with local_service(*port, on_line=follow) as service, open_client(service.url, trust_env=False) as client:
            wait_until_open(client)
            yield client
    except ServiceStartError as failure:
        last = str(failure).splitlines()[-1].removeprefix(FAULT)
        raise DemoFailed(f"the service did not start: {last}") from None


def open_client(url: str, trust_env: bool) -> httpx.Client:
    token = os.environ.get("FLUX_SERVE_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.Client(base_url=url, headers=headers, timeout=READ_TIMEOUT_S, trust_env=trust_env)


def wait_until_open(client: httpx.Client) -> None:
    """Returns when the health check says that predictions are taken."""
    while send(client, "GET", "/health-check").json()["status"] == "STARTING":
        time.sleep(POLL_S)


def follow(line: str) -> None:
    """What the service says while it starts; a fault comes once more, as the reason why it did not."""
    if not line.startswith(FAULT):
        tell(line)


def tell(line: str) -> None:
    """Progress: for the person at the terminal, not for what reads our output."""
    print(f"demo: {line}", file=sys.stderr, flush=True)


def predict(client: httpx.Client, inputs: Mapping[str, Any]) -> tuple[Prediction, dict[str, float]]:
    """The prediction after it succeeded, and what its stages took in milliseconds. Raises `DemoFailed`."""
    tell("drawing")
    answer = send(client, "POST", "/v1/predictions", json={"input": inputs}, headers={"Prefer": "wait"})
    while (prediction := answer.json())["status"] in ("starting", "processing"):
        time.sleep(POLL_S)
        answer = send(client, "GET", f"/v1/predictions/{prediction['id']}")
    if prediction["status"] != "succeeded":
        raise DemoFailed(f"the prediction {prediction['status']}: {prediction.get('error') or 'no reason given'}")
    return prediction, stage_times(answer.headers.get("Server-Timing", ""))


def send(client: httpx.Client, method: str, path: str, **content: Any) -> httpx.Response:
    try:
        answer = client.request(method, path, **content)
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise DemoFailed(f"no answer from {client.base_url}: {error}") from None
    if answer.is_success:
        return answer
    try:
        why = answer.json()["detail"]
    except (ValueError, KeyError, TypeError):
        why = answer.reason_phrase
    raise DemoFailed(f"the service answered {answer.status_code}: {why}")


def stage_times(server_timing: str) -> dict[str, float]:
    """`text;dur=12.5, denoise;dur=700` as a table."""
    return {name: float(ms) for name, ms in re.findall(r"([\w-]+);dur=([\d.]+)", server_timing)}


def save(client: httpx.Client, prediction: Prediction, folder: Path) -> list[Path]:
    """Writes the pictures as out-0.webp and so on, and returns where they are."""
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for index, uri in enumerate(prediction["output"]):
            content, media_type = download(client, uri)
            path = folder / f"out-{index}.{EXTENSIONS.get(media_type, 'bin')}"
            path.write_bytes(content)
            paths.append(path)
    except OSError as error:
        raise DemoFailed(f"cannot write to {folder}: {error.strerror}") from None
    return paths


def download(client: httpx.Client, uri: str) -> tuple[bytes, str]:
    """Content and media type of a picture, which is a data: URI or a URL."""
    if uri.startswith("data:"):
        head, _, body = uri.removeprefix("data:").partition(",")
        media_type, *rest = head.split(";")
        return base64.b64decode(body) if "base64" in rest else unquote_to_bytes(body), media_type
    answer = send(client, "GET", uri)
    return answer.content, answer.headers.get("Content-Type", "").partition(";")[0]


def report(paths: list[Path], prediction: Prediction, stages: Mapping[str, float]) -> list[str]:
    """The lines that tell where the pictures are, and how they came about."""
    metrics = prediction.get("metrics") or {}
    logged = re.search(r"Using seed: (\d+)", prediction.get("logs") or "")
    seed = metrics.get("seed", logged and logged[1])
    times = ", ".join(f"{name} {ms:,.0f} ms" for name, ms in stages.items())
    rows = [("seed", seed), ("pool", metrics.get("pool")), ("stages", times)]
    return [str(path) for path in paths] + [f"{name:8}{value}" for name, value in rows if value not in (None, "")]


if __name__ == "__main__":
    sys.exit(main())
