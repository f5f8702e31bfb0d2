"""An inference request: the record on the requests topic and the body of an HTTP request.

Open Inference Protocol JSON, or its binary form: JSON followed by raw tensor bytes, the JSON's length in the header
`Inference-Header-Content-Length`.
"""

import ipaddress
import json
import math
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple, NoReturn

import msgspec
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    SkipValidation,
    StrictBool,
    StrictStr,
    ValidationError,
)

from schemas.decoded import DecodedInput, DecodedRequest
from schemas.errors import ErrorCode, WireError
from schemas.structs import AsText, Stated, derived
from schemas.tensor import Datatype, JsonData, Tensor, check_raw, json_data, raw_from_json

BINARY_HEADER = "inference-header-content-length"
_BINARY_HEADER_LENGTH = len(BINARY_HEADER)
ID_PATTERN = r"^[A-Za-z0-9._:-]{1,128}$"
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

_INT64_MAX = 2**63 - 1
ParameterValue = (
    StrictBool
    | Annotated[int, Field(strict=True, ge=-_INT64_MAX - 1, le=_INT64_MAX)]
    | Annotated[float, Field(strict=True, allow_inf_nan=False)]
    | StrictStr
)


def _checked_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    # One function for all values: a union of strict types takes 2**64 for a float and reports four errors per value.
    for name, value in parameters.items():
        if isinstance(value, (bool, str)):
            continue
        if isinstance(value, int):
            if not -_INT64_MAX - 1 <= value <= _INT64_MAX:
                raise ValueError(f"{name!r:.80} is an integer of more than 64 bits")
        elif not isinstance(value, float) or not math.isfinite(value):
            raise ValueError(f"{name!r:.80} must be a string, a boolean or a finite number, got {value!r:.80}")
    return parameters


Parameters = Annotated[dict[str, Annotated[ParameterValue, SkipValidation]], Stated(_checked_parameters)]

# What is kept in memory by its text (names, addresses) or has a limit elsewhere has one here: Kafka's topic names have
# 249 characters, numpy's arrays 32 dimensions.
Name = Annotated[str, Field(min_length=1, max_length=256)]
_DIMENSIONS_MAX = 32
_TENSORS_MAX = 1024
_ERRORS_NAMED_MAX = 64
# What ClickHouse's DateTime64 and a datetime in another zone can both hold.
_TIME_MIN = datetime(1970, 1, 1, tzinfo=UTC)
_TIME_END = datetime(2200, 1, 1, tzinfo=UTC)


@lru_cache(maxsize=8192)
def normalized_ip(text: str) -> str:
    """An address as ClickHouse's IPv6 type reads it: IPv4 mapped (RFC 4291 section 2.5.5.2), no zone (RFC 4007).

    Raises:
        ValueError: not an address.
    """
    address = ipaddress.ip_address(text)
    return f"::ffff:{address}" if address.version == 4 else str(address).partition("%")[0]


def _checked_ip(text: str) -> str:
    normalized_ip(text)
    return text


class _Wire(BaseModel):
    """Unknown members are refused: a misspelt switch must not be a silent default."""

    model_config = ConfigDict(extra="forbid", strict=True)


class InputTensor(_Wire):
    """One input. Its bytes are in `data`, or behind the JSON when `parameters.binary_data_size` is there."""

    name: Name
    datatype: Datatype
    shape: Annotated[
        list[Annotated[int, Field(ge=0, le=_INT64_MAX)]], Field(max_length=_DIMENSIONS_MAX, fail_fast=True)
    ]
    # Decoded from a record: raw bytes, `JsonData`, or what its JSON says where that does not fit at once.
    data: Annotated[Any, AsText()] = Field(
        default=None,
        description="Elements, flat or nested, row-major.",
        json_schema_extra={"type": "array"},
    )
    parameters: Parameters = Field(default_factory=dict)

    def value(self) -> Any:
        """Its data as bytes or as a JSON value."""
        return json.loads(self.data.text) if type(self.data) is JsonData else self.data

    def to_tensor(self) -> Tensor:
        """The tensor in raw form.

        Raises:
            WireError: INVALID_INPUT when data, datatype and shape do not fit together.
        """
        data = self.data
        if type(data) is JsonData:
            data = data.raw
        elif type(data) is bytes:
            check_raw(self.name, self.datatype, self.shape, data)
        else:
            data = raw_from_json(self.name, self.datatype, self.shape, data)
        return Tensor(self.name, self.datatype, tuple(self.shape), data)


class RequestedOutput(_Wire):
    """One output that is asked for; `parameters.binary_data` asks for it in binary form."""

    name: Name
    parameters: Parameters = Field(default_factory=dict)


