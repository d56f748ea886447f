"""Generates images through a Ray Serve handle, without HTTP, from any process on the service's Ray cluster.

python examples/python_handle.py --address 127.0.0.1:6379 "a red sailboat"
"""

import argparse
import base64
import os
import sys
from pathlib import Path
from typing import Any

# Ray reads this variable when it is imported. A local service requires the token that Ray keeps in the home folder.
if (Path.home() / ".ray" / "auth_token").exists():
    os.environ.setdefault("RAY_AUTH_MODE", "token")

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle


def predict(handle: DeploymentHandle, inputs: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """Returns the finished prediction. It is cancelled if this call ends earlier, or if this process dies."""
    # The service cannot read the object that `ray.put` makes when its owner, this process, has died.
    response = handle.predict.remote(inputs, owner=[ray.put(None)])
    try:
        return dict(response.result(timeout_s=timeout_s))
    except BaseException:
        # A timeout here does not reach the service.
        response.cancel()
        raise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt")
    parser.add_argument("--address", default="auto", help="address of the Ray cluster, as `scripts/serve` prints it")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the image files")
    options = parser.parse_args()
    ray.init(address=options.address, logging_level="ERROR", log_to_driver=False)
    handle = serve.get_app_handle("flux")
    inputs = {"prompt": options.prompt, "model": "schnell", "num_inference_steps": 4, "megapixels": "0.25", "seed": 1}

    # Errors are built-in exceptions. `problem` is what the HTTP API answers.
    try:
        prediction = predict(handle, inputs, timeout_s=120)
    except (ValueError, RuntimeError) as error:
        sys.exit(getattr(error, "problem", {}).get("detail", "the service was lost"))
    if prediction["status"] != "succeeded":
        sys.exit(prediction["error"])
    for index, uri in enumerate(prediction["output"]):
        file = options.out / f"out-{index}.webp"
        file.write_bytes(base64.b64decode(uri.partition(",")[2]))
        print(file)

    # `stream` yields the prediction after every change, from `starting` to its end.
    for state in handle.options(stream=True).stream.remote(inputs, owner=[ray.put(None)]):
        print(state["status"], state["logs"].splitlines()[-1])

    # A prediction that is created goes on without its caller, and any process can wait for it.
    created = handle.create.remote(inputs).result(timeout_s=30)
    ended = handle.wait.remote(created["id"], timeout_s=120).result()
    print(ended["status"], ended["id"])


if __name__ == "__main__":
    main()
