"""Runs all servers side by side and lets them take turns."""

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.peers.client import PROBE, Client, Turn
from benchmarks.peers.images import IMAGE_CHECKS, largest_difference
from benchmarks.peers.overhead import measure_overhead
from benchmarks.peers.process import ServerProcess, StartError
from benchmarks.peers.results import ratios, scenario_measures
from benchmarks.peers.servers import OURS, Server, server_environment
from benchmarks.peers.workload import Scenario
from benchmarks.report import print_progress
from serve.launch.subprocess_service import free_port

START_TIMEOUT_S = 180.0
IDLE_S = 4.0
SETTLE_S = 1.0
"""After a server was resumed: its timers have expired while it was paused."""


@dataclass
class _Running:
    server: Server
    process: ServerProcess
    client: Client
    measures: dict[str, float]
    images: list[str]
    """The images of `IMAGE_CHECKS`."""
    turns: dict[str, list[Turn]] = field(default_factory=dict)


class Comparison:
    """Servers that take turns. Call `start` for ours first, then for each peer, and `stop` at the end."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._dtype = ""
        self._running: dict[str, _Running] = {}
        self.unavailable: dict[str, str] = {}
        """Why a peer was not measured."""

    def start(self, server: Server) -> None:
        """Starts a server while all others are paused, and pauses it. A peer that fails is recorded."""
        print_progress(f"{server.name}: starting")
        port = free_port()
        environment = server_environment(server, os.environ, port, self._threads, self._dtype)
        command = tuple(part.format(port=port) for part in server.command)
        client = Client(server, f"http://127.0.0.1:{port}")
        try:
            process = ServerProcess(command, environment)
        except OSError as error:
            self._reject(server, str(error))
            return
        try:
            measures = {"start_s": round(process.wait_until_ready(client.is_ready, START_TIMEOUT_S), 1)}
        except StartError as error:
            process.stop()
            self._reject(server, str(error))
            return
        measures |= {"memory_mb": round(process.sample_memory()), "idle_cores": _idle_cores(process)}
        if not server.is_peer:
            self._dtype = client.compute_dtype()
        images = [client.generate(request)[0] for request in IMAGE_CHECKS]
        self._running[server.name] = _Running(server, process, client, measures, images)
        process.pause()

    async def run_round(self, number: int, scenarios: Sequence[Scenario], deadline_s: float) -> bool:
        """Runs every scenario on every server. Returns False, and drops the round, if the deadline passes."""
        servers = list(self._running.values())
        order = servers[number % len(servers) :] + servers[: number % len(servers)]
        turns: list[tuple[_Running, str, Turn]] = []
        for scenario in scenarios:
            for running in order:
                if time.monotonic() > deadline_s:
                    print_progress(f"round {number + 1} was not completed in time")
                    return False
                turn = await self._take_turn(running, scenario)
                turns.append((running, scenario.name, turn))
                print_progress(f"round {number + 1}, {scenario.name}, {running.server.name}: {turn.seconds:.1f} s")
        for running, name, turn in turns:
            running.turns.setdefault(name, []).append(turn)
        return True

    async def _take_turn(self, running: _Running, scenario: Scenario) -> Turn:
        process = running.process
        process.resume()
        try:
            await asyncio.sleep(SETTLE_S)
            with process.sampling_memory():
                return await running.client.run(scenario)
        finally:
            process.pause()

    def measure_overhead(self, requests: int) -> dict[str, float]:
        """What a small request of the service costs beyond its engine."""
        ours = self._running[OURS]
        ours.process.resume()
        try:
            time.sleep(SETTLE_S)
            body = ours.server.make_body(PROBE)
            return measure_overhead(ours.client.url, ours.server.path, body, requests)
        finally:
            ours.process.pause()

    def result(self) -> dict[str, Any]:
        """Measures and ratios by server, ours first."""
        measures = {
            name: running.measures | {"peak_mb": round(running.process.peak_mb)} | scenario_measures(running.turns)
            for name, running in self._running.items()
        }
        servers = {
            name: {
                "description": running.server.description,
                "measures": measures[name],
                "ratios": ratios(measures[OURS], measures[name]) if running.server.is_peer else {},
                "largest_pixel_difference": largest_difference(self._running[OURS].images, running.images),
                "canceled": sum(turn.canceled for turns in running.turns.values() for turn in turns),
                "errors": sorted(
                    {error for turns in running.turns.values() for turn in turns for error in turn.errors}
                ),
            }
            for name, running in self._running.items()
        }
        return {"compute_dtype": self._dtype, "servers": servers, "unavailable": self.unavailable}

    def stop(self) -> None:
        for running in self._running.values():
            running.process.stop()

    def _reject(self, server: Server, reason: str) -> None:
        if not server.is_peer:
            raise StartError(reason)
        print_progress(f"{server.name}: does not start: {reason}")
        self.unavailable[server.name] = f"does not start: {reason}"


def _idle_cores(process: ServerProcess) -> float:
    """CPU time per second of a server without requests."""
    time.sleep(SETTLE_S)
    start_s, start_cpu_s = time.perf_counter(), process.cpu_s()
    time.sleep(IDLE_S)
    return round((process.cpu_s() - start_cpu_s) / (time.perf_counter() - start_s), 3)