class ReplyTo(_Wire):
    """Where a copy of the result goes, at least once."""

    topic: Annotated[str, Field(min_length=1, max_length=249)] | None = Field(
        default=None, description="Default: the replies topic."
    )
    partition: Annotated[int, Field(ge=0)]


class Callback(_Wire):
    """Where the result is delivered by webhook (Standard Webhooks 1.0)."""

    url: Annotated[str, Field(max_length=2048)]


class InferenceRequest(_Wire):
    """One inference to run.

    The answer of an id is the first result with it in its partition's order.
    """

    id: Annotated[str, Field(pattern=ID_PATTERN)] | None = Field(
        default=None, description="Producers should send a UUIDv7. Absent: {topic}:{partition}:{offset}."
    )
    model_name: Name
    model_version: Annotated[str, Field(pattern=r"^[0-9]{1,18}$")] | None = Field(
        default=None, description="Absent: the version served by default when the request runs."
    )
    parameters: Parameters = Field(default_factory=dict)
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=_TENSORS_MAX, fail_fast=True)]
    outputs: Annotated[list[RequestedOutput], Field(max_length=_TENSORS_MAX, fail_fast=True)] | None = Field(
        default=None, description="Absent: all."
    )
    stream: bool = False
    enable_cache: bool = Field(default=True, description="false: neither read, nor stored, nor coalesced.")
    cache_control: Annotated[str, Field(max_length=256)] | None = Field(
        default=None, description="RFC 9111: no-cache, no-store, max-age, only-if-cached."
    )
    tenant: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    timeout_ms: Annotated[int, Field(ge=0, le=7 * 86_400_000)] | None = Field(
        default=None, description="Milliseconds from requested_at; past it the answer is EXPIRED."
    )
    requested_at: Annotated[AwareDatetime, Field(ge=_TIME_MIN, lt=_TIME_END)] | None = None
    source_ip: Annotated[str, Field(max_length=64), AfterValidator(_checked_ip)] | None = None
    reply_to: ReplyTo | None = None
    callback: Callback | None = None


