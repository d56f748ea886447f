"""The tables of docs/performance.md with measured figures, of the first run and of the newest run."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.performance.flops import flops_per_step, image_tokens
from benchmarks.performance.markdown import NOT_MEASURED, figure, percent, significant, table
from benchmarks.performance.results import Row, Run, find, run_name

LARGE, MEDIUM = "1024x1024", "512x512"
SIZES = ("256x256", MEDIUM, LARGE, "1440x1440")
BATCHES = (1, 2, 4, 8)
PRECISIONS = ("bf16", "fp8")
MIXED = [[16], [64], [16], [64]]
NONE = "-"
COMPILED_VAE = "compiled_vae"


def runs_table(runs: Sequence[Run]) -> str:
    """A row for each call of the benchmark."""
    return table(
        ("run", "date", "GPU", "driver", "commit", "Python", "torch, diffusers, quanto", "note"),
        [
            (
                run.name,
                str(call["date"]),
                _text((call.get("gpu") or {}).get("name")),
                _text((call.get("gpu") or {}).get("driver")),
                str(call["commit"]),
                str(call["python"]),
                ", ".join(_text(call["versions"].get(name)) for name in ("torch", "diffusers", "optimum-quanto")),
                str(call.get("note", call.get("command", ""))),
            )
            for run in runs
            for call in run.calls
        ],
        text_columns=8,
    )


def _text(value: Any) -> str:
    return "not recorded" if value is None else str(value)


def limits_table(first: Run, now: Run | None) -> str:
    """Ranges over the shapes of FLUX.1's linear layers."""

    def products(run: Run | None, kernel: str, square: bool) -> str:
        rows = [] if run is None else run.select(topic="limit", what="product", kernel=kernel)
        rates = [row["tflops_per_s"] for row in rows if "tflops_per_s" in row and (row["layer"] == "square") == square]
        return " to ".join(dict.fromkeys(map(significant, (min(rates), max(rates))))) if rates else NOT_MEASURED

    def rows() -> Iterator[tuple[str, ...]]:
        yield "bf16 product 8192³", *(products(run, "bf16", square=True) for run in (first, now))
        for kernel in ("bf16", "row-wise float8", "tensor-wise float8"):
            yield f"{kernel}, FLUX.1's linear layers", *(products(run, kernel, square=False) for run in (first, now))
        for tokens in (4608, 1536, 768):
            for kernel in ("cudnn", "flash", "efficient", "flash4"):
                found = [
                    find(run, topic="limit", what="attention", tokens=tokens, kernel=kernel) for run in (first, now)
                ]
                if any(found) or (tokens, kernel) != (4608, "flash4"):
                    shown = [figure(row, "tflops_per_s") for row in found]
                    yield f"attention, {tokens} tokens, {kernel}", *shown
        copies = [find(run, topic="limit", what="copy within device memory") for run in (first, now)]
        yield "copy within device memory, GB/s read and written", *(figure(row, "gb_per_s") for row in copies)

    return table(("TFLOP/s unless stated", first.name, run_name(now)), rows())


def steps_paragraphs(first: Run, now: Run | None) -> tuple[str, ...]:
    if now is None:
        return f"In {first.name}:", steps_table(first), f"Current code: {NOT_MEASURED}."
    return f"In {first.name}:", steps_table(first), f"In {now.name}:", steps_table(now)


def steps_table(run: Run) -> str:
    """Milliseconds of a step by batch size, and TFLOP/s in parentheses."""

    def cell(labels: Row, batch: int) -> str:
        row = find(run, topic="step", batch=batch, **labels)
        if row is None:
            return NOT_MEASURED
        flops = batch * flops_per_step(image_tokens(row["size"]), row["text_tokens"])
        return f"{significant(row['step_ms'])} ({significant(flops / row['step_ms'] / 1e9)})"

    labels = [
        {"model": "dev", "precision": precision, "size": size} for precision in PRECISIONS for size in reversed(SIZES)
    ] + [
        {"model": "schnell", "precision": precision, "size": size}
        for precision in PRECISIONS
        for size in (LARGE, MEDIUM)
    ]
    rows = [
        (f"[{each['model']}] {each['precision']} {each['size']}", *(cell(each, batch) for batch in BATCHES))
        for each in labels
    ]
    measured = [row for row in rows if set(row[1:]) != {NOT_MEASURED}]
    return table(("ms (TFLOP/s)", *(f"{batch} image{'s' * (batch > 1)}" for batch in BATCHES)), measured or rows)


def loras_table(first: Run, now: Run | None) -> str:
    """The time that LoRAs add to a step, relative to the same batch without, and the time to load one."""
    cases = {
        "one of rank 16": [[16]],
        "one of rank 64": [[64]],
        "two of rank 16": [[16, 16]],
        "four images, ranks 16, 64, 16, 64": MIXED,
    }

    def rows() -> Iterator[tuple[str, ...]]:
        for precision in PRECISIONS:
            for size in (LARGE, MEDIUM):
                for case, ranks in cases.items():
                    found = [
                        find(run, topic="lora", precision=precision, size=size, ranks=ranks) for run in (first, now)
                    ]
                    yield f"{precision} {size}, {case}", *(percent(row, "extra") for row in found)
            for rank in (16, 64):
                found = [find(run, topic="lora_load", precision=precision, rank=rank) for run in (first, now)]
                yield f"{precision}, loading one of rank {rank}", *(figure(row, "ms", unit=" ms") for row in found)

    return table(("", first.name, run_name(now)), rows())


