"""Errors as built-in exceptions."""

import pickle

import pytest

from serve import errors
from serve.api.builtin_errors import BUILTIN_ERRORS, to_builtin
from serve.errors import FieldError, InvalidInput, ServiceError

FIELD = (FieldError("prompt", "Field required", "missing"),)

ERRORS: list[tuple[ServiceError, type[Exception]]] = [
    (errors.MalformedBody("not JSON"), ValueError),
    (errors.BodyTooLarge(1), ValueError),
    (errors.InvalidInput(FIELD), ValueError),
    (errors.UnknownVersion("1"), ValueError),
    (errors.IdempotencyKeyReused("a"), ValueError),
    (errors.NotFound("no prediction"), LookupError),
    (errors.NotPermitted("no"), PermissionError),
    (errors.PoolFull("dev", 2.5), RuntimeError),
    (errors.NotReady("starting"), RuntimeError),
    (errors.DatabaseUnavailable("10.0.0.1"), RuntimeError),
    (errors.StorageUnavailable(), RuntimeError),
    (errors.EngineFailed(), RuntimeError),
]


@pytest.mark.parametrize(("error", "builtin"), ERRORS, ids=lambda value: getattr(value, "__name__", None))
def test_errors_are_built_in_ones_after_pickling(error: ServiceError, builtin: type[Exception]) -> None:
    received = pickle.loads(pickle.dumps(to_builtin(error)))
    assert type(received) is builtin
    assert received.args == (str(error),)
    problem = vars(received)["problem"]
    assert (problem["status"], problem["detail"]) == (error.status, str(error))


def test_problem_has_the_invalid_fields_and_when_to_try_again() -> None:
    assert vars(to_builtin(InvalidInput(FIELD)))["problem"]["invalid_fields"][0]["field"] == "input.prompt"
    assert vars(to_builtin(errors.PoolFull("dev", 2.5)))["problem"]["retry_after"] == 3


def test_table_has_only_built_in_errors() -> None:
    assert {error.__module__ for error in BUILTIN_ERRORS.values()} == {"builtins"}
