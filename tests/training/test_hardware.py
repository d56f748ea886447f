"""`Machine`: maps and streams in this process and in workers, command-line options, and clocks."""

import argparse
import time
from itertools import islice

import pytest
import torch

from training.drawings.strokes import Rng
from training.hardware import CPU, Machine, add_arguments, machine_from_arguments

TWO_WORKERS = Machine(torch.device("cpu"), workers=2, batch_factor=1)


def random_number(rng: Rng) -> float:
    return float(rng.random())


def square(number: int) -> int:
    return number * number


def parse(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser, compiles=True)
    return parser.parse_args(options)


@pytest.mark.parametrize("machine", [CPU, TWO_WORKERS])
def test_map_ordered_keeps_order(machine: Machine) -> None:
    assert list(machine.map_ordered(square, [5, 3, 4])) == [25, 9, 16]


@pytest.mark.parametrize("machine", [CPU, TWO_WORKERS])
def test_stream_is_seeded_and_does_not_repeat(machine: Machine) -> None:
    first, repeated, other = (list(islice(machine.stream(random_number, seed), 8)) for seed in (1, 1, 2))
    assert first == repeated
    assert len({*first, *other}) == 16


def test_defaults_for_cpu_and_gpu() -> None:
    assert machine_from_arguments(parse()) == CPU
    gpu = machine_from_arguments(parse("--device", "cuda", "--workers", "3"))
    assert (gpu.workers, gpu.batch_factor) == (3, 8)
    assert machine_from_arguments(parse("--device", "cuda", "--batch-factor", "2")).batch_factor == 2
    assert machine_from_arguments(parse("--device", "cuda")).workers >= 1
    assert machine_from_arguments(parse("--compile")).compiles


def test_clock_is_processor_time_on_cpu_and_wall_time_on_gpu() -> None:
    gpu = Machine(torch.device("cuda"), workers=0, batch_factor=1)
    before_work, before_wall = CPU.clock(), gpu.clock()
    time.sleep(0.2)
    assert CPU.clock() - before_work < 0.1
    assert gpu.clock() - before_wall >= 0.2
