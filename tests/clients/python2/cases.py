"""Calls the service with version 2 of Replicate's Python client: `python cases.py BASE_URL CASE IMAGE_FILE`.

It prints what the case returns as one line of JSON.
"""

import asyncio
import base64
import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

# Version 1 is installed for other tests, so this import is hidden from the type checker.
replicate: Any = import_module("replicate")

BASE_URL, CASE, IMAGE_FILE = sys.argv[1:]
OWNER, NAME, VERSION = "fofr", "flux-handwriting-and-sketch", "d592f697"
REFERENCE = f"{OWNER}/{NAME}"
CAT = {"prompt": "a cat", "model": "schnell", "num_inference_steps": 2, "megapixels": "0.25", "seed": 5}
CAT |= {"replicate_weights": "", "extra_lora": "", "disable_safety_checker": True, "output_format": "png"}

# For `replicate.use`, which has a client of its own.
os.environ.update(REPLICATE_API_TOKEN="secret", REPLICATE_BASE_URL=f"{BASE_URL}/v1")
client = replicate.Replicate()


def encoded(files: Any) -> list[str]:
    return [base64.b64encode(file.read()).decode() for file in files]


def run(reference: str = REFERENCE, **parameters: Any) -> list[str]:
    inputs = {**CAT, **parameters.pop("input", {})}
    return encoded(client.run(reference, input=inputs, **parameters))


def run_with_file() -> list[str]:
    with Path(IMAGE_FILE).open("rb") as image:
        return run(input={"image": image})


async def async_run() -> list[str]:
    async with replicate.AsyncReplicate() as asynchronous:
        files = await asynchronous.run(REFERENCE, input=CAT)
        return [base64.b64encode(await file.read()).decode() for file in files]


def use() -> list[str]:
    """The URIs of the outputs: `use` turns them into paths, and downloads only http(s) ones."""
    return [str(path) for path in replicate.use(REFERENCE)(**CAT)]


def error_of(call: Callable[[], Any]) -> dict[str, Any]:
    try:
        call()
    except replicate.ReplicateError as error:
        return {"status": getattr(error, "status_code", None), "message": str(error), "type": type(error).__name__}
    return {}


def cancel() -> list[str]:
    created = client.models.predictions.create(model_owner=OWNER, model_name=NAME, input=CAT)
    canceled = client.predictions.cancel(prediction_id=created.id)
    return [created.status, canceled.status, client.predictions.wait(created.id).status]


def list_predictions() -> bool:
    created = client.predictions.create(version=VERSION, input=CAT)
    return created.id in [prediction.id for prediction in client.predictions.list()]


def read_files() -> dict[str, Any]:
    created = client.files.create(content=Path(IMAGE_FILE).read_bytes(), filename="boat.png", type="image/png")
    found = client.files.get(file_id=created.id)
    client.files.delete(file_id=created.id)
    missing = error_of(lambda: client.files.get(file_id=created.id))
    return {"created": created.id, "found": found.id, "size": found.size, "missing": missing["status"]}


def models() -> dict[str, Any]:
    model = client.models.get(model_owner=OWNER, model_name=NAME)
    version = client.models.versions.get(model_owner=OWNER, model_name=NAME, version_id=VERSION + "0" * 56)
    versions = client.models.versions.list(model_owner=OWNER, model_name=NAME)
    return {
        "owner": model.owner,
        "version": version.id,
        "schemas": sorted(version.openapi_schema["components"]["schemas"]),
        "versions": [each.id for each in versions.results],
        "models": [f"{each.owner}/{each.name}" for each in client.models.list()],
        "found": [each.name for each in client.models.search(body="handwriting")],
        "readme": client.models.readme.get(model_owner=OWNER, model_name=NAME),
        "examples": len(list(client.models.examples.list(model_owner=OWNER, model_name=NAME))),
    }


def discovery() -> dict[str, Any]:
    found = client.search(query="handwriting")
    collection = client.collections.get(collection_slug="text-to-image")
    return {
        "found": [each.model.name for each in found.models],
        "collections": [each.slug for each in client.collections.list()],
        "models": [each.name for each in collection.models],
        "hardware": [each.sku for each in client.hardware.list()],
        "account": client.account.get().type,
    }


def deployments() -> dict[str, Any]:
    deployment = client.deployments.get(deployment_owner="studio", deployment_name="fast")
    created = client.deployments.predictions.create(
        deployment_owner="studio", deployment_name="fast", input={"prompt": "a cat"}, prefer="wait"
    )
    deleted = error_of(lambda: client.deployments.delete(deployment_owner="studio", deployment_name="fast"))
    return {
        "listed": [each.name for each in client.deployments.list()],
        "model": deployment.current_release.model,
        "hardware": deployment.current_release.configuration.hardware,
        "status": created.status,
        "deleted": deleted["status"],
    }


def headers() -> dict[str, Any]:
    """A prediction with a deadline that is created twice with one key."""
    key = {"Idempotency-Key": "a-key"}
    first, second = (
        client.predictions.create(version=VERSION, input=CAT, cancel_after="10m", extra_headers=key) for _ in range(2)
    )
    return {"same": first.id == second.id, "deadline": first.deadline is not None, "stream": bool(first.urls.stream)}


CASES: dict[str, Callable[[], Any]] = {
    "text": run,
    "textWithVersion": lambda: run(f"{REFERENCE}:{VERSION}"),
    "polled": lambda: run(wait=False),
    "file": run_with_file,
    "async": lambda: asyncio.run(async_run()),
    "use": use,
    "failure": lambda: error_of(run),
    "invalid": lambda: error_of(lambda: run(input={"num_outputs": 9})),
    "longWait": lambda: error_of(lambda: run(wait=61)),
    "unknownVersion": lambda: error_of(lambda: run(f"{REFERENCE}:{'0' * 64}")),
    "cancel": cancel,
    "list": list_predictions,
    "files": read_files,
    "models": models,
    "discovery": discovery,
    "deployments": deployments,
    "headers": headers,
}

print(json.dumps(CASES[CASE]()))
