"""Spans by OpenTelemetry: whether there are any, who makes them, and where they go.

The variables are OpenTelemetry's own: `trace_variables` says what of them is looked at before the SDK reads them.

No module of OpenTelemetry is imported before somebody wants spans: the packages are an extra (`traces`), and a process
without them neither has them nor pays for them.
"""

import asyncio
import importlib
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.core.trace_context import Attributes
from pipeline.errors import SettingsError
from pipeline.ports import SpanKind
from pipeline.trace_variables import TraceVariables

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.trace import Span as ApiSpan
    from opentelemetry.trace import TracerProvider as ApiTracerProvider

logger = logging.getLogger(__name__)

_SCOPE = "inference-pipeline"
# What a process that ends waits for its last spans: a collector that answers takes 10 ms, for one that does not no end
# is put off much longer. The SDK's own limit is 30 s.
_CLOSE_S_MAX = 2.0
_MESSAGE_CHARACTERS_MAX = 300
_INSTALL = "pip install 'inference-pipeline[traces]'"


class OtelSpan:
    """A span of the SDK, or of whatever the program's own provider makes."""

    __slots__ = ("_is_recorded", "_span", "_traceparent", "_tracer")

    def __init__(self, tracer: "OtelTracer", span: "ApiSpan") -> None:
        self._tracer = tracer
        self._span = span
        self._is_recorded = span.is_recording()  # of an ended one the SDK says no
        self._traceparent: bytes | None = None

    @property
    def traceparent(self) -> bytes:
        """See `Span`."""
        if self._traceparent is None:
            context = self._span.get_span_context()
            self._traceparent = b"00-%032x-%016x-%02x" % (context.trace_id, context.span_id, context.trace_flags)
        return self._traceparent

    @property
    def is_recorded(self) -> bool:
        """See `Span`."""
        return self._is_recorded

    def rename(self, name: str) -> None:
        """See `Span`."""
        self._span.update_name(name)

    def link(self, traceparent: bytes) -> None:
        """See `Span`."""
        self._span.add_link(self._tracer.context_named(traceparent))

    def end(self, at: float, attributes: Attributes, *, error: str = "", message: str = "") -> None:
        """See `Span`."""
        span = self._span
        if self._is_recorded:
            span.set_attributes(dict(attributes))
            if error:
                span.set_attribute("error.type", error)
                # A lone surrogate, which a tensor's name may bring, cannot be encoded, and would cost its whole batch.
                told = message.encode("utf-8", "replace").decode()[:_MESSAGE_CHARACTERS_MAX]
                span.set_status(self._tracer.trace.StatusCode.ERROR, told or None)
        span.end(round(at * 1e9))


class OtelTracer:
    """Makes spans by OpenTelemetry.

    Args:
        provider: the program's own, or one made by `open_tracer`.
        close: ends what was made for it, in no more than a moment; blocks.
    """

    def __init__(self, provider: "ApiTracerProvider", close: Callable[[], None] | None = None) -> None:
        from opentelemetry import context, trace

        self.trace = trace
        self._nothing = context.Context()
        self._kinds: dict[SpanKind, trace.SpanKind] = {
            "server": trace.SpanKind.SERVER,
            "client": trace.SpanKind.CLIENT,
            "producer": trace.SpanKind.PRODUCER,
            "consumer": trace.SpanKind.CONSUMER,
        }
        self._tracer = provider.get_tracer(_SCOPE)
        self._close = close

    def begin(
        self,
        name: str,
        kind: SpanKind,
        at: float,
        attributes: Attributes,
        *,
        parent: bytes | None = None,
        links: Sequence[bytes] = (),
    ) -> OtelSpan:
        """See `Tracer`."""
        span = self._tracer.start_span(
            name,
            None if parent is None else self._child_of(parent),
            self._kinds[kind],
            attributes,
            [self.trace.Link(self.context_named(one)) for one in links],
            round(at * 1e9),
        )
        return OtelSpan(self, span)

    def context_named(self, traceparent: bytes) -> Any:
        """The span that a valid `traceparent` names."""
        _, trace_id, span_id, flags = traceparent.split(b"-")
        return self.trace.SpanContext(
            int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=self.trace.TraceFlags(int(flags, 16))
        )

    async def close(self) -> None:
        """Exports what waits, for a moment at most, and ends. Of the program's own provider nothing is ended."""
        if self._close is not None:
            await asyncio.to_thread(self._close)

    def _child_of(self, traceparent: bytes) -> "Context":
        span = self.trace.NonRecordingSpan(self.context_named(traceparent))
        return self.trace.set_span_in_context(span, self._nothing)


def open_tracer(service: str, *, of_program: bool = False) -> OtelTracer | None:
    """The tracer that the environment asks for; None: nobody wants spans, and nothing was made.

    Args:
        service: this process's `service.name` where the environment says none.
        of_program: what else in this process asks for the program's provider gets this one, too.

    Raises:
        SettingsError: a variable cannot mean what it says, or the packages are missing.
    """
    variables = TraceVariables()
    wanted = variables.exporters()
    if not wanted:
        return None
    health = [ExportHealth(name) for name in wanted]
    try:
        exporters = [_exporter(one.name, variables) for one in health]
        processors = [_processor(exporter, one) for exporter, one in zip(exporters, health, strict=True)]
    except ValueError as error:  # of a variable that only the SDK reads: a timeout, a compression, a size
        raise SettingsError(f"settings OTEL_EXPORTER_OTLP_… or OTEL_BSP_…: {error}") from None
    provider = _provider(service, variables.resource)
    for processor in processors:
        provider.add_span_processor(processor)
    if of_program:
        from opentelemetry import trace

        trace.set_tracer_provider(provider)
    logger.info("spans of %s go to %s", service, " and ".join(wanted))
    return OtelTracer(provider, lambda: _shut_down(provider, exporters, health))


