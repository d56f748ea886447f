"""The hardware that a run uses: device, batch factor, drawing processes and clock, with their command-line options."""

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

Example = TypeVar("Example")


@dataclass(frozen=True, slots=True)
class Machine:
    device: torch.device
    workers: int
    """Number of drawing processes; with 0, the training process draws."""
    batch_factor: int
    """Batches and caches are this many times as large as on one core."""
    compiles: bool = False
    """Whether to compile the transformer's blocks first. It takes half a minute and needs a C++ compiler on a CPU."""

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    def clock(self) -> float:
        """Returns seconds of processor time on a CPU, because it may be shared, and of wall time on a GPU."""
        return time.monotonic() if self.is_gpu else time.process_time()

    def autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.device.type)

    def stream(self, draw: Callable[[Rng], Example], seed: int) -> Iterator[Example]:
        """Yields drawings indefinitely. Each process has its own random generator."""
        loader: DataLoader[Example] = DataLoader(
            _EndlessDrawings(draw, seed), batch_size=None, num_workers=self.workers
        )
        return iter(loader)

    def map_ordered(self, draw: Callable[[int], Example], numbers: list[int]) -> Iterator[Example]:
        """Yields `draw(number)` for each number, in order."""
        loader: DataLoader[Example] = DataLoader(
            _NumberedDrawings(draw, numbers), batch_size=None, num_workers=self.workers
        )
        return iter(loader)


CPU = Machine(torch.device("cpu"), workers=0, batch_factor=1)


class _EndlessDrawings(IterableDataset[Example], Generic[Example]):
    def __init__(self, draw: Callable[[Rng], Example], seed: int) -> None:
        self.draw, self.seed = draw, seed

    def __iter__(self) -> Iterator[Example]:
        worker = get_worker_info()
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        while True:
            yield self.draw(rng)


class _NumberedDrawings(Dataset[Example], Generic[Example]):
    def __init__(self, draw: Callable[[int], Example], numbers: list[int]) -> None:
        self.draw, self.numbers = draw, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Example:
        if index >= len(self.numbers):
            raise IndexError(index)
        return self.draw(self.numbers[index])


def add_arguments(parser: argparse.ArgumentParser, *, compiles: bool = False) -> None:
    """Adds the options that `machine_from_arguments` reads. `compiles` adds `--compile`, for the transformers."""
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--workers", type=int, help="drawing processes; default: 0 on a CPU, all cores but one with a GPU"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; more help only on an idle machine")
    parser.add_argument("--batch-factor", type=int, help="multiplies all batch sizes; default: 1 on a CPU, 8 on a GPU")
    if compiles:
        parser.add_argument("--compile", action="store_true", help="compile the blocks first; 20 % faster on a CPU")


def machine_from_arguments(arguments: argparse.Namespace) -> Machine:
    """Returns the machine that the options describe."""
    gpu = arguments.device == "cuda"
    workers = arguments.workers if arguments.workers is not None else max(1, (os.cpu_count() or 2) - 1) if gpu else 0
    factor = arguments.batch_factor or (8 if gpu else 1)
    if not gpu:
        torch.set_num_threads(arguments.threads)
    return Machine(torch.device(arguments.device), workers, factor, getattr(arguments, "compile", False))
