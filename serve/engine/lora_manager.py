"""Manages the LoRAs resident on the device: least recently used ones are evicted, LoRAs in use are pinned."""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from serve.engine.lora_slots import LoraSlots, SlotSelection
from serve.errors import LorasMissing, LorasTooLarge
from serve.lora.weights import LoraWeights
from serve.plan import PlannedLora

Scales = tuple[tuple[str, float], ...]
"""Keys of LoRAs, sorted, with the scale of each."""


@dataclass(frozen=True, slots=True, eq=False)
class ActiveLoras:
    """The LoRAs of a job, which stay on the device until it leaves them."""

    scales: Scales = ()
    text_scales: Scales = ()
    """Those of them that act on CLIP."""
    selection: SlotSelection | None = None


NO_LORAS = ActiveLoras()


@dataclass(frozen=True, slots=True)
class _Resident:
    rows: tuple[int, ...]
    layers: frozenset[str]
    reads_text: bool


class LoraManager:
    """LoRAs by key in the rows of a bank."""

    def __init__(self, bank: LoraSlots) -> None:
        self._bank = bank
        self._free = list(range(1, bank.count + 1))
        self._residents: OrderedDict[str, _Resident] = OrderedDict()
        """Those used last stand last."""
        self._pins: Counter[str] = Counter()
        self.keys: frozenset[str] = frozenset()
        """The LoRAs on the device; may be read from any thread."""
        self.loads = 0
        """LoRAs that were brought since the start."""

    def are_resident(self, uses: Iterable[PlannedLora]) -> bool:
        """Whether all that `uses` need lies on the device."""
        return dict(_summed(uses)).keys() <= self._residents.keys()

    def acquire(self, uses: Iterable[PlannedLora], carried: Mapping[str, LoraWeights]) -> ActiveLoras | None:
        """What a job with these `uses` draws with, copied out of what it carried if need be; to be left in the end.

        The same LoRA twice adds up, and one at scale 0 is none. None while others use the room that it needs. Raises
        LorasMissing and LorasTooLarge, and ValueError for weights that do not fit the checkpoint.
        """
        scales = _summed(uses)
        if not scales:
            return NO_LORAS
        missing = [key for key, _ in scales if key not in self._residents]
        if lacking := tuple(key for key in missing if key not in carried):
            raise LorasMissing(lacking)
        if not self._make_room(sum(carried[key].rank for key in missing), {key for key, _ in scales}):
            return None
        for key in missing:
            self._bring(key, carried[key])
        for key, _ in scales:
            self._pins[key] += 1
            self._residents.move_to_end(key)
        return self._mix(scales)

    def release(self, mix: ActiveLoras) -> None:
        self._pins -= Counter(key for key, _ in mix.scales)

    def _make_room(self, rank: int, needed: set[str]) -> bool:
        """Lets go as few as must go for `rank` rows, and nobody if that is not enough."""
        kept = sum(len(resident.rows) for key, resident in self._residents.items() if key in needed)
        if kept + rank > self._bank.count:
            raise LorasTooLarge(kept + rank, self._bank.count)
        going, room = [], len(self._free)
        for key, resident in self._residents.items():
            if room < rank and key not in needed and not self._pins[key]:
                going.append(key)
                room += len(resident.rows)
        if room < rank:
            return False
        for key in going:
            self._free.extend(self._residents.pop(key).rows)
        self._publish()
        return True

    def _bring(self, key: str, weights: LoraWeights) -> None:
        matrices = {
            f"{network}.{layer}": matrix
            for network, layers in (("transformer", weights.transformer), ("clip", weights.clip))
            for layer, matrix in layers.items()
        }
        rows = self._free[: weights.rank]
        self._bank.write(rows, matrices)
        del self._free[: weights.rank]
        self._residents[key] = _Resident(tuple(rows), frozenset(matrices), bool(weights.clip))
        self.loads += 1
        self._publish()

    def _mix(self, scales: Scales) -> ActiveLoras:
        residents = [(self._residents[key], key, scale) for key, scale in scales]
        gains = {row: scale for resident, _, scale in residents for row in resident.rows}
        layers = frozenset[str]().union(*(resident.layers for resident, _, _ in residents))
        text_scales = tuple((key, scale) for resident, key, scale in residents if resident.reads_text)
        return ActiveLoras(scales, text_scales, self._bank.select(gains, layers))

    def _publish(self) -> None:
        self.keys = frozenset(self._residents)


def _summed(uses: Iterable[PlannedLora]) -> Scales:
    scales: dict[str, float] = {}
    for use in uses:
        scales[use.key] = scales.get(use.key, 0.0) + use.scale
    return tuple(sorted((key, scale) for key, scale in scales.items() if scale))
