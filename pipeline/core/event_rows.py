"""One line of the events topic -> its rows in `events` and `requests`.

Values have the form that ClickHouse's Native format takes without conversion: times as integers since the epoch
(microseconds in DateTime64(6), seconds in DateTime), UUIDs as integers, addresses as IPv6 text, JSON as the bytes it
came in. Every bound of a column type is checked here, so that an insert of validated rows cannot fail because of them.
"""

import base64
import json
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, NamedTuple, NoReturn
from uuid import UUID

import msgspec
from msgspec import Meta, Raw
from pydantic import ValidationError

from schemas.event import Event, EventType, RequestEnd
from schemas.request import normalized_ip
from schemas.result import Status, json_object_length

EVENT_COLUMNS = (
    "event_id", "event_type", "occurred_at", "request_id", "tenant", "model_name", "model_version", "cache_status",
    "instance", "worker", "source_ip", "duration_us", "attributes", "expires_at",
)  # fmt: skip
REQUEST_COLUMNS = (
    "event_id", "request_id", "tenant", "model_name", "model_version", "status", "error_code", "cache_status",
    "cache_key", "source_ip", "requested_at", "completed_at", "queue_us", "inference_us", "total_us", "instance",
    "worker", "input_bytes", "output_bytes", "inputs", "outputs", "parameters", "result", "expires_at",
)  # fmt: skip

# DateTime is 32 bits of seconds: it ends on 2106-02-07. DateTime64 reaches further, the views' minutes do not.
_TICKS_END = 2**32 * 1_000_000
_UINT64_MAX = 2**64 - 1
_DAY_S = 86_400
_EMPTY_OBJECT = Raw(b"{}")
_EMPTY_LIST = Raw(b"[]")

_Moment = Annotated[datetime, Meta(tz=True)]
_Count = Annotated[int, Meta(ge=0)]


class _Line(msgspec.Struct, gc=False):
    """The members of `schemas.event.Event` and `RequestEnd`; JSON values stay the bytes they are, syntax checked.

    A test holds the two together: what is accepted here, the models accept, with the same values.
    """

    event_id: UUID
    event_type: EventType
    occurred_at: _Moment
    expires_at: _Moment
    request_id: str = ""
    tenant: str = ""
    model_name: str = ""
    model_version: str = ""
    cache_status: str = ""
    instance: str = ""
    worker: str = ""
    source_ip: str = "::"
    duration_us: _Count = 0
    attributes: Raw = _EMPTY_OBJECT
    status: Status | None = None
    error_code: str = ""
    cache_key: str = ""
    requested_at: _Moment | None = None
    completed_at: _Moment | None = None
    queue_us: _Count | None = None
    inference_us: _Count = 0
    total_us: _Count | None = None
    input_bytes: _Count | None = None
    output_bytes: _Count | None = None
    inputs: Raw = _EMPTY_LIST
    parameters: Raw = _EMPTY_OBJECT
    result: str | None = None
    result_base64: str | None = None
    requests_expires_at: _Moment | None = None


class _Outputs(msgspec.Struct):
    outputs: Raw = _EMPTY_LIST


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_outputs = msgspec.json.Decoder(_Outputs).decode


class DecodedLine(NamedTuple):
    """A line's rows: values in the order of `EVENT_COLUMNS` and `REQUEST_COLUMNS`, the event's id first in both.

    Attributes:
        event: the row of `events`.
        event_day: its day of expiry, in days since the epoch.
        request: the row of `requests`, for a line that ends a request.
        request_day: its day of expiry.
    """

    event: tuple[Any, ...]
    event_day: int
    request: tuple[Any, ...] | None
    request_day: int | None


def decode_line(line: bytes) -> DecodedLine:
    """The rows of one line.

    Nearly all lines take 3 us (an event) or 6 us (a request's end) here; validating with the schema's models and
    writing JSON anew takes 6 and 20. What the fast form refuses goes through the models, which accept a little more
    (lone surrogates, other ways to write a time) and name what is wrong with the rest.

    Raises:
        ValueError: the line is no event, or a value is outside its column's type; the message says which.
    """
    try:
        if not line.isascii():
            line.decode()  # msgspec does not look into the text of JSON that stays bytes
        return _rows(_decode_line(line))
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return _rows(_validated(line))


