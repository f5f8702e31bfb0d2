"""A hit's CPU time: from a record's bytes to the encoded result, and its event lines apart."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from pipeline.bench.answering import LaterAnswer, Place, encode, engine_without_servers, event_lines, take
from pipeline.bench.effort import Effort
from pipeline.bench.figure import Bar, Figure, best
from pipeline.bench.timing import cpu_microseconds
from pipeline.bench.workload import RequestRecords
from pipeline.config import Settings
from pipeline.core.answer import Answer
from pipeline.core.cache_key import cache_key, content_digest, encode_outputs
from pipeline.core.exchange import Exchange
from pipeline.core.parameters import sort_parameters
from pipeline.core.result_record import ResultRecord
from pipeline.core.validation import check_inputs, requested_outputs
from pipeline.engine import InferenceEngine, Prepared
from schemas.decoded import DecodedRequest
from schemas.request import decode_request

_BAR_US = 15.0


@dataclass(slots=True, eq=False)
class _Sample:
    """One request on its way, kept after every step so that each step can be repeated alone."""

    value: bytes
    headers: list[tuple[str, bytes]]
    place: Place
    request: DecodedRequest
    exchange: Exchange
    prepared: Prepared
    answer: Answer
    result: ResultRecord


def _unexpected(later: LaterAnswer, answer: Answer) -> None:
    raise RuntimeError(f"a request that should be a hit was computed: {answer}")


class _HitPath:
    """The steps of a hit over a number of warm requests."""

    def __init__(self, settings: Settings) -> None:
        self.engine, self.cache = engine_without_servers(settings)
        self.lines = event_lines(settings)
        self.samples: list[_Sample] = []

    async def warm(self, count: int) -> None:
        """Fills the cache, then takes every request through all steps once."""
        records = RequestRecords(count, seed=1)
        for offset, record in enumerate(records.take(count)):
            await self.engine.perform_inference_with_cache_check(decode_request(record.value, record.headers))
            place = Place("inference.requests", offset % 4, offset, int(time.time() * 1000), record.key)
            exchange, prepared = take(record.value, record.headers, place), Prepared()
            answer = _submit(self.engine, exchange, prepared)
            result = encode(exchange, answer, prepared)
            assert exchange.request is not None, "set by `take`"
            self.samples.append(
                _Sample(
                    record.value, record.headers, place, exchange.request, exchange, prepared, answer, result
                )
            )  # fmt: skip

    def whole(self, call: int) -> ResultRecord:
        """Bytes in, result record out."""
        sample = self.samples[call % len(self.samples)]
        exchange, prepared = take(sample.value, sample.headers, sample.place), Prepared()
        return encode(exchange, _submit(self.engine, exchange, prepared), prepared)

    def events(self, call: int) -> bytes:
        """The event lines."""
        sample = self.samples[call % len(self.samples)]
        return self.lines.of(sample.exchange, sample.answer, sample.result)

    def decode(self, call: int) -> Exchange:
        """Bytes to a validated record."""
        sample = self.samples[call % len(self.samples)]
        return take(sample.value, sample.headers, sample.place)

    def check_and_key(self, call: int) -> bytes:
        """Its inputs against the model, and the cache key."""
        return key_of(self.engine, self.samples[call % len(self.samples)].request)

    def submit(self, call: int) -> Answer:
        """The engine's whole part, with check and key."""
        sample = self.samples[call % len(self.samples)]
        return _submit(self.engine, sample.exchange, Prepared())

    def encode(self, call: int) -> ResultRecord:
        """The answer to a result record, with its digest and headers."""
        sample = self.samples[call % len(self.samples)]
        return encode(sample.exchange, sample.answer, sample.prepared)


def key_of(engine: InferenceEngine, request: DecodedRequest) -> bytes:
    """Validates a request against its model and makes its cache key, as the engine does."""
    version = engine.catalog.resolve(request.model_name, request.model_version, time.time())
    parameters = sort_parameters(request.parameters)
    tensors = check_inputs(version, request)
    outputs = encode_outputs(requested_outputs(version, request))
    content = content_digest(tensors, parameters.keyed)
    return cache_key(version.scope_of(request.tenant), content, outputs)


def _submit(engine: InferenceEngine, exchange: Exchange, prepared: Prepared) -> Answer:
    assert exchange.request is not None, "set by `take`"
    answer = engine.submit(
        exchange.request,
        LaterAnswer(exchange, prepared, _unexpected),
        requested_at=exchange.requested_at,
        appended_at=exchange.timestamp_ms / 1e3,
        prepared=prepared,
    )
    assert answer is not None, "warm"
    return answer


