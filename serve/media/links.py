"""Signs links to stored files, which can be read with a link and without a token until it expires.

The signature is a part of the path, so that the URL of an image ends with its name: `/links/{ticket}/outputs/...`.
"""

import base64
import hashlib
import hmac
import re
import time
from collections.abc import Awaitable, Callable

from serve.errors import InvalidLink

PREFIX = "/links/"

_TICKET = re.compile(r"(?P<expiry_s>[0-9]{1,12})-(?P<signature>[A-Za-z0-9_-]{43})")


class LinkSigner:
    """Its links are valid for `max_age_s` to twice that time, so that a link does not change with every response.

    `load_key` returns the secret key; it is called once, and again if it raises. `now` returns seconds since 1970.
    """

    def __init__(
        self, load_key: Callable[[], Awaitable[bytes]], max_age_s: float, now: Callable[[], float] = time.time
    ) -> None:
        self._load_key = load_key
        self._max_age_s = max_age_s
        self._now = now
        self._key: bytes | None = None

    async def ticket(self, key: str) -> str:
        """The part of a link that allows to read the file with this key."""
        expiry_s = int((self._now() // self._max_age_s + 2) * self._max_age_s)
        return f"{expiry_s}-{await self._sign(key, expiry_s)}"

    async def check(self, key: str, ticket: str) -> None:
        """Raises `InvalidLink` unless `ticket` is one for this key, and is still valid."""
        match = _TICKET.fullmatch(ticket)
        if match is None:
            raise InvalidLink
        signature = await self._sign(key, int(match["expiry_s"]))
        if not hmac.compare_digest(match["signature"], signature) or int(match["expiry_s"]) <= self._now():
            raise InvalidLink

    async def _sign(self, key: str, expiry_s: int) -> str:
        if self._key is None:
            self._key = await self._load_key()
        digest = hmac.digest(self._key, f"{expiry_s} {key}".encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")
