"""Limits the requests that are sent at once, in total and to each host."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class HostSlots:
    def __init__(self, total: int, per_host: int) -> None:
        self._total = total
        self._per_host = per_host
        self._used: Counter[str] = Counter()

    def free(self, host: str) -> int:
        """How many more requests may be sent to `host` now."""
        return max(0, min(self._per_host - self._used[host], self._total - self._used.total()))

    def busy_hosts(self) -> list[str]:
        """The hosts to which no more requests may be sent now because of their own limit."""
        return [host for host, used in self._used.items() if used >= self._per_host]

    @contextmanager
    def take(self, host: str) -> Iterator[bool]:
        """Takes a slot while the block runs, or yields False if there is none."""
        if not self.free(host):
            yield False
            return
        self._used[host] += 1
        try:
            yield True
        finally:
            self._used[host] -= 1
            if not self._used[host]:
                del self._used[host]
