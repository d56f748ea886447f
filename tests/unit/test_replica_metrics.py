from dataclasses import replace
from typing import Any

from serve import telemetry
from serve.engine.batch_executor import PassTime
from serve.engine.engine_stats import EngineStats
from serve.replica_metrics import ReplicaMetrics
from tests.metrics import RecordedMetrics

POOL = "dev-bf16"
WARMED_UP = EngineStats(
    batches=3,
    image_steps=3,
    images=0,
    lora_loads=0,
    resident_loras=0,
    lora_slots=16,
    lora_slots_used=0,
    prompt_cache_hits=0,
    prompt_cache_misses=1,
    compiled_graphs=4,
)


class FakeEngine:
    def __init__(self) -> None:
        self.stats = WARMED_UP
        self.passes = [PassTime(9.0, 1, 512 * 512)]
        self.memory: dict[str, int] = {}

    def take_pass_times(self) -> list[PassTime]:
        taken, self.passes = self.passes, []
        return taken

    def memory_bytes(self) -> dict[str, int]:
        return self.memory


def make(engine: Any) -> ReplicaMetrics:
    return ReplicaMetrics(engine, POOL)


def test_warm_up_is_not_counted(metrics: RecordedMetrics) -> None:
    make(FakeEngine()).update()
    assert not metrics.observations[telemetry.STEP_SECONDS.name]
    assert metrics.values[telemetry.STEPS.name] == {(POOL,): 0}
    assert metrics.values[telemetry.PROMPTS.name] == {(POOL, "hit"): 0, (POOL, "miss"): 0}


def test_update_records_what_happened_since_the_last_one(metrics: RecordedMetrics) -> None:
    engine = FakeEngine()
    replica = make(engine)
    for _ in range(2):
        stats = engine.stats
        engine.passes = [PassTime(0.25, 3, 1024 * 1024), PassTime(0.1, 1, 512 * 512)]
        engine.stats = replace(
            stats,
            image_steps=stats.image_steps + 4,
            lora_loads=stats.lora_loads + 1,
            prompt_cache_hits=stats.prompt_cache_hits + 2,
            prompt_cache_misses=stats.prompt_cache_misses + 1,
        )
        replica.update()
    replica.update()
    assert metrics.value(telemetry.STEPS, POOL) == 8
    assert metrics.value(telemetry.LORA_LOADS, POOL) == 2
    assert metrics.value(telemetry.PROMPTS, POOL, "hit") == 4
    assert metrics.value(telemetry.PROMPTS, POOL, "miss") == 2
    assert metrics.observed(telemetry.STEP_SECONDS, POOL, "1", "3-4") == [0.25, 0.25]
    assert metrics.observed(telemetry.STEP_SECONDS, POOL, "0.25", "1") == [0.1, 0.1]


def test_update_records_the_state(metrics: RecordedMetrics) -> None:
    engine = FakeEngine()
    engine.stats = replace(WARMED_UP, resident_loras=2, lora_slots_used=12)
    engine.memory = {"allocated": 100, "total": 1000}
    make(engine).update()
    assert metrics.value(telemetry.LORAS, POOL) == 2
    assert metrics.values[telemetry.LORA_SLOTS.name] == {(POOL, "used"): 12, (POOL, "total"): 16}
    assert metrics.value(telemetry.COMPILED_GRAPHS, POOL) == 4
    assert metrics.values[telemetry.GPU_MEMORY.name] == {(POOL, "allocated"): 100, (POOL, "total"): 1000}


def test_stages_of_the_start_are_recorded(metrics: RecordedMetrics) -> None:
    make(FakeEngine()).record_start({"imports": 4.0, "warm-up": 20.0})
    assert metrics.values[telemetry.START_SECONDS.name] == {(POOL, "imports"): 4, (POOL, "warm-up"): 20}
