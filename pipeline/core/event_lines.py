"""The event lines of one answered request: JSON text, one line per event, the last with the columns of `requests`."""

import base64
import json
import math
from typing import Any

import orjson
import uuid_utils

from pipeline.core.answer import Answer, tensor_head
from pipeline.core.exchange import Exchange, utc_second_text, utc_text
from pipeline.core.result_record import ResultRecord
from schemas.decoded import DecodedInput, DecodedRequest
from schemas.event import EVENT_NAMESPACE
from schemas.request import normalized_ip
from schemas.tensor import JsonData

_NAMESPACE = uuid_utils.UUID(str(EVENT_NAMESPACE))
_CACHE_EVENTS = {
    "hit": "cache.hit",
    "miss": "cache.miss",
    "refresh": "cache.miss",
    "bypass": "cache.bypass",
    "coalesced": "cache.coalesced",
}


class EventLines:
    """Writes the lines of requests.

    Args:
        worker: this worker's name.
        events_days: how long rows of `events` live, in days.
        requests_days: likewise of `requests`.
        line_bytes_max: a longer last line loses its inputs and its result, and says so.
    """

    def __init__(self, worker: str, events_days: float, requests_days: float, line_bytes_max: int) -> None:
        self._worker = worker
        self._events_s = events_days * 86400
        self._requests_s = requests_days * 86400
        self._line_bytes_max = line_bytes_max

    def of(self, exchange: Exchange, answer: Answer, record: ResultRecord, worker: str | None = None) -> bytes:
        """All lines of one answered request, each ended by a line feed.

        Args:
            exchange: the request, completed.
            answer: what the engine said.
            record: the result as it is published.
            worker: who answered, where it was another worker.
        """
        common = self._common(exchange, answer, worker)
        place = f"{exchange.topic}:{exchange.partition}:{exchange.offset}:"
        lines = "\n".join([
            f'{{"event_id":"{uuid_utils.uuid5(_NAMESPACE, place + event_type)}","event_type":"{event_type}",'
            f'"occurred_at":"{occurred_at}","duration_us":{duration_s * 1e6:.0f},{common}}}'
            for event_type, occurred_at, duration_s in _steps(exchange, answer)
        ])  # fmt: skip
        end = _end(exchange, answer, utc_second_text(int(exchange.completed_at + self._requests_s)))
        head = f"{lines[:-1]},{end}".encode()
        text = b"%b,%b}\n" % (head, _bodies(exchange.request, record))
        if len(text) > self._line_bytes_max:
            text = head + b',"attributes":{"cut":"larger than the event record limit"}}\n'
        return text

    def duplicate(self, exchange: Exchange, first_offset: int, same_content: bool) -> bytes:
        """The line of a request whose id was used before: it gets no second answer.

        Args:
            exchange: the request, taken and not answered.
            first_offset: the offset of the first request with its id, in the same partition.
            same_content: whether both ask for the same.
        """
        place = f"{exchange.topic}:{exchange.partition}:{exchange.offset}:request.duplicate"
        first = f"{exchange.topic}:{exchange.partition}:{first_offset}"
        attributes = f'{{"first":{orjson.dumps(first).decode()},"content":"{"same" if same_content else "other"}"}}'
        common = self._common(exchange, Answer("succeeded"), None)
        return (
            f'{{"event_id":"{uuid_utils.uuid5(_NAMESPACE, place)}","event_type":"request.duplicate",'
            f'"occurred_at":"{utc_text(exchange.taken_at)}","duration_us":0,{common},"attributes":{attributes}}}\n'
        ).encode()

    def _common(self, exchange: Exchange, answer: Answer, worker: str | None) -> str:
        request = exchange.request
        tenant = orjson.dumps(exchange.tenant).decode() if exchange.tenant else '""'
        source = normalized_ip(request.source_ip) if request and request.source_ip else "::"
        model = orjson.dumps(exchange.model_name).decode()
        return (
            f'"request_id":"{exchange.request_id}","tenant":{tenant},"model_name":{model},'
            f'"model_version":"{answer.model_version or ""}","cache_status":"{answer.cache_status or ""}",'
            f'"instance":"{answer.instance}","worker":"{worker or self._worker}","source_ip":"{source}",'
            f'"expires_at":"{utc_second_text(int((exchange.completed_at or exchange.taken_at) + self._events_s))}"'
        )


def _steps(exchange: Exchange, answer: Answer) -> list[tuple[str, str, float]]:
    """What happened to a request: event type, when, how long in seconds."""
    taken_at, completed_at = utc_text(exchange.taken_at), exchange.completed_at_text
    steps = [("request.received", taken_at, exchange.queue_s)]
    if answer.cache_status is not None:
        steps.append((_CACHE_EVENTS[answer.cache_status], taken_at, 0.0))
    if answer.dispatched_at is not None and answer.cache_status != "coalesced":
        steps.append(("inference.started", utc_text(answer.dispatched_at), 0.0))
        if answer.status == "succeeded":
            ended_at = utc_text(answer.dispatched_at + answer.inference_s)
            steps.append(("inference.completed", ended_at, answer.inference_s))
    if answer.status != "succeeded":
        steps.append(("inference.failed", completed_at, answer.inference_s))
    steps.append(("result.published", completed_at, exchange.total_s))
    return steps


def _end(exchange: Exchange, answer: Answer, expires_at: str) -> str:
    return (
        f'"status":"{answer.status}","error_code":"{answer.failure.code if answer.failure else ""}",'
        f'"cache_key":"{answer.key.hex() if answer.key else ""}",'
        f'"requested_at":"{exchange.requested_at_text}","completed_at":"{exchange.completed_at_text}",'
        f'"queue_us":{exchange.queue_s * 1e6:.0f},"inference_us":{answer.inference_s * 1e6:.0f},'
        f'"total_us":{exchange.total_s * 1e6:.0f},"input_bytes":{exchange.input_bytes},'
        f'"output_bytes":{answer.outputs.raw_bytes if answer.outputs else 0},"requests_expires_at":"{expires_at}"'
    )


def _bodies(request: DecodedRequest | None, record: ResultRecord) -> bytes:
    inputs, parameters = b"[]", b"{}"
    if request is not None:
        inputs = b"[%b]" % b",".join([_input(tensor) for tensor in request.inputs])
        parameters = _json(request.parameters) if request.parameters else b"{}"
    if record.is_binary:
        result = b'"result_base64":"%b"' % base64.b64encode(record.value)
    else:
        result = b'"result":%b' % orjson.dumps(record.value.decode())
    return b'"inputs":%b,"parameters":%b,%b' % (inputs, parameters, result)


def _json(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:
        # Integers beyond 64 bits are legal JSON and legal FP64 data; orjson refuses to write them.
        return json.dumps(_finite(value), separators=(",", ":")).encode()


def _finite(value: Any) -> Any:
    """The value with null for what was too large for a double (1e999), as orjson writes it: `Infinity` is no JSON."""
    if isinstance(value, list):
        return [_finite(part) for part in value]
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _input(tensor: DecodedInput) -> bytes:
    head, data = tensor_head(tensor.name, tensor.datatype, tuple(tensor.shape)), tensor.data
    if type(data) is bytes:
        return b'%b,"base64":"%b"}' % (head, base64.b64encode(data))
    if type(data) is JsonData and b"\n" not in data.text and b"\r" not in data.text:
        return b'%b,"data":%b}' % (head, data.text)
    # A line feed would end the event's line in the middle.
    return b'%b,"data":%b}' % (head, _json(json.loads(data.text) if type(data) is JsonData else data))
