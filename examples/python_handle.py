"""Generates images through a Ray Serve handle, without HTTP, from any process on the service's Ray cluster.

python examples/python_handle.py --address 127.0.0.1:6379 "a red sailboat"
"""

import argparse
import base64
import sys
from pathlib import Path

import ray
from ray import serve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt")
    parser.add_argument("--address", default="auto", help="address of the Ray cluster, as `scripts/serve` prints it")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the image files")
    options = parser.parse_args()
    ray.init(address=options.address, logging_level="ERROR", log_to_driver=False)
    handle = serve.get_app_handle("flux")
    inputs = {"prompt": options.prompt, "model": "schnell", "num_inference_steps": 4, "megapixels": "0.25", "seed": 1}

    # `predict` returns the finished prediction. Cancelling the call cancels the prediction.
    prediction = handle.predict.remote(inputs).result(timeout_s=120)
    if prediction["status"] != "succeeded":
        sys.exit(prediction["error"])
    for index, uri in enumerate(prediction["output"]):
        file = options.out / f"out-{index}.webp"
        file.write_bytes(base64.b64decode(uri.partition(",")[2]))
        print(file)

    # `stream` yields the prediction after every change, from `starting` to its end.
    for state in handle.options(stream=True).stream.remote(inputs):
        print(state["status"], state["logs"].splitlines()[-1])


if __name__ == "__main__":
    main()
