"""OpenTelemetry spans of predictions, from the HTTP request to the steps.

They are off, and OpenTelemetry is not imported, unless its environment variables name an exporter.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol

from serve.settings import exports_traces

if TYPE_CHECKING:
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor

Attributes = Mapping[str, str | int]
"""Of a span. Values are bounded: never a prompt, a URL or an id."""

SERVICE_NAME = "flux-serve"
"""Unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES has another one."""
_NO_ATTRIBUTES: Attributes = {}

log = logging.getLogger(__name__)


class Span(Protocol):
    """An interval of a trace."""

    def set(self, attributes: Attributes) -> None: ...

    def fail(self, error: BaseException) -> None:
        """Marks the span as failed. Only the class of the error is exported, as its message may have a URL."""

    def record(self, name: str, start_s: float, end_s: float) -> None:
        """Adds a child that has ended, with times of `time.monotonic`."""


class NoSpan:
    """The span while tracing is off."""

    def set(self, attributes: Attributes) -> None:
        pass

    def fail(self, error: BaseException) -> None:
        pass

    def record(self, name: str, start_s: float, end_s: float) -> None:
        pass


class RecordedSpan:
    """A span of OpenTelemetry."""

    def __init__(self, tracer: "Tracer", span: "trace.Span") -> None:
        self._tracer = tracer
        self._span = span

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def fail(self, error: BaseException) -> None:
        from opentelemetry.trace import StatusCode

        self._span.set_attribute("error.type", type(error).__name__)
        self._span.set_status(StatusCode.ERROR)

    def record(self, name: str, start_s: float, end_s: float) -> None:
        self._tracer.record(self._span, name, start_s, end_s)


class Tracer:
    """Creates the spans of this process, and passes them to `processor` when they end."""

    def __init__(self, processor: "SpanProcessor") -> None:
        from opentelemetry import context, trace
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({"service.name": SERVICE_NAME}).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(processor)
        self._context = context
        self._trace = trace
        self._tracer = self._provider.get_tracer("serve")
        # Not the baggage, by which callers could add any data.
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def span(
        self, name: str, attributes: Attributes, parent: "Context | None" = None, is_server: bool = False
    ) -> Iterator[Span]:
        kind = self._trace.SpanKind.SERVER if is_server else self._trace.SpanKind.INTERNAL
        with self._tracer.start_as_current_span(
            name, parent, kind, attributes, record_exception=False, set_status_on_exception=False
        ) as opened:
            span = RecordedSpan(self, opened)
            try:
                yield span
            except Exception as error:
                span.fail(error)
                raise

    @contextmanager
    def detached_span(self, name: str) -> Iterator[Span]:
        opened = self._tracer.start_span(name)
        span = RecordedSpan(self, opened)
        try:
            yield span
        except Exception as error:
            span.fail(error)
            raise
        finally:
            opened.end()

    def record(self, parent: "trace.Span", name: str, start_s: float, end_s: float) -> None:
        context = self._trace.set_span_in_context(parent)
        self._tracer.start_span(name, context, start_time=_epoch_ns(start_s)).end(_epoch_ns(end_s))

    def current(self) -> Span:
        return RecordedSpan(self, self._trace.get_current_span())

    def carrier(self) -> dict[str, str]:
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return carrier

    def attach(self, carrier: Mapping[str, str]) -> None:
        self._context.attach(self._propagator.extract(carrier))

    def parent(self, headers: Mapping[str, str]) -> "Context | None":
        """The current span, which Ray Serve has opened if its own tracing is on, or else that of the caller."""
        if self._trace.get_current_span().get_span_context().is_valid:
            return None
        return self._propagator.extract(headers)

    def shut_down(self) -> None:
        self._provider.shutdown()

    @property
    def trace_id(self) -> str:
        context = self._trace.get_current_span().get_span_context()
        return self._trace.format_trace_id(context.trace_id) if context.is_valid else ""


_tracer: Tracer | None = None
_NO_SPAN = NoSpan()
_NO_SPAN_OPENED: AbstractContextManager[Span] = nullcontext(_NO_SPAN)


def use_tracing() -> None:
    """Call once in the constructor of an actor. Exports spans if the environment asks for it."""
    if not exports_traces():
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("traces are not exported: install the extra `tracing` of this package, or unset OTEL_* variables")
        return
    use_tracer(Tracer(BatchSpanProcessor(OTLPSpanExporter())))


def use_tracer(tracer: Tracer | None) -> Tracer | None:
    """Creates all spans of this process by `tracer`. Returns the one before."""
    global _tracer
    previous, _tracer = _tracer, tracer
    return previous


def shut_down() -> None:
    """Exports the last spans. Blocks up to the exporter's timeout."""
    tracer = use_tracer(None)
    if tracer is not None:
        tracer.shut_down()


def is_on() -> bool:
    return _tracer is not None


def span(name: str, attributes: Attributes = _NO_ATTRIBUTES) -> AbstractContextManager[Span]:
    """A span of the block, in which it is the current one."""
    return _NO_SPAN_OPENED if _tracer is None else _tracer.span(name, attributes)


def server_span(name: str, headers: Mapping[str, str], attributes: Attributes) -> AbstractContextManager[Span]:
    """A span of an HTTP request, whose parent is in `headers` as W3C's `traceparent`."""
    return _NO_SPAN_OPENED if _tracer is None else _tracer.span(name, attributes, _tracer.parent(headers), True)


def detached_span(name: str) -> AbstractContextManager[Span]:
    """A span that does not become the current one: a generator may be closed in another context."""
    return _NO_SPAN_OPENED if _tracer is None else _tracer.detached_span(name)


def current() -> Span:
    """The current span."""
    return _NO_SPAN if _tracer is None else _tracer.current()


def carrier() -> dict[str, str]:
    """The current span, for `continue_from` in another process or task; empty while tracing is off."""
    return {} if _tracer is None else _tracer.carrier()


def continue_from(carrier: Mapping[str, str]) -> None:
    """Makes the span of `carrier` the current one of this context, and so the parent of further ones."""
    if _tracer is not None and carrier:
        _tracer.attach(carrier)


def trace_id() -> str:
    """Of the current span, as 32 hexadecimal digits; empty without one."""
    return "" if _tracer is None else _tracer.trace_id


def _epoch_ns(monotonic_s: float) -> int:
    return time.time_ns() - round((time.monotonic() - monotonic_s) * 1e9)
