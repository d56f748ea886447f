"""Liveness and memory of devices, tensors of numbers, and the number of CPUs."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from serve.engine import device
from tests.logs import Logs


def test_is_responsive_reports_whether_the_device_computes() -> None:
    assert device.is_responsive(torch.device("cpu"))
    assert not device.is_responsive(torch.device("cuda", 17))


@pytest.mark.parametrize(("error", "responsive"), [(RuntimeError, False), (torch.OutOfMemoryError, True)])
def test_device_without_memory_is_responsive(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], responsive: bool
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch, "ones", fail)
    assert device.is_responsive(torch.device("cpu")) is responsive


def test_fault_while_the_cache_is_emptied_is_logged(monkeypatch: pytest.MonkeyPatch, logs: Logs) -> None:
    def fail() -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "empty_cache", fail)
    device.empty_cache(torch.device("cuda"))
    assert len(logs.errors) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no niceness of their own")
@pytest.mark.parametrize("of_process", [0, 15], ids=["plain process", "Ray worker"])
def test_thread_yields_to_other_threads_with_the_threads_that_it_starts(of_process: int) -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def run() -> tuple[int, int]:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), max(of_process, niceness()))
        device.yield_to_other_threads()
        with ThreadPoolExecutor(1) as own:
            return niceness(), own.submit(niceness).result()

    before = niceness()
    with ThreadPoolExecutor(1) as executor:
        own, of_started = executor.submit(run).result()
    assert own == of_started > max(of_process, before)
    assert niceness() == before


@pytest.mark.parametrize(("values", "dtype"), [([3, 1], torch.int64), ([[0.5, 2.0]], torch.float32)])
def test_numbers_become_a_tensor(values: list[object], dtype: torch.dtype) -> None:
    tensor = device.from_host(values, dtype, torch.device("cpu"))
    assert (tensor.tolist(), tensor.dtype) == (values, dtype)


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [
        ("max 100000\n", 16),
        ("200000 100000\n", 2),
        ("150000 100000\n", 1),
        ("50000 100000\n", 1),
        ("9900000 100000\n", 16),
        ("garbage", 16),
        (None, 16),
    ],
)
def test_available_cpus_respect_affinity_and_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str | None, cpus: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(16))
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    assert device.available_cpus(tmp_path / "cpu.max") == cpus
