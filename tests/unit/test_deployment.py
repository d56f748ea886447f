"""The environment of replica processes, and the number of ingress replicas."""

import pytest

from serve.deployment import ingress_size, replica_environment
from serve.settings import PoolSettings, Scaling, Settings


def test_default_number_of_threads_is_left_to_the_node_of_the_replica() -> None:
    assert replica_environment(PoolSettings(model="", device="cuda")) == {"OMP_WAIT_POLICY": "PASSIVE"}


@pytest.mark.parametrize("threads", [1, 8])
def test_replica_has_the_threads_of_its_pool_and_they_do_not_spin(threads: int) -> None:
    environment = replica_environment(PoolSettings(model="", device="cuda", num_threads=threads))
    assert environment == {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}


def test_cpu_replica_keeps_freed_memory() -> None:
    malloc = replica_environment(PoolSettings(model="", device="cpu")).keys() - {"OMP_NUM_THREADS", "OMP_WAIT_POLICY"}
    assert malloc == {"MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}


def test_ingress_has_a_number_of_replicas_or_scales() -> None:
    assert ingress_size(Settings(ingress_replicas=3)) == {"num_replicas": 3}
    scaled = ingress_size(Settings(ingress_scaling=Scaling(max_replicas=5)))
    assert scaled["autoscaling_config"]["max_replicas"] == 5
    assert scaled.keys() == {"autoscaling_config"}
