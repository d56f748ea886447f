"""Markdown tables and figures."""

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.performance.results import Row

NOT_MEASURED = "not measured"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """A table whose columns after the first `text_columns` are aligned to the right."""
    alignment = ["---"] * text_columns + ["--:"] * (len(headings) - text_columns)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (headings, alignment, *rows))


def figure(row: Row | None, name: str, unit: str = "") -> str:
    """A figure of a row with three significant digits; `NOT_MEASURED` without the row or the figure."""
    value: Any = None if row is None else row.get(name)
    if value is None:
        return NOT_MEASURED
    return (value if isinstance(value, str) else significant(value)) + unit


def percent(row: Row | None, name: str) -> str:
    """A share as a signed percentage. Text is not changed."""
    value: Any = None if row is None else row.get(name)
    if value is None:
        return NOT_MEASURED
    return value if isinstance(value, str) else f"{round(100 * value):+d} %"


def significant(value: float) -> str:
    """Three significant digits; of numbers from 100 on, all digits before the point and at most four."""
    if abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.4g}" if abs(value) >= 100 else f"{value:.3g}"
