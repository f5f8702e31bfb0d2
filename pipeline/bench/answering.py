"""From a request record's bytes to its result and its event lines: the engine's own code, with nothing around it.

The bare loop that the worker is measured against, and the measurement of a hit's CPU time, call exactly this.
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import time

import numpy as np
import orjson

from pipeline.adapters.system import SystemClock
from pipeline.bench.workload import digits_record
from pipeline.config import Settings
from pipeline.core.answer import Answer, StoredAnswer
from pipeline.core.cache_key import request_digest
from pipeline.core.catalog import ModelCatalog
from pipeline.core.event_lines import EventLines
from pipeline.core.exchange import Exchange
from pipeline.core.response_cache import ResponseCache
from pipeline.core.result_record import ResultRecord, encode_result
from pipeline.core.routing import Router
from pipeline.dispatcher import Dispatcher
from pipeline.engine import InferenceEngine, Prepared
from pipeline.ports import InferenceCall
from schemas.request import decode_request
from schemas.tensor import Tensor

_WORKER = "bench"
_WORKER_JSON = orjson.dumps(_WORKER)
_GROUP = b"bench"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record stands in the log, and what the log says of it."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None


def take(value: bytes, headers: list[tuple[str, bytes]], place: Place) -> Exchange:
    """A record's bytes as an exchange that has begun.

    Raises:
        WireError, UndecodableRecordError: no record of a benchmark should be refused.
    """
    exchange = Exchange(
        place.topic, place.partition, place.offset, place.timestamp_ms, place.key, time(), ""
    )  # fmt: skip
    request = decode_request(value, headers)
    exchange.request = request
    exchange.request_id = request.id or ""
    exchange.model_name = request.model_name
    exchange.requested_at = place.timestamp_ms / 1e3
    return exchange


def encode(exchange: Exchange, answer: Answer, prepared: Prepared) -> ResultRecord:
    """The result record of an answer."""
    assert exchange.request is not None, "set by `take`"
    exchange.complete(time())
    exchange.input_bytes = prepared.input_bytes
    exchange.digest = request_digest(exchange.request, prepared.content)
    return encode_result(exchange, answer, _WORKER_JSON, _GROUP)


def event_lines(settings: Settings) -> EventLines:
    """The writer of event lines, as the worker makes it."""
    return EventLines(
        _WORKER,
        settings.retention.events_days,
        settings.retention.requests_days,
        settings.limits.event_record_bytes - (1 << 16),
    )


@dataclass(slots=True, eq=False)
class LaterAnswer:
    """Somebody whose request was no hit: told when its answer is there."""

    exchange: Exchange
    prepared: Prepared
    tell: Callable[["LaterAnswer", Answer], None]

    def answered(self, answer: Answer) -> None:
        """The engine's answer."""
        self.tell(self, answer)


class ConstantServer:
    """An `InferenceServer` that answers at once, the same for every input: for benchmarks of hits alone."""

    name = "constant"

    async def infer(self, call: InferenceCall, timeout_s: float) -> tuple[Tensor, ...]:
        """As `digits` would."""
        rows = call.inputs[0].shape[0]
        label = np.full((rows, 1), 7, np.int64)
        probabilities = np.random.default_rng(7).random((rows, 10), np.float32)
        return (
            Tensor("label", "INT64", label.shape, label.tobytes()),
            Tensor("probabilities", "FP32", probabilities.shape, probabilities.tobytes()),
        )


def engine_without_servers(settings: Settings) -> tuple[InferenceEngine, ResponseCache[StoredAnswer]]:
    """An engine that serves `digits` from `ConstantServer`, and its cache."""
    from random import Random

    server, clock = ConstantServer(), SystemClock()
    dispatcher = Dispatcher(
        [server],
        Router([server.name], Random()),
        clock,
        attempt_timeout_s=settings.worker.inference_timeout_ms / 1e3,
        batches_in_flight=settings.worker.batches_in_flight,
    )
    cache = ResponseCache[StoredAnswer](settings.cache.max_bytes)
    engine = InferenceEngine(
        ModelCatalog([digits_record()]),
        cache,
        dispatcher,
        clock,
        ttl_s=settings.cache.ttl_seconds,
        unavailable_timeout_s=settings.worker.unavailable_timeout_ms / 1e3,
    )
    return engine, cache
