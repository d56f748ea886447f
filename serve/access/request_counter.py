"""Counts the requests of tokens, in memory and for all processes of the service in the database.

A process decides by its own count and by what the others had counted at the last synchronization, so a token exceeds
its limit at most by what the other processes accept within `SYNC_PERIOD_S`.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable

from sqlalchemy import Connection

from serve.access.request_rate import WINDOW_S, RateState, check_rate
from serve.access.token_rows import Counts, add_requests, delete_requests, read_requests
from serve.database.connection import Database
from serve.errors import DatabaseUnavailable

SYNC_PERIOD_S = 1.0

log = logging.getLogger(__name__)


class RequestCounter:
    """Call `run` in a task of its own. `now` returns seconds since 1970."""

    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._now = now
        self._stored: Counts = {}
        """The counts of all processes at the last synchronization."""
        self._pending = Counter[tuple[str, int]]()
        """The requests since then."""

    def count(self, token_id: str, limit: int) -> RateState:
        """Counts a request if it is allowed."""
        minute, elapsed_s = divmod(self._now(), WINDOW_S)
        current = token_id, int(minute)
        state = check_rate(limit, self._number(token_id, int(minute) - 1), self._number(*current), elapsed_s)
        if state.allowed:
            self._pending[current] += 1
        return state

    async def run(self) -> None:
        """Synchronizes until cancelled."""
        while True:
            await asyncio.sleep(SYNC_PERIOD_S)
            try:
                await self.synchronize()
            except DatabaseUnavailable as error:
                log.warning("the requests of tokens are counted in this process only: %s", error.cause)

    async def synchronize(self) -> None:
        """Stores the requests of this process and reads those of all. Raises `DatabaseUnavailable`."""
        previous = int(self._now() // WINDOW_S) - 1
        added = Counter({key: number for key, number in self._pending.items() if key[1] >= previous})
        token_ids = {token_id for token_id, minute in (*added, *self._stored) if minute >= previous}
        if not token_ids:
            self._stored, self._pending = {}, Counter()
            return

        def read(connection: Connection) -> Counts:
            return read_requests(connection, token_ids, previous)

        def exchange(connection: Connection) -> Counts:
            add_requests(connection, added)
            delete_requests(connection, previous)
            return read(connection)

        self._stored = await (self._database.write(exchange) if added else self._database.read(read))
        self._pending = Counter({key: number for key, number in (self._pending - added).items() if key[1] >= previous})

    def _number(self, token_id: str, minute: int) -> int:
        return self._stored.get((token_id, minute), 0) + self._pending[token_id, minute]
