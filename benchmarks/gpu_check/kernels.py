"""Measures where the time of a step goes: the time of each kernel, and the time in which the device runs none."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from torch.profiler import DeviceType, ProfilerActivity, profile

from benchmarks.engine_runs import make_lora, make_request, size_name
from benchmarks.gpu_check.scale import SCALES, make_pool
from benchmarks.gpu_check.step_benchmark import BASE_STEPS, Row, StepBenchmark
from serve.engine.request import GenerationRequest
from serve.lora.weights import LoraWeights
from serve.model_specs import Size
from serve.settings import Precision

MAX_KERNELS = 24
"""Kernels of one step with a row of their own; the rest is summed up."""
_NAME_LENGTH = 120


def measure_kernels(scale_name: str, precision: Precision) -> Iterator[Row]:
    """For a step with one image, without and with a LoRA: a row for each kernel, and one for the whole step."""
    scale = SCALES[scale_name]
    with closing(StepBenchmark(scale, *make_pool(scale, "dev", precision))) as benchmark:
        lora = make_lora(benchmark.checkpoint.transformer, 16, 0)
        for size, loras in ((scale.large, ()), (scale.medium, ()), (scale.large, [{"resident": lora}])):
            labels = {"precision": precision, "size": size_name(size), "rank": 16 if loras else 0}
            for row in _rows(benchmark, size, loras):
                yield {"topic": "kernels", **labels, **row}


def _rows(benchmark: StepBenchmark, size: Size, loras: Sequence[dict[str, LoraWeights]]) -> Iterator[Row]:
    step = benchmark.measure_step(size, 1, loras)
    steps = benchmark.scale.timed_steps
    chosen = loras[0] if loras else None
    short = _profile(benchmark, make_request(size, BASE_STEPS, loras=chosen))
    long = _profile(benchmark, make_request(size, BASE_STEPS + steps, loras=chosen))
    kernels = {
        name: ((ms - short.get(name, (0.0, 0))[0]) / steps, (calls - short.get(name, (0.0, 0))[1]) / steps)
        for name, (ms, calls) in long.items()
    }
    kernels = {name: each for name, each in kernels.items() if each[1] > 0}
    longest = sorted(kernels, key=lambda name: kernels[name][0], reverse=True)
    busy_ms = sum(ms for ms, _ in kernels.values())
    yield {
        "kernel": "all",
        "calls": round(sum(calls for _, calls in kernels.values()), 1),
        "ms": round(busy_ms, 3),
        "step_ms": step["step_ms"],
        "first_s": step["first_s"],
    }
    for name in longest[:MAX_KERNELS]:
        ms, calls = kernels[name]
        yield {"kernel": name[:_NAME_LENGTH], "calls": round(calls, 1), "ms": round(ms, 3)}
    rest = [kernels[name] for name in longest[MAX_KERNELS:]]
    if rest:
        yield {"kernel": "rest", "calls": round(sum(c for _, c in rest), 1), "ms": round(sum(m for m, _ in rest), 3)}


def _profile(benchmark: StepBenchmark, request: GenerationRequest) -> dict[str, tuple[float, int]]:
    """Milliseconds and calls of each kernel while the request runs; on a CPU, those of each operator."""
    on_gpu = benchmark.checkpoint.device.type == "cuda"
    profiler: Any = profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU])
    # The profiler records the operators of the thread that starts it.
    benchmark.run_on_device(profiler.start)
    benchmark.run([request])
    benchmark.run_on_device(profiler.stop)
    times_us, calls = Counter[str](), Counter[str]()
    for event in profiler.events():
        if on_gpu and event.device_type != DeviceType.CUDA:
            continue
        times_us[event.name] += event.time_range.elapsed_us() if on_gpu else event.self_cpu_time_total
        calls[event.name] += 1
    return {name: (times_us[name] / 1000, calls[name]) for name in calls}
