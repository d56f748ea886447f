"""Requests that Schemathesis generates from the OpenAPI document get the responses that the document describes."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import uint8
from numpy.typing import NDArray

from serve.api.openapi_replicate import service_document
from serve.events import Event, Started
from serve.generation_plan import GenerationPlan
from serve.lora.resolved_lora import ResolvedLora
from serve.predictions.create_options import CreateOptions
from serve.settings import DeploymentSettings, FetchSettings, OutputSettings, Settings
from tests.app_factory import make_app
from tests.asgi_server import listen, url_of
from tests.fakes import DONE, FakePool, image_finished
from tests.openapi_schemas import strict

CONFIG = Path(__file__).parents[2] / "data" / "schemathesis.toml"
PREDICTION_ID = "stored"
"""`CONFIG` has it among the ids that requests name."""
DEPLOYMENT = DeploymentSettings(owner="studio", name="fast", model="black-forest-labs/flux-schnell")
TIMEOUT_S = 1800


class QuickPool(FakePool):
    """A pool that yields one image for each seed, without steps."""

    async def generate(
        self,
        plan: GenerationPlan,
        image: NDArray[uint8] | None,
        mask: NDArray[uint8] | None,
        loras: Sequence[ResolvedLora[Any]],
        log_id: str,
    ) -> AsyncGenerator[Event, None]:
        yield Started()
        for index in range(len(plan.seeds)):
            yield image_finished(index)
        yield DONE


def run_schemathesis(url: str, folder: Path, arguments: list[str]) -> str:
    """The output of Schemathesis, if a check failed; else an empty string."""
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run", f"{url}/openapi.json"]
    done = subprocess.run(
        [*command, "--no-color", "--continue-on-failure", "--generation-deterministic", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    return "" if done.returncode == 0 else f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--phases", "fuzzing", "--max-examples", "5"],
        pytest.param(
            ["--phases", "examples,coverage,fuzzing", "--max-examples", "100"], marks=pytest.mark.slow_requests
        ),
    ],
    ids=["few", "many"],
)
async def test_responses_conform_to_the_openapi_document(arguments: list[str], tmp_path: Path) -> None:
    listener = listen()
    app = make_app(
        QuickPool(()),
        Settings(
            outputs=OutputSettings(public_url=url_of(listener)),
            deployments=(DEPLOYMENT,),
            fetch=FetchSettings(max_attempts=1),
            max_wait_s=1,
        ),
    )
    await app.create({"prompt": "a cat"}, CreateOptions(id=PREDICTION_ID))
    async with app.listening(listener) as url:
        assert not await asyncio.to_thread(run_schemathesis, url, tmp_path, arguments)


async def test_searches_with_the_method_query_conform_to_the_openapi_document() -> None:
    """Schemathesis does not send this method."""
    document = service_document(Settings().served_models[0])
    responses = document["paths"]["/v1/models"]["x-query"]["responses"]

    def validator(status: str, media_type: str) -> jsonschema.Draft7Validator:
        return jsonschema.Draft7Validator(strict({**document, **responses[status]["content"][media_type]["schema"]}))

    validators = {200: validator("200", "application/json"), 400: validator("4XX", "application/problem+json")}

    @settings(derandomize=True, max_examples=30, deadline=None, database=None)
    @given(st.binary() | st.text().map(str.encode) | st.text().map(json.dumps).map(str.encode))
    def search(url: str, body: bytes) -> None:
        response = httpx.request("QUERY", f"{url}/v1/models", content=body)
        validators[response.status_code].validate(response.json())

    async with make_app(QuickPool(())).listening() as url:
        await asyncio.to_thread(search, url)
