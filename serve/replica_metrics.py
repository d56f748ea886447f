"""Records the metrics of a replica. The engine only counts; every few seconds, a thread reads its counts."""

import logging
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from serve import telemetry
from serve.engine.engine_stats import EngineStats
from serve.telemetry import batch_label, size_label

if TYPE_CHECKING:
    from serve.engine.engine import Engine

PERIOD_S = 5.0

log = logging.getLogger(__name__)


class ReplicaMetrics:
    """Of the replica of `pool` that has `engine`. What the engine has counted so far, in its warm-up, is left out."""

    def __init__(self, engine: "Engine", pool: str) -> None:
        self._engine = engine
        self._pool = pool
        self._stats = engine.stats
        engine.take_pass_times()
        self._record_counters(self._stats, self._stats)

    def start(self) -> None:
        """Calls `update` every `PERIOD_S` until the process ends."""
        threading.Thread(target=self._run, name="metrics", daemon=True).start()

    def record_start(self, stages_s: Mapping[str, float]) -> None:
        """Records the durations of the stages of the replica's start."""
        for stage, seconds in stages_s.items():
            telemetry.START_SECONDS.set(seconds, pool=self._pool, stage=stage)

    def update(self) -> None:
        """Records what the engine has done since the last call, and its state."""
        pool = self._pool
        for each in self._engine.take_pass_times():
            telemetry.STEP_SECONDS.observe(
                each.seconds, pool=pool, megapixels=size_label(each.pixels), batch=batch_label(each.images)
            )
        stats, previous = self._engine.stats, self._stats
        self._stats = stats
        self._record_counters(stats, previous)
        telemetry.LORAS.set(stats.resident_loras, pool=pool)
        telemetry.LORA_SLOTS.set(stats.lora_slots_used, pool=pool, kind="used")
        telemetry.LORA_SLOTS.set(stats.lora_slots, pool=pool, kind="total")
        telemetry.COMPILED_GRAPHS.set(stats.compiled_graphs, pool=pool)
        for kind, size_bytes in self._engine.memory_bytes().items():
            telemetry.GPU_MEMORY.set(size_bytes, pool=pool, kind=kind)

    def _record_counters(self, stats: EngineStats, previous: EngineStats) -> None:
        pool = self._pool
        telemetry.STEPS.add(stats.image_steps - previous.image_steps, pool=pool)
        telemetry.LORA_LOADS.add(stats.lora_loads - previous.lora_loads, pool=pool)
        telemetry.PROMPTS.add(stats.prompt_cache_hits - previous.prompt_cache_hits, pool=pool, result="hit")
        telemetry.PROMPTS.add(stats.prompt_cache_misses - previous.prompt_cache_misses, pool=pool, result="miss")

    def _run(self) -> None:
        while True:
            time.sleep(PERIOD_S)
            try:
                self.update()
            except Exception:
                log.exception("the metrics of the replica are not recorded")
