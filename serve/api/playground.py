"""Routes of the playground: its page, also at `/` for browsers, its files, and the facts that its forms need."""

import hashlib
from importlib import resources
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route
from starlette.types import Scope

from serve.model_specs import EMBEDDED, EMBEDDED_LORAS
from serve.output_sizes import IMAGE_RATIO_MAX, IMAGE_SIDE_MAX, IMAGE_SIDE_MIN, SIZE_MULTIPLE, SIZES
from serve.settings import Settings

PATH = "/playground"
PACKAGE = "serve.playground"
LIBRARIES = "vendor"
MEDIA_TYPES = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "mjs": "text/javascript",
    "svg": "image/svg+xml",
}
"""By suffix; other files of the package are not served."""
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
EXAMPLES = ("a red sailboat", "a bicycle in green", "a blue sketch of a house and a tree")
"""Prompts that the embedded models were trained for."""
FIRST_INPUTS = {"prompt": EXAMPLES[0], "megapixels": "0.25"}
"""What the form has at first with the embedded models: an image that a CPU generates in seconds."""


def routes(settings: Settings) -> list[Route]:
    files = _load_files()
    index, config = files["index.html"], _config(settings)

    async def page(request: Request) -> Response:
        return _respond(request, *index, {"Content-Security-Policy": CONTENT_SECURITY_POLICY, "Vary": "Accept"})

    async def configuration(request: Request) -> Response:
        return JSONResponse(config, headers={"Cache-Control": "no-cache"})

    async def file(request: Request) -> Response:
        found = files.get("/".join(request.path_params.values()))
        if found is None:
            raise HTTPException(404)
        return _respond(request, *found, {})

    return [
        HtmlRoute("/", page, methods=["GET"]),
        Route(PATH, page, methods=["GET"]),
        Route(f"{PATH}/config.json", configuration, methods=["GET"]),
        Route(f"{PATH}/{{name}}", file, methods=["GET"]),
        Route(f"{PATH}/{{folder}}/{{name}}", file, methods=["GET"]),
    ]


class HtmlRoute(Route):
    """Matches only requests that prefer HTML, so that another route can have the same path."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if not prefers_html(Headers(scope=scope).get("accept")):
            return Match.NONE, {}
        return super().matches(scope)


def is_public(path: str, accept: str | None) -> bool:
    """Whether a request is for the playground, which asks for the token and sends it with its requests."""
    return path == PATH or path.startswith(f"{PATH}/") or (path == "/" and prefers_html(accept))


def prefers_html(accept: str | None) -> bool:
    """Whether an `Accept` header has a higher quality for HTML than for JSON, as those of browsers do."""
    qualities = dict(map(_parse_range, (accept or "").split(",")))
    default = qualities.get("*/*", 0.0)
    json = qualities.get("application/json", qualities.get("application/*", default))
    return qualities.get("text/html", qualities.get("text/*", default)) > json


def _parse_range(media_range: str) -> tuple[str, float]:
    """The type and the quality of one range of an `Accept` header."""
    name, *parameters = (part.strip().lower() for part in media_range.split(";"))
    quality = next((each[2:] for each in parameters if each.startswith("q=")), "1")
    try:
        return name, float(quality)
    except ValueError:
        return name, 0.0


def _load_files() -> dict[str, tuple[bytes, str]]:
    """The content and the media type of each file, by its path below the package."""
    package = resources.files(PACKAGE)
    found = [(each.name, each) for each in package.iterdir() if each.is_file()]
    found += [(f"{LIBRARIES}/{each.name}", each) for each in (package / LIBRARIES).iterdir()]
    return {
        name: (each.read_bytes(), MEDIA_TYPES[suffix])
        for name, each in found
        if (suffix := name.rpartition(".")[2]) in MEDIA_TYPES
    }


def _config(settings: Settings) -> dict[str, Any]:
    embedded = any(settings.models[pool.model].source == EMBEDDED for pool in settings.pools.values())
    loras = [f"{EMBEDDED}:{name}" for name in EMBEDDED_LORAS] if embedded else []
    return {
        "sizes": SIZES,
        "size_multiple": SIZE_MULTIPLE,
        "image_side_min": IMAGE_SIDE_MIN,
        "image_side_max": IMAGE_SIDE_MAX,
        "image_ratio_max": IMAGE_RATIO_MAX,
        "loras": [*loras, *settings.lora.aliases],
        "examples": EXAMPLES if embedded else (),
        "first_inputs": FIRST_INPUTS if embedded else {},
    }


def _respond(request: Request, content: bytes, media_type: str, headers: dict[str, str]) -> Response:
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**headers, "ETag": etag, "Cache-Control": "no-cache"}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=media_type)
