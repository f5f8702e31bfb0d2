"""A request as the record that goes on the requests topic: value, key, headers. Pure; any producer can send it.

    arrays or tensors -> Open Inference Protocol JSON, large ones as raw bytes behind it
    key               -> the partition key, so that equal requests meet the same worker's cache
    headers           -> CloudEvents 1.0, Kafka binding in binary mode

Whatever leaves here was read back with the worker's own parser: what it would refuse is refused at once.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from pipeline.core.cache_key import content_digest, partition_key
from pipeline.core.exchange import utc_text
from pipeline.core.parameters import check_input_parameters, kept_output_parameters, sort_parameters
from pipeline.core.trace_context import is_traceparent
from schemas.decoded import DecodedRequest
from schemas.errors import ErrorCode, WireError
from schemas.request import BINARY_HEADER, UndecodableRecordError, decode_request
from schemas.tensor import Tensor, from_numpy, json_from_raw

Headers = list[tuple[str, bytes]]
Inputs = Mapping[str, npt.NDArray[Any] | list[Any]] | Sequence[Tensor]

SOURCE = "/inference/client"
# JSON numbers take 2 to 4 times their raw bytes and most of the parsing; below this size a person reading the topic
# matters more.
JSON_BYTES_MAX = 1024

_BINARY_OUTPUTS = "binary_data_output"
_BINARY_HEADER_NAME = "Inference-Header-Content-Length"


class RequestRecord(NamedTuple):
    """One record of the requests topic."""

    id: str
    key: bytes
    value: bytes
    headers: Headers


def to_tensors(inputs: Inputs) -> tuple[Tensor, ...]:
    """The inputs as tensors.

    Lists become arrays first: integers INT64, numbers with a fraction FP32, strings BYTES, booleans BOOL. A model that
    wants another datatype is given a numpy array of it, or a `Tensor`.

    Raises:
        WireError: INVALID_INPUT for what the protocol cannot carry.
    """
    if not isinstance(inputs, Mapping):
        return tuple(inputs)
    return tuple(from_numpy(name, _array(name, given)) for name, given in inputs.items())


def _array(name: str, given: npt.NDArray[Any] | list[Any]) -> npt.NDArray[Any]:
    if isinstance(given, np.ndarray):
        return given
    try:
        array = np.asarray(given)
    except ValueError:
        raise WireError(ErrorCode.INVALID_INPUT, f"tensor {name!r}: the lists are not all of the same length") from None
    # A list has no datatype; models of numbers with fractions want FP32 far more often than FP64.
    return array.astype(np.float32) if array.dtype == np.float64 else array


def build_record(
    request_id: str,
    model_name: str,
    inputs: Inputs,
    *,
    now: float,
    model_version: str | int | None = None,
    parameters: Mapping[str, Any] | None = None,
    outputs: Sequence[str] | None = None,
    enable_cache: bool = True,
    cache_control: str | None = None,
    tenant: str | None = None,
    timeout_ms: int | None = None,
    binary: bool | None = None,
    callback: str | None = None,
) -> RequestRecord:
    """The record of one request.

    Args:
        request_id: fresh for each request; UUIDv7 keeps them in order of time.
        model_name: the model.
        inputs: arrays by name, or tensors; the batch axis is theirs to bring.
        now: Unix seconds, for the header `ce_time`.
        model_version: None for the version served by default when the request runs.
        parameters: reach the model, and are part of the cache key.
        outputs: names of the outputs that are wanted; None for all.
        enable_cache: False: neither read, nor stored, nor coalesced.
        cache_control: RFC 9111 words.
        tenant: whose request it is.
        timeout_ms: from the record's append; past it the answer is EXPIRED.
        binary: whether tensors travel as raw bytes; None: those above `JSON_BYTES_MAX`. What JSON cannot carry always
            does. Outputs are asked for as bytes where inputs are sent so.
        callback: a URL that the answer is delivered to, too.

    Raises:
        WireError: the worker would refuse it; `code` and message say why.
    """
    tensors = to_tensors(inputs)
    described, tail = _describe(tensors, binary)
    if tail and binary is not False:
        parameters = {_BINARY_OUTPUTS: True} | dict(parameters or {})
    fields = {
        "id": request_id,
        "model_name": model_name,
        "model_version": None if model_version is None else str(model_version),
        "parameters": dict(parameters) if parameters else None,
        "inputs": described,
        "outputs": None if outputs is None else [{"name": name} for name in outputs],
        "enable_cache": None if enable_cache else False,
        "cache_control": cache_control,
        "tenant": tenant,
        "timeout_ms": timeout_ms,
        "callback": None if callback is None else {"url": callback},
    }
    value = _dumps({name: content for name, content in fields.items() if content is not None})
    binary_headers: Headers = [(_BINARY_HEADER_NAME, b"%d" % len(value))] if tail else []
    value += b"".join(tail)
    request = _read_back(value, binary_headers)
    return RequestRecord(
        request_id, _key(request, tensors), value, request_headers(request_id, model_name, now, binary_headers)
    )


def record_from_json(
    body: bytes, request_id: str, *, now: float, enable_cache: bool | None = None, callback: str | None = None
) -> RequestRecord:
    """The record of a request that is JSON already, as a line of a file is.

    Args:
        body: a request record in its JSON form.
        request_id: its id, if it brings none.
        now: Unix seconds, for the header `ce_time`.
        enable_cache: replaces the request's own switch; None leaves it.
        callback: replaces the request's own callback by this URL; None leaves it.

    Raises:
        WireError: the worker would refuse it, or it is no JSON object.
    """
    request = _read_back(body, [])
    changes: dict[str, Any] = {} if request.id is not None else {"id": request_id}
    if enable_cache is not None and enable_cache != request.enable_cache:
        changes["enable_cache"] = enable_cache
    if callback is not None:
        changes["callback"] = {"url": callback}
    # Not orjson: it refuses lone surrogates and integers beyond 64 bits, which a FP64 tensor may bring.
    given = json.loads(body) if changes else {}
    if changes.keys() & given.keys():
        body = json.dumps(given | changes).encode()
    elif changes:
        # A valid request is no empty object, so a comma follows; the sender's own text stays as it is.
        body = _dumps(changes)[:-1] + b"," + body.lstrip()[1:]
    key = _key(request, [tensor.to_tensor() for tensor in request.inputs])
    return RequestRecord(
        request.id or request_id, key, body, request_headers(request.id or request_id, request.model_name, now, [])
    )


def _describe(tensors: Sequence[Tensor], binary: bool | None) -> tuple[list[dict[str, Any]], list[bytes]]:
    """The `inputs` member, and the raw bytes that follow the JSON."""
    described: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for tensor in tensors:
        member: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        as_bytes = len(tensor.raw) > JSON_BYTES_MAX if binary is None else binary
        data = None if as_bytes else json_from_raw(tensor)
        if data is None:
            member["parameters"] = {"binary_data_size": len(tensor.raw)}
            tail.append(tensor.raw)
        else:
            member["data"] = orjson.Fragment(data)
        described.append(member)
    return described, tail


def _dumps(fields: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(fields)
    except TypeError as error:
        raise WireError(ErrorCode.INVALID_REQUEST, f"the request cannot be written as JSON: {error}") from None


def _read_back(value: bytes, headers: Headers) -> DecodedRequest:
    try:
        request = decode_request(value, [(BINARY_HEADER, length) for _, length in headers])
    except UndecodableRecordError as error:
        raise WireError(ErrorCode.INVALID_REQUEST, error.message) from None
    for tensor in request.inputs:
        check_input_parameters(tensor)
        tensor.to_tensor()
    for output in request.outputs or ():
        kept_output_parameters(output)
    return request


def _key(request: DecodedRequest, tensors: Sequence[Tensor]) -> bytes:
    content = content_digest(tensors, sort_parameters(request.parameters).keyed)
    return partition_key(request.tenant, request.model_name, content).encode()


def traceparent_in(headers: Headers) -> bytes | None:
    """The span that a record names as its cause, where it names one."""
    return next((text for name, text in headers if name == "traceparent" and is_traceparent(text)), None)


def traced(record: RequestRecord, traceparent: bytes) -> RequestRecord:
    """The same record, naming this span as its cause."""
    others = [header for header in record.headers if header[0] != "traceparent"]
    return record._replace(headers=[*others, ("traceparent", traceparent)])


def request_headers(request_id: str, model_name: str, now: float, binary: Headers, source: str = SOURCE) -> Headers:
    """A request's headers: CloudEvents 1.0, Kafka binding in binary mode.

    Args:
        request_id: its id.
        model_name: the model.
        now: Unix seconds.
        binary: the header of the binary form, or none.
        source: which component sends it.
    """
    return [
        ("ce_specversion", b"1.0"),
        ("ce_id", request_id.encode()),
        ("ce_source", source.encode()),
        ("ce_type", b"inference.request.v1"),
        ("ce_time", utc_text(now).encode()),
        ("ce_subject", model_name.encode("utf-8", "replace")),
        ("content-type", b"application/octet-stream" if binary else b"application/json"),
        *binary,
    ]
