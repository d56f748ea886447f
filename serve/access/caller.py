"""Who makes a request, and what the caller may do."""

from dataclasses import dataclass
from typing import Literal, get_args

from serve.errors import NotPermitted

Scope = Literal["read", "run", "admin"]
"""Each scope includes those before it.

`read` lists and gets, `run` creates, cancels and uploads too, and `admin` does so for the predictions of all callers.
"""
SCOPES: tuple[Scope, ...] = get_args(Scope)

NO_OWNER = ""
"""The owner of what was created without a token, or with the operator's."""


@dataclass(frozen=True, slots=True)
class Caller:
    owner: str = NO_OWNER
    """The id of the token: callers see what has the same owner."""
    scope: Scope = "run"
    max_in_flight: int | None = None
    """How many unfinished predictions the owner may have; None means as many as the pools accept."""
    requests_per_minute: int | None = None

    @property
    def visible_owner(self) -> str | None:
        """The owner of what the caller sees; None means that it sees everything."""
        return None if self.scope == "admin" else self.owner

    def may_see(self, owner: str) -> bool:
        return self.visible_owner in (None, owner)

    def check_scope(self, needed: Scope) -> None:
        """Raises `NotPermitted` if the caller's scope does not include `needed`."""
        if SCOPES.index(self.scope) < SCOPES.index(needed):
            raise NotPermitted(f"this token has the scope {self.scope!r}; the request needs {needed!r}")


ANONYMOUS = Caller()
"""The caller of code in this process. It sees what has no owner."""

OPERATOR = Caller(scope="admin")
"""The caller with the operator's token, and every caller of a service that requires no token."""
