"""The playground's page, its files, and which requests for `/` get it."""

import re

import httpx
import pytest

from serve.api.playground import EXAMPLES, FIRST_INPUTS, prefers_html
from serve.output_sizes import SIZES
from serve.settings import Settings
from serve.settings.models import ModelSettings
from tests.app_factory import make_app
from tests.fakes import ONE_IMAGE, FakePool

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"}
MAX_BYTES = 150_000
MODULE_IMPORT = re.compile(r"""(?:from|import)\s*["'](\.[^"']+)["']""")


async def get(path: str, headers: dict[str, str] | None = None, token: str | None = None) -> httpx.Response:
    async with make_app(FakePool(ONE_IMAGE), token=token).http as client:
        return await client.get(path, headers=headers)


async def load_page() -> dict[str, httpx.Response]:
    """The page and all files that it loads, by URL."""
    async with make_app(FakePool(ONE_IMAGE)).http as client:
        responses = {"/playground": await client.get("/playground", headers=BROWSER)}
        waiting = [f"/{name}" for name in re.findall(r'(?:src|href)="([^"]+)"', responses["/playground"].text)]
        while waiting:
            path = waiting.pop()
            response = responses[path] = await client.get(path)
            if path.endswith(("js", "mjs")):
                found = [
                    str(httpx.URL(f"http://x{path}").join(name).path) for name in MODULE_IMPORT.findall(response.text)
                ]
                waiting += [each for each in found if each not in {*responses, *waiting}]
    return responses


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (BROWSER["Accept"], True),
        ("text/html", True),
        ("text/*", True),
        ("text/html;q=0.5, application/json;q=0.4", True),
        ("TEXT/HTML; q=1", True),
        (None, False),
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("application/json, text/html;q=0.9", False),
        ("text/html, application/json", False),
        ("text/html;q=high", False),
    ],
)
def test_html_is_preferred_only_with_a_higher_quality(accept: str | None, expected: bool) -> None:
    assert prefers_html(accept) is expected


@pytest.mark.parametrize("path", ["/", "/playground"])
async def test_browsers_get_the_page(path: str) -> None:
    response = await get(path, BROWSER)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert response.headers["vary"].lower().split(", ")[0] == "accept"


@pytest.mark.parametrize("headers", [{}, {"Accept": "*/*"}, {"Accept": "application/json"}])
async def test_other_clients_get_cogs_discovery(headers: dict[str, str]) -> None:
    assert "cog_version" in (await get("/", headers)).json()


async def test_page_and_files_need_no_token_but_the_api_does() -> None:
    for path in ("/", "/playground", "/playground/app.js", "/playground/config.json"):
        assert (await get(path, BROWSER, token="secret")).status_code == 200
    for path in ("/", "/playgrounds", "/v1/models"):
        assert (await get(path, token="secret")).status_code == 401
    assert (await get("/v1/models", BROWSER, token="secret")).status_code == 401


async def test_policy_allows_no_inline_code_and_no_other_host() -> None:
    policy = dict(
        each.split(" ", 1) for each in (await get("/playground")).headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    page = (await get("/playground")).text
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page)


async def test_page_loads_few_bytes_from_this_service_only() -> None:
    responses = await load_page()
    assert {"/playground/app.js", "/playground/base.css", "/playground/vendor/preact.mjs"} <= responses.keys()
    assert all(response.status_code == 200 for response in responses.values())
    assert sum(response.num_bytes_downloaded for response in responses.values()) < MAX_BYTES
    assert not [path for path in responses if not path.startswith("/playground")]


async def test_files_have_their_media_types_and_are_compressed() -> None:
    for name, media_type in (
        ("app.js", "text/javascript"),
        ("vendor/htm.mjs", "text/javascript"),
        ("base.css", "text/css"),
    ):
        response = await get(f"/playground/{name}")
        assert response.headers["content-type"] == f"{media_type}; charset=utf-8"
    assert (await get("/playground/app.js", {"Accept-Encoding": "gzip"})).headers["content-encoding"] == "gzip"


async def test_unchanged_file_is_not_sent_again() -> None:
    first = await get("/playground/app.js")
    again = await get("/playground/app.js", {"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert (await get("/playground/app.js", {"If-None-Match": '"other"'})).status_code == 200


@pytest.mark.parametrize(
    "name", ["", "index", "__init__.py", "vendor/README.md", "vendor/LICENSE-htm", "../ingress.py", "x.js"]
)
async def test_other_files_are_not_found(name: str) -> None:
    assert (await get(f"/playground/{name}")).status_code == 404


async def test_configuration_has_the_sizes_of_the_service() -> None:
    config = (await get("/playground/config.json")).json()
    assert {key: {ratio: tuple(size) for ratio, size in each.items()} for key, each in config["sizes"].items()} == SIZES
    assert config["loras"] == ["embedded:handwriting", "embedded:sketch"]
    assert (config["examples"], config["first_inputs"]) == (list(EXAMPLES), FIRST_INPUTS)


async def test_configuration_of_other_models_has_only_the_aliases_of_loras() -> None:
    settings = Settings()
    models = {
        name: ModelSettings(variant=model.variant, source="org/flux", max_sequence_length=model.max_sequence_length)
        for name, model in settings.models.items()
    }
    changed = settings.model_copy(
        update={"models": models, "lora": settings.lora.model_copy(update={"aliases": {"ink": "org/ink"}})}
    )
    async with make_app(FakePool(ONE_IMAGE), changed).http as client:
        config = (await client.get("/playground/config.json")).json()
    assert (config["loras"], config["examples"], config["first_inputs"]) == (["ink"], [], {})
