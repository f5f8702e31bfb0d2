"""The spans of one record's way through the worker: the work on it, and its result on the way into the log.

The work is told when it is over, from the times that the exchange has anyway; it is begun before only because the
calls for it, and its result, name it.
"""

from collections.abc import Iterable

from pipeline.adapters.system import SystemClock
from pipeline.config import Settings
from pipeline.core.answer import Answer
from pipeline.core.exchange import Exchange
from pipeline.core.result_record import ResultRecord
from pipeline.core.trace_context import Span, messaging_attributes
from pipeline.ports import Clock, Tracer
from pipeline.worker.publisher import Outgoing


class RecordSpans:
    """Begins and ends the spans of records.

    Args:
        tracer: makes them.
        clock: time.
        group: the worker's consumer group.
        results_topic: where results go.
    """

    def __init__(self, tracer: Tracer, clock: Clock, group: str, results_topic: str) -> None:
        self._tracer = tracer
        self._clock = clock
        self._group = group
        self._results_topic = results_topic

    def begin(self, exchange: Exchange) -> None:
        """The work on a record has begun when it was taken; from now on it is what the exchange's answer names."""
        attributes = messaging_attributes("process", exchange.topic, exchange.partition, exchange.request_id)
        attributes |= {
            "messaging.kafka.offset": exchange.offset,
            "messaging.consumer.group.name": self._group,
            "inference.request_id": exchange.request_id,
        }
        if exchange.model_name:
            attributes["inference.model_name"] = exchange.model_name
        name = f"process {exchange.topic}"
        exchange.span = span = self._tracer.begin(
            name, "consumer", exchange.taken_at, attributes, parent=exchange.traceparent
        )
        exchange.traceparent = span.traceparent

    def answered(self, exchange: Exchange, answer: Answer, *, redelivered: bool) -> None:
        """The work is over, with this answer."""
        span = exchange.span
        assert span is not None, "begun"
        if not span.is_recorded:
            return
        attributes: dict[str, str | int | float | bool] = {
            "inference.status": answer.status,
            "inference.queue_ms": exchange.queue_s * 1e3,
        }
        if answer.model_version is not None:
            attributes["inference.model_version"] = answer.model_version
        if answer.cache_status is not None:
            attributes["inference.cache_status"] = answer.cache_status
        if answer.instance:
            attributes["inference.instance"] = answer.instance
        if redelivered:
            attributes["inference.redelivered"] = True
        failure = answer.failure
        if failure is None:
            span.end(exchange.completed_at, attributes)
        else:
            span.end(exchange.completed_at, attributes, error=failure.code.value, message=failure.message)

    def unanswered(self, exchange: Exchange, status: str) -> None:
        """The work is over, and nothing was answered: `repeated`, `duplicate` or `dead_letter` says why."""
        assert exchange.span is not None, "begun"
        exchange.span.end(self._clock.now(), {"inference.status": status})

    def send(self, exchange: Exchange, result: ResultRecord) -> Span | None:
        """The result is on its way into the log; None where nobody will see it: half of what an unsampled hit costs."""
        if exchange.span is None or not exchange.span.is_recorded:
            return None
        attributes = messaging_attributes("send", self._results_topic, exchange.partition, exchange.request_id)
        attributes["messaging.message.body.size"] = len(result.value)
        name = f"send {self._results_topic}"
        return self._tracer.begin(name, "producer", exchange.completed_at, attributes, parent=exchange.traceparent)

    def sent(self, some: Iterable[Outgoing]) -> None:
        """Results are on all in-sync replicas."""
        now = self._clock.now()
        for outgoing in some:
            if outgoing.sending is not None:
                outgoing.sending.end(now, {})


def record_spans_of(settings: Settings, tracer: Tracer) -> RecordSpans:
    """Spans of the records of a worker with these settings."""
    return RecordSpans(tracer, SystemClock(), settings.worker.group, settings.topic("results"))
