"""The spans of one call on the fleet, which may carry many requests: one in the trace of each.

A span of its own that only links to its requests would leave every trace without the part that took the time, and the
server's own spans without a request. So each request that pays for the call has a span of it; the server is told of the
first one, and the others link to that. Requests that wait for another's call link to the span of the one they wait for.
"""

from collections.abc import Sequence

from pipeline.core.coalescing import Flight, Member
from pipeline.core.trace_context import Span
from pipeline.ports import Tracer

_METHOD = "inference.GRPCInferenceService/ModelInfer"


class CallSpans:
    """The spans of one call.

    Args:
        tracer: makes them.
        flights: what the call carries.
        instance: who is called.
        at: when it left, Unix seconds.
        attempt: which one for these flights, from 1; 0 for a probe, whose answer nobody waits for.

    Attributes:
        traceparent: what the server is told; None where nobody follows any of the requests.
    """

    def __init__(self, tracer: Tracer, flights: Sequence[Flight], instance: str, at: float, attempt: int) -> None:
        self.traceparent: bytes | None = None
        self._paid: list[tuple[Flight, Member, Span]] = []
        attributes: dict[str, str | int | bool] = {
            "rpc.system.name": "grpc",
            "rpc.method": _METHOD,
            "inference.instance": instance,
            "inference.batch_requests": len(flights),
            "inference.batch_rows": sum([flight.rows for flight in flights]),
        }
        attributes |= {"inference.attempt": attempt} if attempt else {"inference.probe": True}
        for flight, payer, paying in _payers(flights):
            links = () if self.traceparent is None else (self.traceparent,)
            span = tracer.begin(_METHOD, "client", at, attributes, parent=paying.traceparent, links=links)
            if self.traceparent is None:
                self.traceparent = span.traceparent
            self._paid.append((flight, payer, span))

    def end(self, at: float, error: str = "", message: str = "") -> None:
        """The call is over, at `at` Unix seconds; what it was for others is linked to while they wait still."""
        for flight, payer, span in self._paid:
            for member in flight.members:
                if member is not payer and member.span is not None and not member.done:
                    member.span.link(span.traceparent)
            span.end(at, {}, error=error, message=message)


def _payers(flights: Sequence[Flight]) -> list[tuple[Flight, Member, Span]]:
    """Of each flight the first who waits; the server is told of one that somebody will see, where there is one."""
    waiting = [next((member for member in flight.members if not member.done), None) for flight in flights]
    payers = [
        (flight, member, member.span)
        for flight, member in zip(flights, waiting, strict=True)
        if member is not None and member.span is not None
    ]
    return sorted(payers, key=lambda payer: not payer[2].is_recorded)
