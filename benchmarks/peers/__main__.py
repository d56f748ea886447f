"""Compares the service with other servers of the same checkpoint: latency, throughput, memory and start-up.

    scripts/bench peers --quick
    scripts/bench peers --save

All servers run side by side; all but the one being measured are paused. They take turns scenario by scenario, so a
change of the machine's speed affects all of them. A server that cannot be installed or started is reported by name.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.peers import environment
from benchmarks.peers.comparison import Comparison
from benchmarks.peers.overhead import overhead_table
from benchmarks.peers.results import markdown_table
from benchmarks.peers.servers import our_server, peers
from benchmarks.peers.workload import SCENARIOS, make_scenarios
from benchmarks.report import make_report, report, stop_on_sigterm
from serve.launch.subprocess_service import ROOT

QUESTION = "how does the service compare with other ways to serve the same checkpoint?"
RESULT_FILE = ROOT / "benchmarks" / "results" / "peers.json"
PLOT_FILE = ROOT / "docs" / "peers.png"
QUICK_SCALE = 0.1
PLOT_TIMEOUT_S = 120
OVERHEAD_REQUESTS = 50
MIN_OVERHEAD_REQUESTS = 5


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The result: measures and ratios of every server that started, and why the others did not."""
    deadline_s = time.monotonic() + 60 * options.max_minutes
    load_average = os.getloadavg()[0]
    selected = {name: server for name, server in peers().items() if name in options.peers}
    comparison = Comparison(options.threads)
    try:
        environment.install()
    except environment.InstallError as error:
        comparison.unavailable = dict.fromkeys(selected, f"cannot be installed: {error}")
        selected = {}
    try:
        comparison.start(our_server(options.threads))
        for server in selected.values():
            comparison.start(server)
        rounds = 0
        while rounds < options.rounds:
            scenarios = make_scenarios(options.scenarios, rounds, options.scale)
            if not asyncio.run(comparison.run_round(rounds, scenarios, deadline_s)):
                break
            rounds += 1
        overhead = comparison.measure_overhead(max(MIN_OVERHEAD_REQUESTS, round(OVERHEAD_REQUESTS * options.scale)))
        return comparison.result() | {
            "overhead_ms": overhead,
            "rounds": rounds,
            "load_averages": {"start": load_average, "end": os.getloadavg()[0]},
        }
    finally:
        comparison.stop()


def save(arguments: dict[str, Any], result: dict[str, Any]) -> None:
    """Writes the report and its plot, which is drawn by the peers' environment."""
    RESULT_FILE.parent.mkdir(exist_ok=True)
    tables = {"table": "\n\n".join((markdown_table(result), overhead_table(result["overhead_ms"])))}
    RESULT_FILE.write_text(json.dumps(make_report(QUESTION, arguments, tables | result), indent=1) + "\n")
    command = [str(environment.BIN / "python"), "-m", "benchmarks.peers.plot", str(RESULT_FILE), str(PLOT_FILE)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=PLOT_TIMEOUT_S)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse_options(arguments)
    stop_on_sigterm()
    result = measure(options)
    print(markdown_table(result), overhead_table(result["overhead_ms"]), sep="\n\n", file=sys.stderr, flush=True)
    report(QUESTION, vars(options), result)
    if options.save:
        save(vars(options), result)


def _parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = list(peers())
    parser = argparse.ArgumentParser(prog="peers", description=str(__doc__).splitlines()[0])
    parser.add_argument("--peers", nargs="*", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of all scenarios")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the numbers of requests")
    parser.add_argument("--threads", type=int, default=2, help="torch's CPU threads in every server")
    parser.add_argument("--max-minutes", type=float, default=15, help="no scenario starts after this time")
    parser.add_argument("--quick", action="store_true", help="one round with few requests")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/peers.json and docs/peers.png")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.scale = 1, QUICK_SCALE
    return options


if __name__ == "__main__":
    main()
