"""Inputs and a helper for tests that run predictions to their end."""

import asyncio
from collections.abc import Mapping
from typing import Any

from serve.predictions.prediction import Prediction
from tests.app_factory import AppUnderTest

CAT = {"prompt": "a cat", "seed": 7, "num_inference_steps": 2}


async def run_to_end(app: AppUnderTest, inputs: Mapping[str, Any]) -> Prediction:
    """Creates a prediction and returns it once it has ended. Raises `TimeoutError` after 5 seconds."""
    prediction = await app.create(inputs)
    return await asyncio.wait_for(app.service.wait(prediction.id), 5)
