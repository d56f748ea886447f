"""Errors as built-in exceptions, for callers of the Python handle, which need not have this package."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from serve.api.error_responses import problem_json
from serve.errors import (
    BodyTooLarge,
    IdempotencyKeyReused,
    InvalidInput,
    MalformedBody,
    NotFound,
    NotPermitted,
    ServiceError,
    UnknownVersion,
    public_error,
)

BUILTIN_ERRORS: dict[type[ServiceError], type[Exception]] = {
    InvalidInput: ValueError,
    UnknownVersion: ValueError,
    IdempotencyKeyReused: ValueError,
    MalformedBody: ValueError,
    BodyTooLarge: ValueError,
    NotFound: LookupError,
    NotPermitted: PermissionError,
    ServiceError: RuntimeError,
}
"""The errors that callers get. An error without an entry gets that of its nearest base class."""

log = logging.getLogger(__name__)


@contextmanager
def builtin_errors() -> Iterator[None]:
    """Raises errors of the block as built-in ones, by `BUILTIN_ERRORS`."""
    try:
        yield
    except Exception as error:
        public = public_error(error)
        if public is None:
            log.error("a call of the Python handle failed", exc_info=error)
            public = ServiceError("internal error; the operator's log has the cause")
        raise to_builtin(public) from None


def to_builtin(error: ServiceError) -> Exception:
    """The built-in exception for `error`, with the problem object of the Replicate API in its attribute `problem`."""
    builtin = next(BUILTIN_ERRORS[each] for each in type(error).__mro__ if each in BUILTIN_ERRORS)(str(error))
    # Instance attributes survive pickling, and Ray copies them to the exception that it raises.
    builtin.__dict__["problem"] = problem_json(error)
    return builtin
