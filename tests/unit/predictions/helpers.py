"""Inputs, and helpers for tests that run predictions to their end or look at statements of SQL."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event

from serve.predictions.prediction import Prediction
from tests.app_factory import AppUnderTest

Statement = tuple[str, Any]
"""SQL and its parameters."""
CAT = {"prompt": "a cat", "seed": 7, "num_inference_steps": 2}


async def run_to_end(app: AppUnderTest, inputs: Mapping[str, Any]) -> Prediction:
    """Creates a prediction and returns it once it has ended. Raises `TimeoutError` after 5 seconds."""
    prediction = await app.create(inputs)
    return await asyncio.wait_for(app.service.wait(prediction.id), 5)


@contextmanager
def recorded_statements() -> Iterator[list[Statement]]:
    """The statements that are executed while the block runs, without the begin of transactions."""
    statements: list[Statement] = []

    def record(_connection: object, _cursor: object, sql: str, parameters: Any, *_: object) -> None:
        if not sql.startswith("BEGIN"):
            statements.append((sql, parameters))

    event.listen(Engine, "before_cursor_execute", record)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", record)
