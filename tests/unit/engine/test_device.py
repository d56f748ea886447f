"""`is_responsive` for working and missing devices, and the number of CPUs."""

import os
from pathlib import Path

import pytest
import torch

from serve.engine import device


def test_is_responsive_reports_whether_the_device_computes() -> None:
    assert device.is_responsive(torch.device("cpu"))
    assert not device.is_responsive(torch.device("cuda", 17))


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
