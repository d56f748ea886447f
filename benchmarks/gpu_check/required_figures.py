"""The figures that each row of the GPU benchmark must have, by its topic."""

import math
from collections.abc import Mapping
from typing import Any

FIGURES: Mapping[str, tuple[str, ...]] = {
    "limit": ("ms",),
    "step": ("step_ms", "peak_gb"),
    "lora": ("step_ms", "extra"),
    "kernels": ("ms", "calls"),
    "lora_load": ("ms",),
    "image": ("seconds", "text_ms", "denoise_ms", "decode_ms"),
    "encode_image": ("ms",),
    "start": ("load_s", "warm_up_s", "first_image_s"),
    "recompilation": ("new_graphs", "first_s", "second_s"),
    "memory": ("peak_gb",),
    "ablation": ("step_ms",),
    "tests": ("passed", "failed", "skipped"),
}


def missing_figures(row: Mapping[str, Any]) -> list[str]:
    """The figures that the row should have, but are absent or not finite. A kernel may be `unavailable` instead.

    A step whose images did not share a batch has no valid `mean_batch`.
    """
    if "unavailable" in row:
        return []
    topic = str(row.get("topic"))
    if topic not in FIGURES:
        return ["topic"]
    missing = [name for name in FIGURES[topic] if not _is_figure(row.get(name))]
    if row.get("mean_batch", 0) < row.get("batch", 0) and "mean_batch" in row:
        missing.append("mean_batch")
    return missing


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
