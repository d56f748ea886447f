"""Failures that are told again at once for a while: who leads nowhere is not asked for each time."""

from collections import OrderedDict

from serve.errors import PredictionFailed

MAX_REMEMBERED = 1000


class Failures:
    """By name; the time is given by who asks, in seconds of any one clock."""

    def __init__(self, remember_s: float) -> None:
        self._remember_s = remember_s
        self._until_s: OrderedDict[str, tuple[float, PredictionFailed]] = OrderedDict()

    def remember(self, name: str, failure: PredictionFailed, now_s: float) -> None:
        self._until_s[name] = now_s + self._remember_s, failure
        if len(self._until_s) > MAX_REMEMBERED:
            self._until_s.popitem(last=False)

    def tell_again(self, name: str, now_s: float) -> None:
        """Raises what is remembered of `name`."""
        until_s, failure = self._until_s.get(name, (now_s, None))
        if failure is None:
            return
        if now_s < until_s:
            # Not the same one: it would grow with each traceback.
            raise type(failure)(*failure.args)
        del self._until_s[name]
