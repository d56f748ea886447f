"""Finds the caller of a request by its token, and counts its requests."""

import asyncio
import contextvars
import hmac
import time
from collections.abc import Callable
from typing import NamedTuple

from pydantic import SecretStr

from serve.access.caller import OPERATOR, Caller
from serve.access.request_counter import RequestCounter
from serve.access.request_rate import RateState
from serve.access.token import Token, parse_token
from serve.access.token_rows import read_token
from serve.database.connection import Database
from serve.database.patience import with_patience
from serve.errors import Unauthenticated

CACHE_S = 5.0
"""A revoked token is accepted for this long."""
MAX_CACHED = 10_000

_SCHEMES = ("bearer", "token")


class _CachedToken(NamedTuple):
    token: Token | None
    read_s: float


class AccessControl:
    """`clock` returns seconds. Call `run` of the `RequestCounter` in a task of its own."""

    def __init__(
        self,
        operator_token: SecretStr | None,
        database: Database,
        counter: RequestCounter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._operator_token = operator_token
        self._database = database
        self._counter = counter
        self._clock = clock
        self._cache: dict[str, _CachedToken] = {}
        """By the id of the token, the oldest entry first; also of unknown ids."""
        self._reading: dict[str, asyncio.Task[Token | None]] = {}

    async def find_caller(self, authorization: str | None) -> Caller:
        """The caller with this `Authorization` header. Raises `Unauthenticated` and `DatabaseUnavailable`."""
        scheme, _, credentials = (authorization or "").partition(" ")
        if scheme.lower() not in _SCHEMES:
            raise Unauthenticated
        text = credentials.strip()
        if self._is_operator(text):
            return OPERATOR
        parsed = parse_token(text)
        token = None if parsed is None else await self._token(parsed[0])
        if parsed is None or token is None or not token.is_valid(parsed[1]):
            raise Unauthenticated
        return token.caller

    def count_request(self, caller: Caller) -> RateState | None:
        """Counts a request if it is allowed; None if the caller has no limit."""
        if caller.requests_per_minute is None:
            return None
        return self._counter.count(caller.owner, caller.requests_per_minute)

    def _is_operator(self, text: str) -> bool:
        if self._operator_token is None:
            return False
        return hmac.compare_digest(text.encode(), self._operator_token.get_secret_value().encode())

    async def _token(self, token_id: str) -> Token | None:
        cached = self._cache.get(token_id)
        if cached is not None and self._clock() < cached.read_s + CACHE_S:
            return cached.token
        # Many requests at once share one query, which goes on if one of them is cancelled.
        reading = self._reading.get(token_id)
        if reading is None:
            reading = asyncio.get_running_loop().create_task(self._read(token_id), context=contextvars.Context())
            self._reading[token_id] = reading
            reading.add_done_callback(lambda _: self._reading.pop(token_id, None))
        return await asyncio.shield(reading)

    async def _read(self, token_id: str) -> Token | None:
        now_s = self._clock()
        token = await with_patience(lambda: self._database.read(lambda connection: read_token(connection, token_id)))
        self._cache.pop(token_id, None)
        self._cache[token_id] = _CachedToken(token, now_s)
        if len(self._cache) > MAX_CACHED:
            del self._cache[next(iter(self._cache))]
        return token
