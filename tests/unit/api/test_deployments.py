"""The deployments and hardware endpoints."""

from typing import Any

import httpx
import pytest

from serve.settings import DeploymentSettings, Settings
from tests.app_factory import make_app
from tests.fakes import ONE_IMAGE, FakePool

SETTINGS = Settings(
    deployments=(
        DeploymentSettings(owner="studio", name="fast", model="black-forest-labs/flux-schnell"),
        DeploymentSettings(
            owner="studio", name="sketches", model="fofr/flux-handwriting-and-sketch", version="d592f697"
        ),
    )
)


async def request(method: str, path: str, **arguments: Any) -> httpx.Response:
    async with make_app(FakePool(ONE_IMAGE), SETTINGS).http as client:
        return await client.request(method, path, **arguments)


async def test_deployment_has_its_release_and_the_limits_of_its_pool() -> None:
    deployment = (await request("GET", "/v1/deployments/studio/fast")).json()
    release = deployment["current_release"]
    assert (deployment["owner"], deployment["name"], release["number"]) == ("studio", "fast", 1)
    assert release["model"] == "black-forest-labs/flux-schnell"
    assert release["created_at"].endswith("Z")
    assert release["created_by"]["type"] == "organization"
    assert release["configuration"] == {"hardware": "schnell", "min_instances": 0, "max_instances": 1}


async def test_deployments_are_listed() -> None:
    body = (await request("GET", "/v1/deployments")).json()
    assert [deployment["name"] for deployment in body["results"]] == ["fast", "sketches"]
    assert (body["previous"], body["next"]) == (None, None)
    assert body["results"][1]["current_release"]["version"] == "d592f697"


async def test_prediction_of_a_deployment_has_its_model() -> None:
    path = "/v1/deployments/studio/fast/predictions"
    created = await request("POST", path, json={"input": {"prompt": "a cat"}}, headers={"Prefer": "wait"})
    assert (created.status_code, created.json()["status"]) == (201, "succeeded")
    assert created.json()["model"] == "black-forest-labs/flux-schnell"
    assert created.json()["metrics"]["pool"] == "schnell"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/deployments/studio/none"),
        ("GET", "/v1/deployments/other/fast"),
        ("POST", "/v1/deployments/studio/none/predictions"),
    ],
)
async def test_unknown_deployment_is_not_found(method: str, path: str) -> None:
    response = await request(method, path, json={"input": {"prompt": "a cat"}})
    assert (response.status_code, response.headers["Content-Type"]) == (404, "application/problem+json")
    assert "/v1/deployments" in response.json()["detail"]


async def test_version_in_the_body_of_a_deployment_is_rejected() -> None:
    body = {"input": {"prompt": "a cat"}, "version": "d592f697"}
    assert (await request("POST", "/v1/deployments/studio/fast/predictions", json=body)).status_code == 422


async def test_hardware_is_the_pools() -> None:
    hardware = (await request("GET", "/v1/hardware")).json()
    assert [each["sku"] for each in hardware] == ["dev-bf16", "dev-fp8", "schnell"]
    assert all(each["name"] for each in hardware)
