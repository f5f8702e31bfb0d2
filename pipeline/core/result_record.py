"""An answer as the record that goes to the results topic: spliced text, not rebuilt objects."""

from functools import lru_cache
from typing import NamedTuple

import orjson

from pipeline.core.answer import Answer, StoredAnswer, output_as_json, output_head
from pipeline.core.exchange import Exchange
from schemas.decoded import DecodedRequest
from schemas.tensor import element_count

Headers = list[tuple[str, bytes]]

_JSON: tuple[str, bytes] = ("content-type", b"application/json")
_BINARY: tuple[str, bytes] = ("content-type", b"application/octet-stream")
_SPECVERSION: tuple[str, bytes] = ("ce_specversion", b"1.0")
_TYPE: tuple[str, bytes] = ("ce_type", b"inference.result.v1")
_SOURCE: tuple[str, bytes] = ("ce_source", b"/inference/worker")
_RECORD = (
    b'{"id":"%b",%b,"status":"%b"%b,"parameters":{%b"queue_ms":%.3f,"total_ms":%.3f,"worker":%b},'
    b'"requested_at":"%b","completed_at":"%b"}'
)
_HIT = b'"cache_status":"hit","cache_key":"%b","cache_age_ms":%d,"inference_ms":0.0,'


class ResultRecord(NamedTuple):
    """A result's bytes and headers; `json_bytes` of them are JSON, raw tensors follow."""

    value: bytes
    headers: Headers
    json_bytes: int

    @property
    def is_binary(self) -> bool:
        """Whether raw tensors follow the JSON."""
        return self.json_bytes != len(self.value)


@lru_cache(maxsize=4096)
def _quoted(text: str) -> bytes:
    return orjson.dumps(text)


def binary_outputs(request: DecodedRequest | None) -> frozenset[str] | None:
    """The outputs asked for in binary form: names, or None for all of them."""
    if request is None or (not request.parameters and request.outputs is None):
        return frozenset()
    default = request.parameters.get("binary_data_output") is True
    if not request.outputs:
        return None if default else frozenset()
    # An output's own word overrides the request's (Triton's binary tensor data extension).
    return frozenset(output.name for output in request.outputs if output.parameters.get("binary_data", default) is True)


def encode_result(
    exchange: Exchange, answer: Answer, worker: bytes, group: bytes, *, all_binary: bool = False
) -> ResultRecord:
    """The record of an answer, with the headers every reader relies on.

    Args:
        exchange: the request it answers.
        answer: what the engine said.
        worker: this worker's name, as a JSON string.
        group: this worker's consumer group.
        all_binary: all outputs in binary form, whatever was asked for.
    """
    outputs = b""
    tail: list[bytes] = []
    if answer.outputs is not None:
        wanted = None if all_binary else binary_outputs(exchange.request)
        text = answer.outputs.json_outputs() if not wanted and wanted is not None else None
        if text is None:
            text, tail = _with_binary(answer.outputs, wanted)
        outputs = b',"outputs":%b' % text
    elif answer.failure is not None:
        failure = answer.failure
        outputs = b',"error":{"code":"%b","message":%b,"retryable":%b}' % (
            failure.code.encode(),
            orjson.dumps(failure.message, default=str),
            b"true" if failure.retryable else b"false",
        )
    request_id, completed_at = exchange.request_id.encode(), exchange.completed_at_text.encode()
    json = _RECORD % (
        request_id,
        _model(exchange.model_name, answer.model_version),
        answer.status.encode(),
        outputs,
        _cache_parameters(answer),
        exchange.queue_s * 1e3,
        exchange.total_s * 1e3,
        worker,
        exchange.requested_at_text.encode(),
        completed_at,
    )
    headers: Headers = [
        _SPECVERSION,
        ("ce_id", request_id),
        _SOURCE,
        _TYPE,
        ("ce_time", completed_at),
        _subject(exchange.model_name),
        ("request-offset", b"%d" % exchange.offset),
        ("request-timestamp", b"%d" % exchange.timestamp_ms),
        ("request-digest", exchange.digest.encode()),
        ("worker-group", group),
        _BINARY if tail else _JSON,
    ]
    if tail:
        headers.append(("Inference-Header-Content-Length", b"%d" % len(json)))
    if exchange.tenant is not None:
        headers.append(("tenant", exchange.tenant.encode()))
    if exchange.traceparent is not None:
        headers.append(("traceparent", exchange.traceparent))
    return ResultRecord(b"".join([json, *tail]) if tail else json, headers, len(json))


@lru_cache(maxsize=4096)
def _subject(model_name: str) -> tuple[str, bytes]:
    return "ce_subject", model_name.encode("utf-8", "replace")


@lru_cache(maxsize=4096)
def _model(name: str, version: str | None) -> bytes:
    if version is None:
        return b'"model_name":%b' % _quoted(name)
    return b'"model_name":%b,"model_version":%b' % (_quoted(name), _quoted(version))


def _cache_parameters(answer: Answer) -> bytes:
    if answer.cache_status is None:
        return b""
    if answer.cache_status == "hit" and answer.key is not None and answer.age_s is not None:
        return _HIT % (answer.key.hex().encode(), answer.age_s * 1e3)
    parts = b'"cache_status":"%b",' % answer.cache_status.encode()
    if answer.key is not None:
        parts += b'"cache_key":"%b",' % answer.key.hex().encode()
    # Whoever derives this answer's events again knows by it that an inference was started, though it failed.
    if answer.outputs is not None or answer.dispatched_at is not None:
        parts += b'"inference_ms":%.3f,' % (answer.inference_s * 1e3)
    if answer.instance:
        parts += b'"instance":%b,' % _quoted(answer.instance)
    return parts


def json_bytes_least(stored: StoredAnswer) -> int:
    """As many bytes at least have the outputs as JSON: a digit and a comma for each element."""
    return 2 * sum([element_count(tensor.shape) for tensor in stored.tensors])


def _with_binary(stored: StoredAnswer, wanted: frozenset[str] | None) -> tuple[bytes, list[bytes]]:
    """The `outputs` array with some tensors' bytes behind the JSON, and those bytes, not copied yet."""
    parts: list[bytes] = []
    tail: list[bytes] = []
    for tensor in stored.tensors:
        output = None if wanted is None or tensor.name in wanted else output_as_json(tensor)
        if output is None:
            output = b'%b,"parameters":{"binary_data_size":%d}}' % (output_head(tensor), len(tensor.raw))
            tail.append(tensor.raw)
        parts.append(output)
    return b"[%b]" % b",".join(parts), tail