class UndecodableRecordError(Exception):
    """A record that is no JSON object (not JSON, a tombstone, a broken binary length): it goes to the dead letters.

    Args:
        reason: a stable word for the dead letter's `reason` header.
        message: a sentence for people.
    """

    def __init__(self, reason: Literal["NOT_JSON", "TOMBSTONE", "BAD_BINARY_LENGTH"], message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


_VALIDATOR = InferenceRequest.__pydantic_validator__
_STRUCT = derived(InferenceRequest)
_decode: Callable[[bytes], Any] = msgspec.json.Decoder(_STRUCT.struct).decode
# pydantic's parser refuses what is nested over 200 levels, msgspec's goes on to 1,000, where nobody can write it again.
# So few brackets cannot be too deep.
_BRACKETS_SAFE = 200


def decode_request(body: bytes | None, headers: Iterable[tuple[str, bytes]] = ()) -> DecodedRequest:
    """A record's bytes as a request; binary tensors' bytes are put into their `data`.

    What comes back is the struct derived from `InferenceRequest` (`schemas/structs.py`), which is decoded in half the
    time; the model itself where the struct does not take the record and the model does.

    Raises:
        UndecodableRecordError: no JSON object can be read.
        WireError: a JSON object that is not a valid request.
    """
    if not body:
        raise UndecodableRecordError("TOMBSTONE", "the record has no value")
    if headers and (length := _json_length(body, headers)) is not None:
        request = _validated(body[:length])
        _attach_binary(request.inputs, body, length)
        return request
    request = _validated(body)
    for tensor in request.inputs:
        if tensor.parameters and "binary_data_size" in tensor.parameters:
            raise WireError(
                ErrorCode.INVALID_REQUEST,
                f"inputs: {tensor.name!r} has binary_data_size, the header Inference-Header-Content-Length is absent",
            )
    return request


def _by_struct(body: bytes) -> DecodedRequest | None:
    """A valid request's struct; None where the model has to decide, and to say why."""
    try:
        request: DecodedRequest = _decode(body)
        for name, validate in _STRUCT.late:
            if (text := getattr(request, name)) is not None:
                setattr(request, name, validate(bytes(text)))
        for tensor in request.inputs:
            if tensor.data is not None:
                tensor.data = json_data(tensor.datatype, tensor.shape, bytes(tensor.data))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return request


def _validated(body: bytes) -> DecodedRequest:
    if body.count(b"[") + body.count(b"{") <= _BRACKETS_SAFE and (found := _by_struct(body)) is not None:
        return found
    # The parser is lenient with these two words; they are no JSON. One letter is found, or not, five times faster.
    if (b"N" in body and b"NaN" in body) or (b"I" in body and b"Infinity" in body):
        _refuse_constants(body)
    try:
        request: InferenceRequest = _VALIDATOR.validate_json(body)
    except ValidationError as error:
        _raise_wire_error(error, body)
    return request


def _raise_wire_error(error: ValidationError, body: bytes) -> NoReturn:
    # A report of a million errors takes seconds, and no one reads it.
    if error.error_count() > _ERRORS_NAMED_MAX:
        raise WireError(
            ErrorCode.INVALID_REQUEST, f"{error.error_count()} members of the record are wrong or unknown"
        ) from None
    first = error.errors(include_url=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        if "recursion limit" in first["msg"] and _is_object(body):
            raise WireError(ErrorCode.INVALID_REQUEST, "the record is nested over 200 levels deep") from None
        raise UndecodableRecordError("NOT_JSON", f"the record is not JSON: {first['msg']}") from None
    if not first["loc"]:
        raise UndecodableRecordError("NOT_JSON", "the record is JSON but not an object") from None
    # Names are the sender's: escaped, and cut.
    named = (f"[{part}]" if isinstance(part, int) else f".{repr(part[:80])[1:-1]}" for part in first["loc"])
    field = "".join(named).lstrip(".")
    if first["type"] == "value_error":  # our own sentences, the value in them
        message = first["msg"].removeprefix("Value error, ")
    elif first["type"] == "missing":
        message = first["msg"]
    else:
        message = f"{first['msg']}, got {first['input']!r:.80}"
    raise WireError(ErrorCode.INVALID_REQUEST, f"{field}: {message}") from None


def _is_object(body: bytes) -> bool:
    """Whether a record is a JSON object, by the parser that reads 1,000 levels."""
    try:
        return isinstance(msgspec.json.decode(body), dict)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False


def _refuse_constants(body: bytes) -> None:
    def refuse(word: str) -> NoReturn:
        raise UndecodableRecordError("NOT_JSON", f"the record is not JSON: {word} is no JSON value (RFC 8259)")

    try:
        json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise UndecodableRecordError("NOT_JSON", f"the record is not JSON: {error}") from None


def _json_length(body: bytes, headers: Iterable[tuple[str, bytes]]) -> int | None:
    for name, value in headers:
        # The length first: lower-casing all of a CloudEvents record's headers costs 0.5 us.
        if len(name) == _BINARY_HEADER_LENGTH and name.lower() == BINARY_HEADER:
            length = binary_header_length(value, len(body))
            if length is None:
                raise UndecodableRecordError(
                    "BAD_BINARY_LENGTH",
                    f"Inference-Header-Content-Length is {value!r:.40}, the record has {len(body)} bytes",
                )
            return length
    return None


def binary_header_length(value: bytes | None, bytes_max: int) -> int | None:
    """The JSON's length as the header states it, or None where it is no length within `bytes_max`.

    Kafka allows headers without a value; 19 digits are more than any record has.
    """
    if value is None or not value.isdigit() or len(value) > 19 or int(value) > bytes_max:
        return None
    return int(value)


def _attach_binary(inputs: Iterable[DecodedInput], body: bytes, position: int) -> None:
    """Cuts the tensors out of the record's bytes from a position on; each is copied once, however large."""
    for tensor in inputs:
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            continue
        if tensor.data is not None:
            raise WireError(ErrorCode.INVALID_REQUEST, f"inputs: {tensor.name!r} has both data and binary_data_size")
        if type(size) is not int or size < 0 or size > len(body) - position:
            raise WireError(
                ErrorCode.INVALID_INPUT,
                f"inputs: {tensor.name!r} claims {size!r} bytes of binary data, {len(body) - position} are left",
            )
        tensor.data = body[position : position + size]
        position += size
    if position != len(body):
        raise WireError(ErrorCode.INVALID_INPUT, f"inputs: {len(body) - position} bytes follow the last binary tensor")


def is_request_id(text: str) -> bool:
    """Whether a text may be a request's id."""
    return _ID.fullmatch(text) is not None


class ReadableRequest(NamedTuple):
    """What can be read of a JSON object that failed validation: its error is found by it. None where it is not usable.

    Attributes:
        request_id: its id.
        model_name: the model it asks for.
        tenant: whose it is.
    """

    request_id: str | None
    model_name: str | None
    tenant: str | None


def readable_request(body: bytes) -> ReadableRequest:
    """Id, model name and tenant of a JSON object that failed validation."""
    try:
        value = json.JSONDecoder().raw_decode(body.decode("utf-8", "replace").lstrip(" \t\r\n"))[0]
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        return ReadableRequest(None, None, None)
    request_id, tenant = value.get("id"), value.get("tenant")
    return ReadableRequest(
        request_id if isinstance(request_id, str) and is_request_id(request_id) else None,
        _printable(value.get("model_name"), 256),
        _printable(tenant, 128) or None,
    )


def _printable(value: Any, length_max: int) -> str | None:
    return value if isinstance(value, str) and value.isprintable() and len(value) <= length_max else None
