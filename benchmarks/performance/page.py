"""The text of docs/performance.md."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.performance import sections
from benchmarks.performance.kernels import kernels_table
from benchmarks.performance.markdown import table
from benchmarks.performance.results import RESULTS, read_runs, read_table
from benchmarks.performance.targets import targets_table

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
NOTES = Path(__file__).parent / "notes.yaml"


def render(folder: Path = RESULTS) -> str:
    """The page for the results in `folder`."""
    notes = yaml.safe_load(NOTES.read_text(encoding="utf-8"))
    parts = [f"# Performance\n\n{notes['texts']['introduction']}"]
    for title, paragraphs in _sections(folder, notes):
        parts.append("\n\n".join((f"## {title}", *(paragraph.strip() for paragraph in paragraphs))) + "\n")
    return "\n".join(parts)


def _sections(folder: Path, notes: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Titles and paragraphs."""
    first, now = read_runs(folder)
    texts = notes["texts"]
    yield "Runs", (sections.runs_table([first] if now is None else [first, now]),)
    yield "Targets", (texts["targets"], targets_table(first, now))
    yield "Limits of the GPU", (texts["limits"], sections.limits_table(first, now))
    yield "Steps", sections.steps_paragraphs(first, now)
    yield "Kernels", (texts["kernels"], kernels_table(now))
    yield "LoRAs", (texts["loras"], sections.loras_table(first, now))
    yield "Images", (sections.images_table(first, now), sections.stages_table(first))
    yield "Start-up", (texts["start"], sections.start_table(now), sections.recompilations_table(now))
    yield "Memory", (sections.memory_table(now),)
    yield "Optimisations", (texts["optimisations"], sections.optimisations_table(now, notes["optimisations"]))
    yield "Prototypes", (texts["prototypes"], sections.prototypes_table(first))
    yield "Float8", (sections.errors_table(first),)
    dropped = [(each["what"], each["why"]) for each in notes["dropped"]]
    yield "Tried and dropped", (table(("what", "why"), dropped, text_columns=2),)
    yield "GPU tests", (sections.tests_line(first, now),)
    yield from _optional_sections(folder, texts)


def _optional_sections(folder: Path, texts: dict[str, str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Those whose results come from other benchmarks."""
    for title, name in (("Peers", "peers"), ("Scheduling", "scheduling"), ("API", "api")):
        text = read_table(folder, name)
        if text is not None:
            has_image = (PAGE.parent / f"{name}.png").is_file()
            image = (f"![{title}]({name}.png)",) if has_image else ()
            yield title, (*((texts[name],) if name in texts else ()), text, *image)
