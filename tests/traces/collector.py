"""A collector on loopback that takes OTLP over HTTP and keeps the spans, or refuses, or says nothing."""

import base64
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

_LOOK_S = 0.02


@dataclass(frozen=True)
class Collected:
    """A span as it came: ids are hex, of the root the parent is empty; kind as OTLP has it, without its prefix."""

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    links: tuple[str, ...]
    started_ns: int
    ended_ns: int
    is_error: bool


class Collector:
    """Listens from entering to leaving.

    Attributes:
        status: what is answered; None: nothing, until it is left.
        posts: how many batches came.
    """

    def __init__(self, status: int | None = 200) -> None:
        self.status = status
        self.posts = 0
        self._spans: list[Collected] = []
        self._lock = threading.Lock()
        self._left = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._make_answering())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_LOOK_S,), daemon=True)

    @property
    def url(self) -> str:
        """What OTEL_EXPORTER_OTLP_ENDPOINT is set to."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def spans(self) -> list[Collected]:
        """All that came by now."""
        with self._lock:
            return list(self._spans)

    def wait(self, enough: Callable[[list[Collected]], bool], timeout_s: float = 15.0) -> list[Collected]:
        """The spans, once they are what is waited for; blocks.

        Raises:
            AssertionError: they were not in time.
        """
        limit = time.monotonic() + timeout_s
        while not enough(spans := self.spans):
            assert time.monotonic() < limit, f"not these spans: {[(one.service, one.name) for one in spans]}"
            time.sleep(_LOOK_S)
        return spans

    def _take(self, body: bytes, content_type: str) -> None:
        is_json = content_type.startswith("application/json")
        request = _from_json(body) if is_json else ExportTraceServiceRequest.FromString(body)
        found = [
            _collected(_attributes(resource.resource.attributes).get("service.name", ""), span)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        with self._lock:
            self._spans += found

    def _make_answering(self) -> type[BaseHTTPRequestHandler]:
        collector = self

        class Answering(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.posts += 1
                if collector.status is None:
                    collector._left.wait()
                    return
                if collector.status == 200 and self.path == "/v1/traces":
                    collector._take(body, self.headers["content-type"])
                self.send_response(collector.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
                """Nothing."""

        return Answering


def _from_json(body: bytes) -> ExportTraceServiceRequest:
    """OTLP in JSON, as Triton sends it: ids are hex there, where protobuf's own JSON has base64."""

    def with_base64(members: dict[str, Any]) -> dict[str, Any]:
        ids = {name: members[name] for name in ("traceId", "spanId", "parentSpanId") if name in members}
        return members | {name: base64.b64encode(bytes.fromhex(text)).decode() for name, text in ids.items()}

    document = json.loads(body, object_hook=with_base64)
    return json_format.ParseDict(document, ExportTraceServiceRequest(), ignore_unknown_fields=True)


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


def _collected(service: str, span: Any) -> Collected:
    kinds = type(span).SpanKind
    return Collected(
        service=service,
        name=span.name,
        kind=kinds.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        attributes=_attributes(span.attributes),
        links=tuple(link.span_id.hex() for link in span.links),
        started_ns=span.start_time_unix_nano,
        ended_ns=span.end_time_unix_nano,
        is_error=span.status.code == type(span.status).STATUS_CODE_ERROR,
    )
