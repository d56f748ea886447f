"""The prediction and the HTTP request that log messages of a process belong to."""

import logging
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType

from serve import tracing

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the HTTP request that runs; empty in a task that outlives its request."""

prediction_fields: ContextVar[Mapping[str, str]] = ContextVar("prediction_fields", default=MappingProxyType({}))
"""Fields of JSON messages in the tasks of a prediction: its id, its pool, and the request that created it."""


OF_MESSAGES = {"prediction_id", "pool"}
"""Fields that a message about a prediction has itself where the context may be that of another one, or of none."""


def set_prediction(prediction_id: str, request_id: str = "", pool: str = "") -> None:
    """From now on, JSON messages of this context have these fields."""
    prediction_fields.set({"prediction_id": prediction_id, "request_id": request_id, "pool": pool})


class ContextFilter(logging.Filter):
    """Adds the fields of the current context to each record, and `fields` to those of the whole process."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        super().__init__()
        self._fields = dict(fields)

    def filter(self, record: logging.LogRecord) -> bool:
        current = {"request_id": request_id.get(), "trace_id": tracing.trace_id()}
        fields = self._fields | current | dict(prediction_fields.get())
        given = OF_MESSAGES & record.__dict__.keys()
        record.__dict__.update({name: value for name, value in fields.items() if value and name not in given})
        return True
