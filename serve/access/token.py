"""Tokens: `flux_`, the id of the token, `_`, and a secret of 256 random bits.

The database has the hash of the secret only. A fast hash is enough, because the secret cannot be guessed.
"""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import datetime

from serve.access.caller import Caller, Scope

_FORMAT = re.compile(r"flux_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is stored."""

    id: str
    digest: str
    """SHA-256 of the secret in hexadecimal digits."""
    name: str
    scope: Scope
    requests_per_minute: int | None
    max_in_flight: int | None
    created_at: datetime
    revoked_at: datetime | None = None

    @property
    def caller(self) -> Caller:
        return Caller(self.id, self.scope, self.max_in_flight, self.requests_per_minute)

    def is_valid(self, secret: str) -> bool:
        return hmac.compare_digest(_digest(secret), self.digest) and self.revoked_at is None


def new_token(
    name: str, scope: Scope, requests_per_minute: int | None, max_in_flight: int | None, created_at: datetime
) -> tuple[Token, str]:
    """A new token, and the text that its caller sends. The text cannot be computed from the token."""
    token_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    token = Token(token_id, _digest(secret), name, scope, requests_per_minute, max_in_flight, created_at)
    return token, f"flux_{token_id}_{secret}"


def parse_token(text: str) -> tuple[str, str] | None:
    """The id and the secret in `text`, or None if it is no token of this service."""
    match = _FORMAT.fullmatch(text)
    return None if match is None else (match[1], match[2])


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
