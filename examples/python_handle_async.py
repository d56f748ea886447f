"""Generates images through a Ray Serve handle with asyncio, from any process on the service's Ray cluster.

python examples/python_handle_async.py --address 127.0.0.1:6379 "a red sailboat" "a blue house"
"""

import argparse
import asyncio
import os
from pathlib import Path
from typing import Any

# Ray reads this variable when it is imported. A local service requires the token that Ray keeps in the home folder.
if (Path.home() / ".ray" / "auth_token").exists():
    os.environ.setdefault("RAY_AUTH_MODE", "token")

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle


async def predict(handle: DeploymentHandle, inputs: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """Returns the finished prediction. It is cancelled if this task ends earlier, or if this process dies."""
    response = handle.predict.remote(inputs, owner=[ray.put(None)])
    try:
        async with asyncio.timeout(timeout_s):
            return dict(await response)
    except BaseException:
        # A timeout or the cancellation of this task does not reach the service.
        response.cancel()
        raise


async def follow(handle: DeploymentHandle, prediction_id: str) -> dict[str, Any]:
    """Prints the status of a prediction whenever it changes, and returns its last state."""
    state: dict[str, Any] = {}
    async for state in handle.options(stream=True).watch.remote(prediction_id):
        print(state["status"], prediction_id)
    return state


async def run(handle: DeploymentHandle, prompts: list[str]) -> None:
    inputs = {"model": "schnell", "num_inference_steps": 4, "megapixels": "0.25", "seed": 1}
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(predict(handle, {**inputs, "prompt": prompt}, 120)) for prompt in prompts]
    for task in tasks:
        prediction = task.result()
        print(prediction["status"], prediction["input"]["prompt"])

    # The second call has the same key, so it returns the prediction of the first one.
    created = await handle.create.remote({**inputs, "prompt": prompts[0]}, idempotency_key=f"example-{os.getpid()}")
    again = await handle.create.remote({**inputs, "prompt": prompts[0]}, idempotency_key=f"example-{os.getpid()}")
    assert again["id"] == created["id"]
    await follow(handle, created["id"])

    unwanted = await handle.create.remote({**inputs, "prompt": prompts[0]}, cancel_after="60s")
    canceled = await handle.cancel.remote(unwanted["id"])
    print(canceled["status"], canceled["id"])
    page = await handle.list.remote()
    print(len(page["results"]), "predictions")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompts", nargs="+")
    parser.add_argument("--address", default="auto", help="address of the Ray cluster, as `scripts/serve` prints it")
    options = parser.parse_args()
    ray.init(address=options.address, logging_level="ERROR", log_to_driver=False)
    asyncio.run(run(serve.get_app_handle("flux"), options.prompts))


if __name__ == "__main__":
    main()