def images_table(first: Run, now: Run | None) -> str:
    """Whole images, from the request to the pixels on the host, and their stages."""
    columns = (("seconds", " s"), ("text_ms", " ms"), ("denoise_ms", " ms"), ("decode_ms", " ms"))
    rows = [
        (
            f"[{row['model']}] {row['precision']}, {row['images']} of {row['size']} in {row['steps']} steps",
            run.name,
            *(figure(row, name, unit=unit) for name, unit in columns),
        )
        for run in (first, now)
        if run is not None
        for row in run.select(topic="image")
    ]
    return table(("", "run", "total", "T5 and CLIP", "denoising", "decoding"), rows, text_columns=2)


def stages_table(first: Run) -> str:
    return table(("stage, eager", "ms"), [(row["stage"], figure(row, "ms")) for row in first.select(topic="stage")])


def start_table(now: Run | None) -> str:
    """The start of a replica without reading weights, which are made on the GPU here."""
    keys = [("dev", "bf16", "first"), ("dev", "bf16", "second"), ("dev", "fp8", "first"), ("schnell", "bf16", "first")]
    columns = (("load_s", " s"), ("warm_up_s", " s"), ("first_image_s", " s"))
    rows = []
    for model, precision, process in keys:
        row = find(now, topic="start", model=model, precision=precision, process=process)
        cells = (figure(row, name, unit=unit) for name, unit in columns)
        rows.append((f"[{model}] {precision}, {process} process", *cells))
    return table(("", "making and placing weights", "warm-up of all sizes", "first image after it"), rows)


def recompilations_table(now: Run | None) -> str:
    found = [] if now is None else list(now.select(topic="recompilation"))
    if not found:
        return f"Recompilations after the warm-up: {NOT_MEASURED}."
    return table(
        ("change after the warm-up", "new graphs", "first request", "second request"),
        [
            (
                f"[{row['model']}] {row['precision']}, {row['change']}",
                str(row["new_graphs"]),
                figure(row, "first_s", unit=" s"),
                figure(row, "second_s", unit=" s"),
            )
            for row in found
        ],
    )


def memory_table(now: Run | None) -> str:
    found = [] if now is None else list(now.select(topic="memory", what="replica"))
    if not found:
        return f"Peak memory: {NOT_MEASURED}."
    rows = [
        (f"[{row['model']}] {row['precision']}", figure(row, "transformer_gb"), figure(row, "peak_gb")) for row in found
    ]
    return table(("GB", "transformer's weights", "peak"), rows)


def optimisations_table(now: Run | None, notes: Sequence[Mapping[str, Any]]) -> str:
    """Each optimisation with its switch, its predicted effect, and its measured one by precision and size."""
    columns = [(precision, size) for precision in PRECISIONS for size in (LARGE, MEDIUM)]
    rows = [
        (
            note["name"],
            f"`{note['turned_off_by']}`",
            note["predicted"],
            *(_ablation(now, note["switch"], precision, size) for precision, size in columns),
        )
        for note in notes
    ]
    headings = ("optimisation", "off by", "predicted", *(f"{precision} {size}" for precision, size in columns))
    return table(headings, rows, text_columns=3)


def _ablation(run: Run | None, switch: str, precision: str, size: str) -> str:
    """Milliseconds with everything on, and with this switch off."""
    if switch == "fp8_kernel" and precision == "bf16":
        return NONE
    labels = {"topic": "ablation", "precision": precision, "size": size}
    if switch == COMPILED_VAE:  # The ablation compiles nothing but the transformer.
        image = {"topic": "image", "model": "dev", "precision": precision, "size": size, "images": 1}
        name, off, on = "decode_ms", find(run, **labels, switch="none", rank=0), find(run, **image)
    else:
        name, off = "step_ms", find(run, **labels, switch=switch)
        on = None if off is None else find(run, **labels, switch="none", rank=off["rank"])
    if off is None or on is None:
        return NOT_MEASURED
    return f"{figure(on, name)} on, {figure(off, name)} off"


def prototypes_table(first: Run) -> str:
    rows = [
        (
            row["what"],
            row["size"],
            figure(row, "step_ms"),
            figure(row, "first_step_s") if "first_step_s" in row else NONE,
        )
        for row in first.select(topic="prototype")
    ]
    return table(("prototype", "images", "ms per step", "first step, s"), rows, text_columns=2)


def errors_table(first: Run) -> str:
    rows = [(row["what"], figure(row, "relative_error")) for row in first.select(topic="error")]
    return table(("velocity against bf16, random weights", "relative error"), rows)


def tests_line(first: Run, now: Run | None) -> str:
    def text(run: Run | None) -> str:
        row = find(run, topic="tests")
        if row is None:
            return NOT_MEASURED
        note = f" ({row['note']})" if "note" in row else ""
        return f"{row['passed']} passed, {row['failed']} failed{note}"

    return f"`tests/gpu` in {first.name}: {text(first)}; {run_name(now)}: {text(now)}."
