"""Generates the images of a prompt over HTTP and saves them, with a running service (--url) or one that it starts."""

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

from serve.errors import InvalidInput
from serve.launch.subprocess_service import ServiceStartError, local_service
from serve.predictions.request import prepare_request, resolve_version
from serve.settings import Settings

Prediction = dict[str, Any]

POLL_S = 0.5
READ_TIMEOUT_S = 120
"""Longer than the service holds a request with `Prefer: wait`, which is 55 s."""
ERROR_PREFIX = "serve: "
"""Start of the lines in which the service reports why it cannot start."""
EXTENSIONS = {"image/webp": "webp", "image/jpeg": "jpg", "image/png": "png"}


class DemoFailed(Exception):
    """The demo cannot save all images. The message is a single line for the user."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the demo and returns its exit status. Errors are a single line on stderr."""
    options = parse(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        inputs = inputs_of(options)
        with running_service(options, inputs) as client:
            prediction, stages_ms = predict(client, inputs)
            paths = save(client, prediction, options.out)
            # Before the service stops, which takes seconds.
            print("\n".join(report(paths, prediction, stages_ms)), flush=True)
        return 0
    except DemoFailed as error:
        print_status(str(error))
        return 1
    except KeyboardInterrupt:
        print_status("interrupted")
        return 130


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/demo", description="Generate images for a prompt.", allow_abbrev=False
    )
    parser.add_argument("prompt", help="what the image should show")
    parser.add_argument("--model", choices=("dev", "schnell"))
    parser.add_argument("--go-fast", action="store_const", const=True, help="use float8 weights")
    parser.add_argument("--num-outputs", type=int, metavar="N", help="number of images, 1 to 4")
    parser.add_argument("--seed", type=int, metavar="N")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any input of the API; image=@FILE and mask=@FILE send a file; repeatable",
    )
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="folder for the images; default: .")
    parser.add_argument("--url", help="URL of a running service; default: start one")
    parser.add_argument("--port", type=int, metavar="N", help="port for the started service; default: a free port")
    return parser.parse_args(arguments)


def inputs_of(options: argparse.Namespace) -> dict[str, Any]:
    """The inputs of the prediction: only those given on the command line, so that the service applies its defaults."""
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
    """Parses KEY=VALUE. The value is JSON if it parses, otherwise text; `@FILE` is a file for `image` and `mask`."""
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
def running_service(options: argparse.Namespace, inputs: Mapping[str, Any]) -> Iterator[httpx.Client]:
    """A client of the service at --url, or of one that runs for the duration of the block, with one pool."""
    if options.url:
        with open_client(options.url, trust_env=True) as client:
            yield client
        return
    arguments = [*pool_arguments(inputs), *(["--port", str(options.port)] if options.port else [])]
    try:
        # trust_env=False: requests to this machine must not go through a proxy.
        with (
            local_service(*arguments, on_line=print_progress) as service,
            open_client(service.url, trust_env=False) as client,
        ):
            wait_until_open(client)
            yield client
    except ServiceStartError as error:
        reason = str(error).splitlines()[-1].removeprefix(ERROR_PREFIX)
        raise DemoFailed(f"the service did not start: {reason}") from None


def pool_arguments(inputs: Mapping[str, Any]) -> list[str]:
    """Options to start only the pool that `inputs` need. Raises `DemoFailed` if they are invalid."""
    settings = Settings()
    try:
        plan = prepare_request(inputs, resolve_version(settings, None), settings, random_seed=0).plan
    except InvalidInput as error:
        raise DemoFailed(str(error)) from None
    replicas = {pool: int(pool == plan.pool) for pool in settings.pools}
    return [
        part for pool, count in replicas.items() for part in ("--set", f"pools.{pool}.scaling.min_replicas={count}")
    ]


def open_client(url: str, trust_env: bool) -> httpx.Client:
    token = os.environ.get("FLUX_SERVE_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.Client(base_url=url, headers=headers, timeout=READ_TIMEOUT_S, trust_env=trust_env)


def wait_until_open(client: httpx.Client) -> None:
    """Polls the health check until the service accepts predictions."""
    while send(client, "GET", "/health-check").json()["status"] == "STARTING":
        time.sleep(POLL_S)


def print_progress(line: str) -> None:
    """Prints a line of the starting service, except error lines, which `DemoFailed` reports."""
    if not line.startswith(ERROR_PREFIX):
        print_status(line)


def print_status(line: str) -> None:
    """Prints to stderr; stdout has the results only."""
    print(f"demo: {line}", file=sys.stderr, flush=True)


def predict(client: httpx.Client, inputs: Mapping[str, Any]) -> tuple[Prediction, dict[str, float]]:
    """The succeeded prediction, and the milliseconds of its stages. Raises `DemoFailed` if it does not succeed."""
    print_status("generating")
    response = send(client, "POST", "/v1/predictions", json={"input": inputs}, headers={"Prefer": "wait"})
    while (prediction := response.json())["status"] in ("starting", "processing"):
        time.sleep(POLL_S)
        response = send(client, "GET", f"/v1/predictions/{prediction['id']}")
    if prediction["status"] == "failed":
        raise DemoFailed(f"the prediction failed: {prediction.get('error') or 'no reason given'}")
    if prediction["status"] != "succeeded":
        raise DemoFailed(f"the prediction was {prediction['status']}")
    return prediction, stage_times_ms(response.headers.get("Server-Timing", ""))


def send(client: httpx.Client, method: str, path: str, **content: Any) -> httpx.Response:
    """The response to a request. Raises `DemoFailed` if there is none, or if its status is not 2xx."""
    try:
        response = client.request(method, path, **content)
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise DemoFailed(f"no response from {client.base_url}: {error}") from None
    if response.is_success:
        return response
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = response.reason_phrase
    raise DemoFailed(f"the service responded with {response.status_code}: {detail}")


def stage_times_ms(server_timing: str) -> dict[str, float]:
    """Parses `text;dur=12.5, denoise;dur=700`."""
    return {name: float(ms) for name, ms in re.findall(r"([\w-]+);dur=([\d.]+)", server_timing)}


def save(client: httpx.Client, prediction: Prediction, folder: Path) -> list[Path]:
    """Writes the images as out-0.webp, out-1.webp, ... and returns their paths."""
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
    """Content and media type of an image, from a `data:` URI or a URL."""
    if uri.startswith("data:"):
        head, _, body = uri.removeprefix("data:").partition(",")
        media_type, *parameters = head.split(";")
        return base64.b64decode(body) if "base64" in parameters else unquote_to_bytes(body), media_type
    response = send(client, "GET", uri)
    return response.content, response.headers.get("Content-Type", "").partition(";")[0]


def report(paths: list[Path], prediction: Prediction, stages_ms: Mapping[str, float]) -> list[str]:
    """The lines for stdout: the path of each image, then seed, pool and stage times."""
    metrics = prediction.get("metrics") or {}
    logged_seed = re.search(r"Using seed: (\d+)", prediction.get("logs") or "")
    seed = metrics.get("seed", logged_seed and logged_seed[1])
    stages = ", ".join(f"{name} {ms:,.0f} ms" for name, ms in stages_ms.items())
    rows = [("seed", seed), ("pool", metrics.get("pool")), ("stages", stages)]
    return [str(path) for path in paths] + [f"{name:8}{value}" for name, value in rows if value not in (None, "")]


if __name__ == "__main__":
    sys.exit(main())