def program_tracer() -> OtelTracer | None:
    """A tracer of the provider that this program has set for all of it; None where it has set none."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    return OtelTracer(provider)


def client_tracer() -> OtelTracer | None:
    """The tracer of a client in somebody's program: the program's own, else what the environment asks for.

    Raises:
        SettingsError: as `open_tracer`.
    """
    return program_tracer() or open_tracer("inference-client")


class ExportHealth:
    """How many spans an exporter took, and one line for each time that it stops taking them.

    Args:
        name: the exporter's.

    Attributes:
        ended: spans that were to be exported; written by the threads that end spans.
        exported: of them, by the exporter's thread.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.ended = 0
        self.exported = 0
        self._lost = 0
        self._reason = ""
        self._is_out = False
        self._log: logging.Logger | None = None

    def listen(self, log: logging.Logger) -> None:
        """Takes the reasons from the exporter's own log, which repeats itself: no line of it is written."""
        self._log = log
        log.removeFilter(_silent)
        log.addFilter(self.explain)
        log.addFilter(_silent)  # behind all that listen: the first filter that says no is the last one asked

    def note(self, count: int, *, is_taken: bool) -> None:
        """A batch of spans was exported, or given up."""
        if is_taken:
            self.exported += count
            if self._is_out:
                logger.warning("%s: spans are exported again; %d or more were lost", self.name, self._lost)
            self._is_out, self._lost, self._reason = False, 0, ""
            return
        self._lost += count
        if not self._is_out:
            self._is_out = True
            why = f": {self._reason}" if self._reason else ""
            logger.warning(
                "%s: spans are not exported%s; requests are answered all the same, spans that find no room are dropped",
                self.name,
                why,
            )

    def closed(self) -> None:
        """No more are exported: tells how many were not."""
        if self._log is not None:
            self._log.removeFilter(self.explain)
        if lost := self.ended - self.exported:
            logger.warning("%s: %d of %d spans were not exported", self.name, lost, self.ended)

    def explain(self, record: logging.LogRecord) -> bool:
        """A filter of the exporter's log: the first reason is kept. Others that listen are told, too."""
        self._reason = self._reason or record.getMessage()[:_MESSAGE_CHARACTERS_MAX]
        return True


def _silent(_: logging.LogRecord) -> bool:
    return False


def _exporter(name: str, variables: TraceVariables) -> "SpanExporter":
    try:
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        if name == "console":
            return ConsoleSpanExporter(service_name=None)
        http = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    except ImportError as error:
        given = "OTEL_TRACES_EXPORTER" if variables.exporter else "OTEL_EXPORTER_OTLP_ENDPOINT"
        text = variables.exporter or variables.endpoint or variables.traces_endpoint
        raise SettingsError(f"setting {given} is {text!r}: {error}; {_INSTALL} was expected before") from None
    exporter: SpanExporter = http.OTLPSpanExporter()
    return exporter


def _provider(service: str, resource: str) -> "TracerProvider":
    from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider

    told = Resource.create()
    ours: dict[str, str] = {}
    if str(told.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service"):
        ours[SERVICE_NAME] = service
    if SERVICE_INSTANCE_ID not in resource:
        # As results and logs name a worker; the SDK's own is a fresh UUID.
        ours[SERVICE_INSTANCE_ID] = f"{socket.gethostname()}-{os.getpid()}"
    return TracerProvider(resource=told.merge(Resource(ours)), shutdown_on_exit=False)


def _processor(exporter: "SpanExporter", health: ExportHealth) -> Any:
    """The SDK's batches, with what they lose counted: 2,048 spans wait (OTEL_BSP_MAX_QUEUE_SIZE), 512 leave at once."""
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    health.listen(logging.getLogger(type(exporter).__module__))
    logging.getLogger("opentelemetry.sdk._shared_internal").setLevel(logging.CRITICAL)

    class Told(SpanExporter):
        def export(self, spans: "Sequence[ReadableSpan]") -> "SpanExportResult":
            try:
                result = exporter.export(spans)
            except Exception as error:  # noqa: BLE001 - whatever an exporter does, this thread goes on
                health.explain(logging.makeLogRecord({"msg": repr(error)}))
                result = SpanExportResult.FAILURE
            health.note(len(spans), is_taken=result is SpanExportResult.SUCCESS)
            return result

        def shutdown(self) -> None:
            exporter.shutdown()

    class Counted(BatchSpanProcessor):
        def on_end(self, span: "ReadableSpan") -> None:
            health.ended += 1
            super().on_end(span)

    return Counted(Told())


def _shut_down(provider: "TracerProvider", exporters: Sequence["SpanExporter"], health: Sequence[ExportHealth]) -> None:
    """Ends within `_CLOSE_S_MAX`, whatever the collector does: the threads are daemons."""
    ending = threading.Thread(target=provider.shutdown, name="end of spans", daemon=True)
    ending.start()
    ending.join(_CLOSE_S_MAX)
    if ending.is_alive():
        for exporter in exporters:
            exporter.shutdown()  # ends its pauses between tries: a program that goes on has no thread of ours left
    for one in health:
        one.closed()
