"""The text of a token, and its check."""

from dataclasses import replace

import pytest

from serve.access.caller import Caller
from serve.access.token import new_token, parse_token
from tests.fakes import NOON


def test_text_has_the_id_and_the_secret() -> None:
    token, text = new_token("studio", "read", 60, 4, NOON)
    parsed = parse_token(text)
    assert parsed is not None
    token_id, secret = parsed
    assert token_id == token.id
    assert token.is_valid(secret)
    assert token.caller == Caller(token.id, "read", 4, 60)


def test_secret_is_not_stored() -> None:
    token, text = new_token("studio", "run", None, None, NOON)
    assert text.rpartition("_")[2] not in repr(token)
    assert new_token("studio", "run", None, None, NOON)[1] != text


def test_other_secrets_and_revoked_tokens_are_not_valid() -> None:
    token, text = new_token("studio", "run", None, None, NOON)
    _, other = new_token("studio", "run", None, None, NOON)
    parsed, parsed_other = parse_token(text), parse_token(other)
    assert parsed is not None
    assert parsed_other is not None
    assert not token.is_valid(parsed_other[1])
    assert not replace(token, revoked_at=NOON).is_valid(parsed[1])


@pytest.mark.parametrize("text", ["", "secret", "flux_", "flux_0123456789abcdef_", "flux_0123456789abcdef_" + "ä" * 43])
def test_other_texts_are_no_tokens(text: str) -> None:
    assert parse_token(text) is None
    assert parse_token(f"{new_token('x', 'run', None, None, NOON)[1]}\n") is None
