"""Parts of a checkpoint that fail when they are told to, and are the real ones else."""

from collections.abc import Callable
from typing import Any

Condition = Callable[..., bool]


class Faulty:
    """Stands before a part; a call of it, or of its method `method`, fails while `condition` holds of the arguments."""

    def __init__(self, part: Any, condition: Condition, error: Exception, method: str = "__call__") -> None:
        self._part = part
        self._condition = condition
        self._error = error
        self._method = method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._guarded("__call__", self._part)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._guarded(name, getattr(self._part, name))

    def _guarded(self, name: str, original: Any) -> Any:
        if name != self._method:
            return original

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._condition(*args, **kwargs):
                raise self._error
            return original(*args, **kwargs)

        return call


def first_call() -> Condition:
    """Holds once."""
    calls = iter((True,))
    return lambda *_, **__: next(calls, False)
