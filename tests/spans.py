"""Keeps the spans of a test in memory."""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from serve import tracing
from serve.tracing import Tracer


class Spans:
    """The spans of this process that have ended."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    @property
    def all(self) -> tuple[ReadableSpan, ...]:
        return self._exporter.get_finished_spans()

    @property
    def trace_ids(self) -> set[int]:
        return {context.trace_id for span in self.all if (context := span.get_span_context())}

    def one(self, name: str) -> ReadableSpan:
        [span] = [each for each in self.all if each.name == name]
        return span

    def parents(self) -> dict[str, str | None]:
        """The name of the parent of each span, by its own name; None if it is not of this process."""
        names = {context.span_id: span.name for span in self.all if (context := span.get_span_context())}
        return {span.name: names.get(span.parent.span_id) if span.parent else None for span in self.all}


@contextmanager
def recorded_spans() -> Iterator[Spans]:
    """Records the spans of this process while the block runs."""
    exporter = InMemorySpanExporter()
    previous = tracing.use_tracer(Tracer(SimpleSpanProcessor(exporter)))
    yield Spans(exporter)
    tracing.use_tracer(previous)