def _rows(line: _Line) -> DecodedLine:
    source_ip = _address(line.source_ip)
    expires_s = _microseconds(line.expires_at) // 1_000_000
    event = (
        line.event_id.int,  # rows of plain values drop out of the garbage collector's rounds, a third of the cost
        line.event_type,
        _microseconds(line.occurred_at),
        line.request_id,
        line.tenant,
        line.model_name,
        line.model_version,
        line.cache_status,
        line.instance,
        line.worker,
        source_ip,
        line.duration_us,
        _json_bytes(line.attributes, b"{"),
        expires_s,
    )
    if line.duration_us > _UINT64_MAX:
        raise ValueError(f"duration_us: {line.duration_us} does not fit 64 bits")
    # Either member is enough: a line that lacks one of them is a damaged end, not an event.
    if line.status is None and line.requests_expires_at is None:
        return DecodedLine(event, expires_s // _DAY_S, None, None)
    request = _request_row(line, source_ip)
    return DecodedLine(event, expires_s // _DAY_S, request, request[-1] // _DAY_S)


def _request_row(line: _Line, source_ip: str) -> tuple[Any, ...]:
    if (
        line.status is None
        or line.requested_at is None
        or line.completed_at is None
        or line.queue_us is None
        or line.total_us is None
        or line.input_bytes is None
        or line.output_bytes is None
        or line.requests_expires_at is None
    ):
        raise ValueError("a line that ends a request lacks a member")
    largest = max(line.queue_us, line.inference_us, line.total_us, line.input_bytes, line.output_bytes)
    if largest > _UINT64_MAX:
        raise ValueError(f"{largest} does not fit 64 bits")
    if line.result_base64 is not None:
        record = base64.b64decode(line.result_base64, validate=True)
    else:
        record = (line.result or "").encode()
    return (
        line.event_id.int,
        line.request_id,
        line.tenant,
        line.model_name,
        line.model_version,
        line.status,
        line.error_code,
        line.cache_status,
        line.cache_key,
        source_ip,
        _microseconds(line.requested_at),
        _microseconds(line.completed_at),
        line.queue_us,
        line.inference_us,
        line.total_us,
        line.instance,
        line.worker,
        line.input_bytes,
        line.output_bytes,
        _json_bytes(line.inputs, b"["),
        _outputs(record),
        _json_bytes(line.parameters, b"{"),
        record,
        _microseconds(line.requests_expires_at) // 1_000_000,
    )


def _microseconds(moment: datetime) -> int:
    # A double holds 2^53 us, to the year 2255, and `timestamp` errs by less than a quarter of one: rounding is exact,
    # at a third of the cost of subtracting the epoch and dividing by a timedelta.
    ticks = round(moment.timestamp() * 1e6)
    if not 0 <= ticks < _TICKS_END:
        raise ValueError(f"time {moment.isoformat()} is outside 1970 to 2106")
    return ticks


@lru_cache(maxsize=8192)
def _address(text: str) -> str:
    """IPv6 text without a zone, which the column cannot hold."""
    return normalized_ip(text).partition("%")[0]


def _json_bytes(raw: Raw, opening: bytes) -> bytes:
    text = bytes(raw)
    if text[:1] != opening:
        raise ValueError(f"JSON that begins with {text[:1]!r} instead of {opening!r}")
    return text


def _outputs(record: bytes) -> bytes:
    """The result's outputs as JSON, raw tensors as base64."""
    if not record:
        return b"[]"
    try:
        outputs = bytes(_decode_outputs(record).outputs)
    except (ValueError, RecursionError):
        return _written_outputs(record)
    return outputs if outputs != b"null" else b"[]"


def _written_outputs(record: bytes) -> bytes:
    """Likewise for a record with raw tensors behind its JSON, or with text that only the standard library reads."""
    try:
        length = json_object_length(record)
        outputs = json.loads(record[:length]).get("outputs") or []
        return _written(_with_base64(outputs, record[length:]))
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"result: not a result record ({error!r})") from None


def _with_base64(outputs: list[dict[str, Any]], raw: bytes) -> list[dict[str, Any]]:
    """The outputs with each raw tensor's bytes in its `base64`; they follow each other in the order of the outputs."""
    tensors, position = [], 0
    for tensor in outputs:
        size = tensor.get("parameters", {}).get("binary_data_size")
        if not isinstance(size, int):
            tensors.append(tensor)
            continue
        text = base64.b64encode(raw[position : position + size]).decode()
        tensors.append({name: tensor[name] for name in ("name", "datatype", "shape")} | {"base64": text})
        position += size
    if position != len(raw):
        raise ValueError(f"its outputs claim {position} raw bytes, {len(raw)} follow its JSON")
    return tensors


def _validated(line: bytes) -> _Line:
    """The line by the schema's models; the standard library reads lone surrogates and integers of any size.

    Raises:
        ValueError: the line is no event.
    """
    try:
        parsed = json.loads(line.decode(), parse_constant=_no_constant)
        if not isinstance(parsed, dict):
            raise ValueError("the line is no JSON object")  # noqa: TRY004 - a wrong line, not a wrong call
        is_end = "status" in parsed or "requests_expires_at" in parsed
        fields = (RequestEnd if is_end else Event).model_validate(parsed).model_dump()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except RecursionError:
        raise ValueError("the line is nested too deeply") from None
    for name, value in fields.items():
        if isinstance(value, (list, dict)):
            fields[name] = Raw(_written(value))
        elif isinstance(value, datetime) and value.tzinfo is None:
            fields[name] = value.replace(tzinfo=UTC)
        elif isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            # Inside inputs and attributes a lone surrogate stays an escape; a String column could not hold it.
            raise ValueError(f"{name}: a lone surrogate is no text")
    return _Line(**fields)


def _written(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
