"""What a replica's process is started with."""

import pytest

from serve.deployment import replica_environment
from serve.settings import PoolSettings


@pytest.mark.parametrize("threads", [1, 8])
def test_a_replica_has_the_threads_of_its_row_and_none_that_spins(threads: int) -> None:
    environment = replica_environment(PoolSettings(model="", device="cuda", num_threads=threads))
    assert environment == {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}


def test_on_a_cpu_the_memory_of_a_step_is_kept_for_the_next() -> None:
    kept = replica_environment(PoolSettings(model="", device="cpu")).keys() - {"OMP_NUM_THREADS", "OMP_WAIT_POLICY"}
    assert kept == {"MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}
