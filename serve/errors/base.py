"""The base class of the errors that callers get."""

from typing import NamedTuple


class FieldError(NamedTuple):
    """One invalid field. `kind` is a short identifier for programs, in pydantic's style."""

    field: str
    message: str
    kind: str = "value_error"


class ServiceError(Exception):
    """Base class. `status` is the HTTP status, `title` the title in `application/problem+json`."""

    status = 500
    title = "Internal server error"
    retry_after_s: float | None = None
    """Seconds after which a retry makes sense, or None."""
