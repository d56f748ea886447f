"""Manages the LoRAs resident on the device: the least recently used are evicted, those in use are pinned."""

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from types import MappingProxyType

from serve.engine.kronecker import KroneckerSlots
from serve.engine.lora_layers import LoraSlots, SlotSelection
from serve.engine.lora_storage import Allocate, StagedLora, pageable_memory
from serve.engine.request import LoraRequest
from serve.errors import LorasMissing, LorasTooLarge
from serve.lora.weights import LoraWeights, LowRank

LoraScales = tuple[tuple[str, float], ...]
"""Keys of LoRAs, sorted, each with its scale."""


@dataclass(frozen=True, slots=True, eq=False)
class ActiveLoras:
    """The LoRAs of a request, pinned until they are released."""

    scales: LoraScales = ()
    clip_scales: LoraScales = ()
    """Those that adapt CLIP."""
    selection: SlotSelection | None = None


NO_LORAS = ActiveLoras()


@dataclass(frozen=True, slots=True)
class _Resident:
    slots: tuple[int, ...]
    """Those of low-rank matrices."""
    layers: frozenset[str]
    adapts_clip: bool
    kronecker_slots: tuple[int, ...]
    kroneckers: Mapping[str, KroneckerSlots]
    """By layer."""

    @property
    def all_slots(self) -> tuple[int, ...]:
        return self.slots + self.kronecker_slots


