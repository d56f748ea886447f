"""Signs links to stored files, which can be read with a link and without a token until it expires."""

import base64
import hashlib
import hmac
import re
import time
from collections.abc import Awaitable, Callable, Mapping

from serve.errors import InvalidLink

SIGNATURE_PARAMETER = "signature"
EXPIRY_PARAMETER = "expires"
MAX_DIGITS = 12

_SECONDS = re.compile(rf"[0-9]{{1,{MAX_DIGITS}}}")


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

    async def query(self, key: str) -> str:
        """The query of a link to the file with this key."""
        expiry_s = int((self._now() // self._max_age_s + 2) * self._max_age_s)
        return f"{EXPIRY_PARAMETER}={expiry_s}&{SIGNATURE_PARAMETER}={await self._sign(key, expiry_s)}"

    async def check(self, key: str, query: Mapping[str, str]) -> None:
        """Raises `InvalidLink` unless `query` is one that `query` has returned for this key, and is still valid."""
        expiry = query.get(EXPIRY_PARAMETER, "")
        if not _SECONDS.fullmatch(expiry):
            raise InvalidLink
        signature = await self._sign(key, int(expiry))
        if not hmac.compare_digest(query.get(SIGNATURE_PARAMETER, "").encode(), signature.encode()):
            raise InvalidLink
        if int(expiry) <= self._now():
            raise InvalidLink

    async def _sign(self, key: str, expiry_s: int) -> str:
        if self._key is None:
            self._key = await self._load_key()
        digest = hmac.digest(self._key, f"{expiry_s} {key}".encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")
