"""The table of docs/performance.md with the kernels of a step."""

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.performance.markdown import NOT_MEASURED, significant, table
from benchmarks.performance.results import Row, Run


def kernels_table(run: Run | None) -> str:
    """Milliseconds of a step by kind of kernel."""
    steps: dict[tuple[Any, ...], list[Row]] = {}
    for row in () if run is None else run.select(topic="kernels"):
        labels = row["precision"], row["size"], row["rank"]
        if row["kernel"] == "all":
            steps[labels] = []  # A later measurement replaces an earlier one.
        steps[labels].append(row)
    if not steps:
        return f"Kernels: {NOT_MEASURED}."
    return table(
        ("ms of a step", "matrix products", "attention", "other kernels", "idle", "kernels"),
        [
            (f"{precision} {size}" + f", a LoRA of rank {rank}" * bool(rank), *_kernel_cells(rows))
            for (precision, size, rank), rows in steps.items()
        ],
    )


def _kernel_cells(rows: Sequence[Row]) -> Iterator[str]:
    total, *kernels = rows
    products = sum(row["ms"] for row in kernels if _is_product(row["kernel"]))
    attention = sum(row["ms"] for row in kernels if "sdpa" in row["kernel"] and not row["kernel"].startswith("triton"))
    yield from map(significant, (products, attention, total["ms"] - products - attention))
    yield significant(max(0.0, total["step_ms"] - total["ms"]))
    yield f"{total['calls']:.0f}"


def _is_product(kernel: str) -> bool:
    """cuBLAS' kernels are called nvjet on Hopper, and gemm or cutlass elsewhere."""
    return any(part in kernel for part in ("nvjet", "gemm", "cutlass"))
