"""Limits the requests that are sent at once, in total and to each host."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class HostSlots:
    def __init__(self, total: int, per_host: int) -> None:
        self._total = total
        self._per_host = per_host
        self._used: Counter[str] = Counter()
        self._freed = asyncio.Condition()

    def free(self, host: str) -> int:
        """How many more requests may be sent to `host` now."""
        return max(0, min(self._per_host - self._used[host], self._total - self._used.total()))

    def busy_hosts(self) -> list[str]:
        """The hosts to which no more requests may be sent now because of their own limit."""
        return [host for host, used in self._used.items() if used >= self._per_host]

    @asynccontextmanager
    async def take(self, host: str, timeout_s: float) -> AsyncGenerator[bool, None]:
        """Takes a slot while the block runs, or yields False if there is none within `timeout_s`."""
        if not await self._acquire(host, timeout_s):
            yield False
            return
        try:
            yield True
        finally:
            await self._release(host)

    async def _acquire(self, host: str, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s), self._freed:
                await self._freed.wait_for(lambda: self.free(host) > 0)
                self._used[host] += 1
        except TimeoutError:
            return False
        return True

    async def _release(self, host: str) -> None:
        self._used[host] -= 1
        if not self._used[host]:
            del self._used[host]
        async with self._freed:
            self._freed.notify_all()