def _naive_cache(path: _HitPath) -> tuple[Callable[[int], bytes], Callable[[int], bytes]]:
    """The same job with the standard library and numpy: a hit's bytes, and its event lines."""
    stored: dict[str, dict[str, Any]] = {}
    requests: list[dict[str, Any]] = []
    for sample in path.samples:
        request = json.loads(sample.value)
        requests.append(request)
        outputs = json.loads(sample.result.value)["outputs"]
        stored[_naive_key(request)] = {"outputs": outputs, "at": time.time()}
    return partial(_naive_hit, path, stored), partial(_naive_events, path, requests)


def _naive_key(request: dict[str, Any]) -> str:
    digest = hashlib.sha256(f"{request['model_name']}/1/{request.get('parameters')}".encode())
    for tensor in sorted(request["inputs"], key=lambda one: str(one["name"])):
        if tensor["datatype"] != "FP32" or tensor["shape"][1:] != [64]:
            raise ValueError(f"{tensor['name']} does not fit")
        data = np.asarray(tensor["data"], dtype="<f4").reshape(tensor["shape"])
        digest.update(f"{tensor['name']}/{tensor['datatype']}/{tensor['shape']}".encode())
        digest.update(data.tobytes())
    return digest.hexdigest()


def _naive_hit(path: _HitPath, stored: dict[str, dict[str, Any]], call: int) -> bytes:
    sample = path.samples[call % len(path.samples)]
    request = json.loads(sample.value)
    key = _naive_key(request)
    entry = stored[key]
    now = time.time()
    answer = {
        "id": request["id"],
        "model_name": request["model_name"],
        "model_version": "1",
        "status": "succeeded",
        "outputs": entry["outputs"],
        "parameters": {"cache_status": "hit", "cache_key": key, "cache_age_ms": int((now - entry["at"]) * 1e3)},
        "completed_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
    }
    return json.dumps(answer).encode()


def _naive_events(path: _HitPath, requests: list[dict[str, Any]], call: int) -> bytes:
    """The same lines from the same values by `json.dumps`; the ids are not even made."""
    sample = path.samples[call % len(path.samples)]
    common = {"request_id": sample.exchange.request_id, "model_name": "digits", "worker": "bench", "tenant": ""}
    end = {
        "inputs": requests[call % len(requests)]["inputs"],
        "result": sample.result.value.decode(),
        "status": "succeeded",
    }
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    kinds: list[tuple[str, dict[str, Any]]] = [("request.received", {}), ("cache.hit", {}), ("result.published", end)]
    return "\n".join(
        json.dumps({"event_id": "", "event_type": kind, "occurred_at": at, **common, **rest}) for kind, rest in kinds
    ).encode()


async def measure(settings: Settings, effort: Effort) -> list[Figure]:
    """`engine.hit_cpu` with its steps, and `engine.hit_events_cpu`."""
    path = _HitPath(settings)
    await path.warm(min(effort.distinct, 256))
    naive_hit, naive_events = _naive_cache(path)
    taken = cpu_microseconds(
        {
            "whole": path.whole, "naive": naive_hit, "events": path.events, "naive_events": naive_events,
            "decode": path.decode, "key": path.check_and_key, "submit": path.submit, "encode": path.encode,
        },
        rounds=effort.cpu_rounds,
        calls=effort.cpu_calls,
    )  # fmt: skip
    await path.engine.stop()
    # The samples in turn, more of them than any memory of texts and digests holds.
    unknown = _HitPath(settings)
    await unknown.warm(effort.cpu_distinct)
    rounds = max(effort.cpu_rounds * effort.cpu_calls // effort.cpu_distinct, 1)
    cold = cpu_microseconds({"whole": unknown.whole}, rounds=rounds, calls=effort.cpu_distinct)["whole"]
    await unknown.engine.stop()
    lowest = {name: min(times) for name, times in taken.items()}
    steps = {
        "decode": lowest["decode"],
        "validate + key": lowest["key"],
        "look-up": max(lowest["submit"] - lowest["key"], 0.0),
        "encode": lowest["encode"],
        "events (not in the value)": lowest["events"],
        "median of the rounds (not the best)": median(taken["whole"]),
        f"each of {effort.cpu_distinct:,} tensors in turn": min(cold),
    }
    return [
        best(
            "engine.hit_cpu", "us", taken["whole"], taken["naive"], Bar("value_below", _BAR_US),
            how="CPU of one hit, record's bytes to result record with headers; 64 FP32 as JSON, best round",
            yardstick_how="json + numpy + sha256 + json.dumps, no headers and fewer members",
            steps=steps,
        ),
        best(
            "engine.hit_events_cpu", "us", taken["events"], taken["naive_events"], None,
            how="CPU of a hit's three event lines, the last with inputs and result",
            yardstick_how="json.dumps of the same lines, without event ids",
        ),
    ]  # fmt: skip