class LoraManager:
    """Loads LoRAs into the slots of a checkpoint and evicts them. Belongs to the engine's thread."""

    def __init__(self, slots: LoraSlots) -> None:
        self.slots = slots
        self._free_slots = list(range(1, slots.count + 1))
        self._residents: OrderedDict[str, _Resident] = OrderedDict()
        """Least recently used first."""
        self._pins: Counter[str] = Counter()
        self.loads = 0
        """LoRAs copied to the device since the start."""

    @property
    def residents(self) -> int:
        """LoRAs on the device."""
        return len(self._residents)

    @property
    def slots_used(self) -> int:
        return self.slots.count - len(self._free_slots)

    def are_resident(self, loras: Iterable[LoraRequest]) -> bool:
        """Whether all `loras` are on the device; those with scale 0 are not needed."""
        return dict(_sum_scales(loras)).keys() <= self._residents.keys()

    def is_resident(self, key: str) -> bool:
        """May be called from any thread."""
        return key in self._residents

    def can_acquire(
        self,
        loras: Iterable[LoraRequest],
        weights: Mapping[str, LoraWeights],
        staged: Mapping[str, "Future[StagedLora]"] = MappingProxyType({}),
    ) -> bool:
        """Whether `acquire` can load `loras` now. Changes nothing.

        False while other requests pin the slots that they need, or while they are being converted. Raises
        `LorasMissing` and `LorasTooLarge`.
        """
        return self._plan(_sum_scales(loras), weights, staged) is not None

    def acquire(
        self,
        loras: Iterable[LoraRequest],
        weights: Mapping[str, LoraWeights],
        staged: Mapping[str, "Future[StagedLora]"] = MappingProxyType({}),
    ) -> ActiveLoras | None:
        """Pins `loras`, loading those that are not resident from `weights`. Call `release` with the result.

        Those in `staged` are converted already, or will be. The scales of a LoRA that is listed twice add up; a LoRA
        with scale 0 is ignored. Returns None if `can_acquire` is false, and raises its errors, and ValueError for
        weights that do not fit the checkpoint.
        """
        scales = _sum_scales(loras)
        if not scales:
            return NO_LORAS
        plan = self._plan(scales, weights, staged)
        if plan is None:
            return None
        to_load, to_evict = plan
        for key in to_evict:
            self._free_slots.extend(self._residents.pop(key).all_slots)
        for key in to_load:
            self._load(key, weights[key], staged.get(key))
        for key, _ in scales:
            self._pins[key] += 1
            self._residents.move_to_end(key)
        return self._build_active_loras(scales)

    def release(self, active_loras: ActiveLoras) -> None:
        self._pins -= Counter(key for key, _ in active_loras.scales)

    def _plan(
        self, scales: LoraScales, weights: Mapping[str, LoraWeights], staged: Mapping[str, "Future[StagedLora]"]
    ) -> tuple[list[str], list[str]] | None:
        """The keys of the LoRAs to load and of those to evict; None if that is impossible for now."""
        to_load = [key for key, _ in scales if key not in self._residents]
        if missing := tuple(key for key in to_load if key not in weights):
            raise LorasMissing(missing)
        to_evict = self._find_evictions(sum(weights[key].slots for key in to_load), {key for key, _ in scales})
        is_staged = all(staged[key].done() for key in to_load if key in staged)
        return (to_load, to_evict) if is_staged and to_evict is not None else None

    def _find_evictions(self, slots: int, needed: set[str]) -> list[str] | None:
        """As few LoRAs as `slots` free slots require; None if that is impossible for now."""
        kept = sum(len(resident.all_slots) for key, resident in self._residents.items() if key in needed)
        if kept + slots > self.slots.count:
            raise LorasTooLarge(kept + slots, self.slots.count)
        evicted, free = [], len(self._free_slots)
        for key, resident in self._residents.items():
            if free < slots and key not in needed and not self._pins[key]:
                evicted.append(key)
                free += len(resident.all_slots)
        return evicted if free >= slots else None

    def _load(self, key: str, weights: LoraWeights, staged: "Future[StagedLora] | None") -> None:
        taken = self._free_slots[: weights.slots]
        slots, kronecker_slots = taken[: weights.low_rank_slots], taken[weights.low_rank_slots :]
        self.slots.load(slots, staged.result() if staged else stage_weights(self.slots, weights))
        kroneckers = self.slots.write_kroneckers(kronecker_slots, weights.kroneckers)
        del self._free_slots[: weights.slots]
        layers = frozenset(_layer_matrices(weights))
        adapts_clip = any(name.startswith("clip.") for name in (*layers, *kroneckers))
        self._residents[key] = _Resident(tuple(slots), layers, adapts_clip, tuple(kronecker_slots), kroneckers)
        self.loads += 1

    def _build_active_loras(self, scales: LoraScales) -> ActiveLoras:
        residents = [(self._residents[key], key, scale) for key, scale in scales]
        slot_scales = {slot: scale for resident, _, scale in residents for slot in resident.slots}
        layers = frozenset[str]().union(*(resident.layers for resident, _, _ in residents))
        clip_scales = tuple((key, scale) for resident, key, scale in residents if resident.adapts_clip)
        kroneckers = defaultdict[str, list[tuple[KroneckerSlots, float]]](list)
        for resident, _, scale in residents:
            for layer, kronecker in resident.kroneckers.items():
                kroneckers[layer].append((kronecker, scale))
        return ActiveLoras(scales, clip_scales, SlotSelection(slot_scales, layers, dict(kroneckers)))


def stage_weights(slots: LoraSlots, weights: LoraWeights, allocate: Allocate = pageable_memory) -> StagedLora:
    """Converts the low-rank matrices of a LoRA to the layout of `slots`. May run on any thread.

    Raises ValueError for weights that do not fit the checkpoint.
    """
    return slots.stage(weights.low_rank_slots, _layer_matrices(weights), allocate)


def _layer_matrices(weights: LoraWeights) -> dict[str, LowRank]:
    """By network and layer, as in `transformer.x_embedder`."""
    return {
        f"{network}.{layer}": matrix
        for network, layers in (("transformer", weights.transformer), ("clip", weights.clip))
        for layer, matrix in layers.items()
    }


def _sum_scales(loras: Iterable[LoraRequest]) -> LoraScales:
    scales: dict[str, float] = {}
    for lora in loras:
        scales[lora.key] = scales.get(lora.key, 0.0) + lora.scale
    return tuple(sorted((key, scale) for key, scale in scales.items() if scale))
