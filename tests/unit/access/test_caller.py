"""Scopes, and who sees what."""

import pytest

from serve.access.caller import ANONYMOUS, OPERATOR, Caller, Scope
from serve.errors import NotPermitted


@pytest.mark.parametrize(
    ("scope", "allowed"), [("read", ["read"]), ("run", ["read", "run"]), ("admin", ["read", "run", "admin"])]
)
def test_scope_includes_those_before_it(scope: Scope, allowed: list[Scope]) -> None:
    needed: Scope
    for needed in ("read", "run", "admin"):
        if needed in allowed:
            Caller("a", scope).check_scope(needed)
        else:
            with pytest.raises(NotPermitted, match=needed):
                Caller("a", scope).check_scope(needed)


def test_only_admins_see_what_others_own() -> None:
    assert Caller("a").may_see("a")
    assert not Caller("a").may_see("b")
    assert not Caller("a").may_see("")
    assert not ANONYMOUS.may_see("a")
    assert Caller("a", "admin").may_see("b")
    assert OPERATOR.may_see("a")
