"""Reads engine counters and replica counts of a service's Ray cluster from a separate process.

A process that has joined a Ray cluster keeps threads that reconnect to it, so the test process joins none.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve

from serve.launch.subprocess_service import ROOT, LocalService
from serve.lora_cache_actor import LoraCacheActor
from serve.lora_cache_client import NAMESPACE
from serve.settings import Settings


class Probe:
    """Sends commands to a process that has joined the cluster."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def stats(self, pool: str) -> dict[str, Any]:
        """Engine counters of a pool with one replica."""
        return dict(self._call("stats", pool))

    def replicas(self, pool: str) -> int:
        """Number of running replicas of a pool."""
        return int(self._call("replicas", pool))

    def lora_caches(self) -> int:
        """Number of LoRA cache actors."""
        return int(self._call("lora_caches"))

    def start_idle_lora_cache(self) -> None:
        """Starts another LoRA cache actor, which exits after one second without requests."""
        self._call("start_idle_lora_cache")

    def kill_lora_caches(self) -> int:
        """Kills all LoRA cache actors without cleanup, as a crash would. Returns how many there were."""
        return int(self._call("kill_lora_caches"))

    def _call(self, command: str, argument: str = "") -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([command, argument]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@contextmanager
def start_probe(service: LocalService, environment: Mapping[str, str]) -> Iterator[Probe]:
    command = [sys.executable, "-m", "tests.cluster.probe", service.ray_address]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Probe(process)
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)


def _execute(command: str, pool: str) -> Any:
    if command == "stats":
        return serve.get_deployment_handle(pool, "flux").stats.remote().result(timeout_s=60)
    if command == "lora_caches":
        return len(_lora_caches())
    if command == "start_idle_lora_cache":
        return _start_idle_lora_cache()
    if command == "kill_lora_caches":
        return _kill_lora_caches()
    return serve.status().applications["flux"].deployments[pool].replica_states.get("RUNNING", 0)


def _lora_caches() -> list[str]:
    actors = ray.util.list_named_actors(all_namespaces=True)
    return [actor["name"] for actor in actors if actor["namespace"] == NAMESPACE]


def _start_idle_lora_cache() -> None:
    options = {"name": "idle", "namespace": NAMESPACE, "lifetime": "detached", "max_restarts": -1, "num_cpus": 0}
    ray.get(ray.remote(LoraCacheActor).options(**options).remote(Settings(), idle_timeout_s=1.0).heartbeat.remote())


def _kill_lora_caches() -> int:
    names = _lora_caches()
    for name in names:
        ray.kill(ray.get_actor(name, NAMESPACE))
    return len(names)


def main() -> None:
    ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
    for line in sys.stdin:
        print(json.dumps(_execute(*json.loads(line))), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
