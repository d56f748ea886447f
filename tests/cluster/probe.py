"""Looks into a service's cluster from a process of its own: engine counters by handle, and replica counts.

A process that has joined one cluster keeps threads that reach for it; the tests, which meet several, ask through this.
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
from serve.lora_cache import NAMESPACE, LoraCacheActor
from serve.settings import Settings


class Probe:
    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def stats(self, pool: str) -> dict[str, Any]:
        """The counters of the engine in a pool of one replica."""
        return dict(self._ask("stats", pool))

    def replicas(self, pool: str) -> int:
        """How many replicas of a pool run."""
        return int(self._ask("replicas", pool))

    def lora_caches(self) -> int:
        """How many caches of LoRAs there are."""
        return int(self._ask("lora_caches", ""))

    def make_forgetful_lora_cache(self) -> None:
        """Starts another cache, which ends when nobody has asked it for a second."""
        self._ask("make_forgetful_lora_cache", "")

    def kill_lora_cache(self) -> int:
        """Ends the cache of LoRAs as a crash does; how many there were."""
        return int(self._ask("kill_lora_cache", ""))

    def _ask(self, *question: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@contextmanager
def probing(service: LocalService, environment: Mapping[str, str]) -> Iterator[Probe]:
    command = [sys.executable, "-m", "tests.cluster.probe", service.ray_address]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Probe(process)
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)


def _answer(kind: str, pool: str) -> Any:
    if kind == "stats":
        return serve.get_deployment_handle(pool, "flux").stats.remote().result(timeout_s=60)
    if kind == "lora_caches":
        return len(_lora_caches())
    if kind == "make_forgetful_lora_cache":
        return _make_forgetful_lora_cache()
    if kind == "kill_lora_cache":
        return _kill_lora_caches()
    return serve.status().applications["flux"].deployments[pool].replica_states.get("RUNNING", 0)


def _lora_caches() -> list[str]:
    named = ray.util.list_named_actors(all_namespaces=True)
    return [each["name"] for each in named if each["namespace"] == NAMESPACE]


def _make_forgetful_lora_cache() -> None:
    options = {"name": "forgetful", "namespace": NAMESPACE, "lifetime": "detached", "max_restarts": -1, "num_cpus": 0}
    ray.get(ray.remote(LoraCacheActor).options(**options).remote(Settings(), lease_s=1.0).heartbeat.remote())


def _kill_lora_caches() -> int:
    names = _lora_caches()
    for name in names:
        ray.kill(ray.get_actor(name, NAMESPACE))
    return len(names)


def main() -> None:
    ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
    for line in sys.stdin:
        print(json.dumps(_answer(*json.loads(line))), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
