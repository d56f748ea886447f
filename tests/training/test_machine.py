"""What training runs on: drawing goes on in other processes, in order where it matters, never twice the same."""

import argparse
import time
from itertools import islice

import pytest
import torch

from training.drawings.strokes import Rng
from training.machine import CPU, Machine, add_arguments, machine_from_arguments

TWO_WORKERS = Machine(torch.device("cpu"), workers=2, batch_factor=1)


def drawn(rng: Rng) -> float:
    return float(rng.random())


def squared(number: int) -> int:
    return number * number


def arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser, compiles=True)
    return parser.parse_args(given)


@pytest.mark.parametrize("machine", [CPU, TWO_WORKERS])
def test_numbered_drawings_come_in_the_order_of_their_numbers(machine: Machine) -> None:
    assert list(machine.map_ordered(squared, [5, 3, 4])) == [25, 9, 16]


@pytest.mark.parametrize("machine", [CPU, TWO_WORKERS])
def test_endless_drawings_are_all_different_and_the_same_for_a_seed(machine: Machine) -> None:
    first, again, other = (list(islice(machine.stream(drawn, seed), 8)) for seed in (1, 1, 2))
    assert first == again
    assert len({*first, *other}) == 16


def test_a_cpu_draws_as_it_goes_and_a_gpu_has_others_draw_larger_batches() -> None:
    assert machine_from_arguments(arguments()) == CPU
    gpu = machine_from_arguments(arguments("--device", "cuda", "--workers", "3"))
    assert (gpu.workers, gpu.batch_factor) == (3, 8)
    assert machine_from_arguments(arguments("--device", "cuda", "--batch-factor", "2")).batch_factor == 2
    assert machine_from_arguments(arguments("--device", "cuda")).workers >= 1
    assert machine_from_arguments(arguments("--compile")).compiles


def test_a_cpu_counts_work_and_a_gpu_the_time_that_passes() -> None:
    gpu = Machine(torch.device("cuda"), workers=0, batch_factor=1)
    before_work, before_wall = CPU.clock(), gpu.clock()
    time.sleep(0.2)
    assert CPU.clock() - before_work < 0.1
    assert gpu.clock() - before_wall >= 0.2
