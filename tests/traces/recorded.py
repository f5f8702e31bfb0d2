"""A tracer whose spans stay in memory, on the real SDK, and what tests ask of them."""

from collections.abc import Mapping
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler
from opentelemetry.trace import SpanContext

from pipeline.adapters.tracing import OtelTracer

# A request's own trace, as it comes from outside: sampled, and not.
TRACE = b"4bf92f3577b34da6a3ce929d0e0e4736"
OUTSIDE = b"00-" + TRACE + b"-00f067aa0ba902b7-01"
UNSAMPLED = OUTSIDE[:-1] + b"0"


class Recorded:
    """What was made by its tracer and has ended.

    Args:
        sampler: decides on roots; a parent's own decision is respected.
    """

    def __init__(self, sampler: Sampler = ALWAYS_ON) -> None:
        self._memory = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=ParentBased(sampler), shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._memory))
        self.tracer = OtelTracer(self.provider)

    @property
    def spans(self) -> list[ReadableSpan]:
        """All of them, in the order of their ends."""
        return list(self._memory.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        """Those with a name, in the order of their ends."""
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        """The only one with a name."""
        (span,) = self.named(name)
        return span


def context_of(span: ReadableSpan) -> SpanContext:
    """What names a span."""
    context: SpanContext | None = span.context
    assert context is not None
    return context


def traceparent_of(span: ReadableSpan) -> bytes:
    """A span as the wire names it."""
    context = context_of(span)
    return b"00-%032x-%016x-%02x" % (context.trace_id, context.span_id, context.trace_flags)


def parent_of(span: ReadableSpan) -> bytes:
    """The span's parent: trace and span id, in hex."""
    assert span.parent is not None
    return b"%032x-%016x" % (span.parent.trace_id, span.parent.span_id)


def ids_of(traceparent: bytes) -> bytes:
    """Trace and span id of a `traceparent`."""
    return traceparent[3:52]


def links_of(span: ReadableSpan) -> list[bytes]:
    """Trace and span ids that a span links to."""
    return [b"%032x-%016x" % (link.context.trace_id, link.context.span_id) for link in span.links]


def told(span: ReadableSpan) -> Mapping[str, Any]:
    """A span's attributes."""
    return dict(span.attributes or {})
