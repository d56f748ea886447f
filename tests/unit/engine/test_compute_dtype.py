"""The choice between bf16 and float32 on a CPU."""

from collections.abc import Mapping

import pytest
import torch

from serve.engine import compute_dtype
from serve.engine.compute_dtype import choose, choose_compute_dtype, dtype_name, measure_linear

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("bf16_s", "float32_s", "chosen"),
    [
        (1.0, 5.0, torch.bfloat16),
        (1.0, 1.0, torch.bfloat16),
        (1.2, 1.0, torch.bfloat16),
        (1.3, 1.0, torch.float32),
        (20.0, 1.0, torch.float32),
    ],
)
def test_bf16_is_chosen_unless_it_is_clearly_slower(bf16_s: float, float32_s: float, chosen: torch.dtype) -> None:
    assert choose({torch.bfloat16: bf16_s, torch.float32: float32_s}) == chosen


def test_both_dtypes_are_measured() -> None:
    times_s = measure_linear(64)
    assert times_s.keys() == {torch.bfloat16, torch.float32}
    assert all(time_s > 0 for time_s in times_s.values())


@pytest.mark.parametrize(("width", "measured"), [(192, 192), (3072, 1024)])
def test_cpu_is_measured_at_the_width_of_the_model_up_to_a_limit(
    monkeypatch: pytest.MonkeyPatch, width: int, measured: int
) -> None:
    widths = []

    def measure(width: int) -> Mapping[torch.dtype, float]:
        widths.append(width)
        return {torch.bfloat16: 9.0, torch.float32: 1.0}

    monkeypatch.setattr(compute_dtype, "measure_linear", measure)
    assert choose_compute_dtype(CPU, width) == torch.float32
    assert widths == [measured]


def test_gpu_computes_in_bf16_without_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute_dtype, "measure_linear", None)
    assert choose_compute_dtype(torch.device("cuda"), 192) == torch.bfloat16


def test_name_is_that_of_the_settings() -> None:
    assert [dtype_name(dtype) for dtype in (torch.bfloat16, torch.float32)] == ["bfloat16", "float32"]
