"""What training runs on: the device, how far batches grow on it, the processes that draw, and the clock of a run.

A CPU is as many cores as it is told, one by default, and draws as it goes. A GPU takes larger batches, and other
processes draw for it meanwhile.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from training.drawings.strokes import Rng
from training.precision import autocast

Drawn = TypeVar("Drawn")


@dataclass(frozen=True, slots=True)
class Machine:
    device: torch.device
    workers: int
    """Processes that draw; 0 draws within the training itself."""
    batch_factor: int
    """Batches and shelves are this many times as large as on one core."""
    compiles: bool = False
    """Blocks of the transformer are compiled first: half a minute, and on a CPU it needs a C++ compiler."""

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    def clock(self) -> float:
        """Seconds of work: of the processor on a CPU, which others may share, and of the wall on a GPU."""
        return time.monotonic() if self.is_gpu else time.process_time()

    def autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.device.type)

    def endless(self, draw: Callable[[Rng], Drawn], seed: int) -> Iterator[Drawn]:
        """Drawings without end, each process with a generator of its own."""
        loader: DataLoader[Drawn] = DataLoader(_Endless(draw, seed), batch_size=None, num_workers=self.workers)
        return iter(loader)

    def each(self, draw: Callable[[int], Drawn], numbers: list[int]) -> Iterator[Drawn]:
        """The drawing of every number, in their order."""
        loader: DataLoader[Drawn] = DataLoader(_Numbered(draw, numbers), batch_size=None, num_workers=self.workers)
        return iter(loader)


CPU = Machine(torch.device("cpu"), workers=0, batch_factor=1)


class _Endless(IterableDataset[Drawn], Generic[Drawn]):
    def __init__(self, draw: Callable[[Rng], Drawn], seed: int) -> None:
        self.draw, self.seed = draw, seed

    def __iter__(self) -> Iterator[Drawn]:
        worker = get_worker_info()
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        while True:
            yield self.draw(rng)


class _Numbered(Dataset[Drawn], Generic[Drawn]):
    def __init__(self, draw: Callable[[int], Drawn], numbers: list[int]) -> None:
        self.draw, self.numbers = draw, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> Drawn:
        if place >= len(self.numbers):
            raise IndexError(place)
        return self.draw(self.numbers[place])


def add_arguments(parser: argparse.ArgumentParser, *, compiles: bool = False) -> None:
    """`compiles`: what is trained is a transformer, whose blocks can be compiled."""
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--workers", type=int, help="processes that draw; none on a CPU, all cores but one on a GPU")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU; more pay where nothing else runs")
    parser.add_argument("--batch-factor", type=int, help="how far batches grow; 1 on a CPU, 8 on a GPU")
    if compiles:
        parser.add_argument("--compile", action="store_true", help="compile the blocks first: a fifth faster on a CPU")


def chosen(arguments: argparse.Namespace) -> Machine:
    """The machine that the command line asks for."""
    gpu = arguments.device == "cuda"
    workers = arguments.workers if arguments.workers is not None else max(1, (os.cpu_count() or 2) - 1) if gpu else 0
    factor = arguments.batch_factor or (8 if gpu else 1)
    if not gpu:
        torch.set_num_threads(arguments.threads)
    return Machine(torch.device(arguments.device), workers, factor, getattr(arguments, "compile", False))
