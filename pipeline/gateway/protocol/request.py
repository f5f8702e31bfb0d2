"""A request of the Open Inference Protocol over HTTP as a request record: model of the address, tensors as they are.

Only the protocol's own members pass: what else a record may have (a callback, a tenant) comes by /v1, or by the
credential. Whether the rest is a valid request is decided where records are, once, by `schemas/request.py`.
"""

import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
import orjson
from starlette.datastructures import Headers

from pipeline.core.cache_policy import parse_cache_control
from schemas.errors import ErrorCode, WireError
from schemas.request import BINARY_HEADER, binary_header_length

# What the watcher lets a model be called (pipeline/watcher/repository/names.py): plain ASCII, so that no address, no
# look-alike and no 10 kB of name gets further than here.
_MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}")
_VERSION = re.compile(r"[0-9]{1,18}")
_MEMBERS = ("id", "parameters", "inputs", "outputs")
# KServe's own client names the model in the body too.
_NAMES = ("model_name", "model_version")
_HEADER = "Inference-Header-Content-Length"
_SWITCHES = {"true": True, "1": True, "false": False, "0": False}
_TIMEOUT = re.compile(r"[0-9]{1,9}")
# The record's own limits, told by the headers' names: a week, and 256 characters (schemas/request.py).
_TIMEOUT_MS_MAX = 7 * 86_400_000
_CACHE_CONTROL_MAX = 256

_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_objects = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_text = msgspec.json.Decoder(str).decode
_decode_at = json.JSONDecoder().raw_decode
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_MARK = re.compile(r"[ \t\n\r]*([{}:,])[ \t\n\r]*")
_Value = msgspec.Raw | bytes


class ModelAddress(NamedTuple):
    """A model as an address names it; without a version, the one served by default."""

    name: str
    version: str | None


class Record(NamedTuple):
    """A request record's value, and the header that marks the binary form where it has it."""

    value: bytes
    headers: list[tuple[str, bytes]]


def model_address(name: str, version: str | None) -> ModelAddress | None:
    """The model that an address's decoded parts name; None for what can be no model's name or no version."""
    if _MODEL_NAME.fullmatch(name) is None:
        return None
    if version is None:
        return ModelAddress(name, None)
    # Triton reads a version as a number: 01 is 1.
    return ModelAddress(name, str(int(version))) if _VERSION.fullmatch(version) else None


def to_record(body: bytes, headers: Iterable[tuple[str, bytes]], model: ModelAddress) -> Record:
    """The request record that says what this body asks of this model. Tensors are copied once, and not looked at.

    Args:
        body: JSON, or JSON and raw tensors behind it.
        headers: with `Inference-Header-Content-Length` for the binary form, the JSON's length in bytes.
        model: who is asked.

    Raises:
        WireError: INVALID_REQUEST for what is no JSON object, has members that the protocol does not know, or asks for
            what is not served: sequences, classification, a raw body without JSON.
    """
    length = _json_length(body, headers)
    members = _members(memoryview(body)[: len(body) if length is None else length])
    _check_names(members, model)
    _check_features(members)
    parts = [b'{"model_name":', orjson.dumps(model.name)]
    if model.version is not None:
        parts += (b',"model_version":', orjson.dumps(model.version))
    for name in _MEMBERS:
        # An empty id is none, as in Triton.
        if name in members and not (name == "id" and bytes(members[name]) == b'""'):
            parts += (b',"%b":' % name.encode(), members[name])
    parts.append(b"}")
    if length is None:
        return Record(b"".join(parts), [])
    json_bytes = sum([len(memoryview(part)) for part in parts])
    return Record(b"".join([*parts, memoryview(body)[length:]]), [(_HEADER, b"%d" % json_bytes)])


def changes_of(headers: Headers) -> dict[str, Any]:
    """The record's members that HTTP headers set: `cache_control`, `enable_cache`, `timeout_ms`.

    Raises:
        WireError: INVALID_REQUEST naming the header, its value and what was expected.
    """
    changes: dict[str, Any] = {}
    words = ", ".join(headers.getlist("cache-control"))
    if words:
        if len(words) > _CACHE_CONTROL_MAX:
            raise _refused(f"Cache-Control: {len(words)} characters, at most {_CACHE_CONTROL_MAX} are read")
        parse_cache_control(words)
        changes["cache_control"] = words
    switch = headers.get("inference-enable-cache")
    if switch is not None:
        if switch.lower() not in _SWITCHES:
            raise _refused(f"Inference-Enable-Cache: needs true or false, got {switch!r:.40}")
        changes["enable_cache"] = _SWITCHES[switch.lower()]
    timeout = headers.get("inference-timeout-ms")
    if timeout is not None:
        if _TIMEOUT.fullmatch(timeout) is None or int(timeout) > _TIMEOUT_MS_MAX:
            raise _refused(f"Inference-Timeout-Ms: needs milliseconds up to {_TIMEOUT_MS_MAX}, got {timeout!r:.40}")
        changes["timeout_ms"] = int(timeout)
    return changes


def _json_length(body: bytes, headers: Iterable[tuple[str, bytes]]) -> int | None:
    for name, value in headers:
        if name.lower() != BINARY_HEADER:
            continue
        length = binary_header_length(value, len(body))
        if length is None:
            raise _refused(f"{_HEADER}: needs a length within the body's {len(body)} bytes, got {value!r:.40}")
        if length == 0:
            raise _refused(f"{_HEADER} is 0: a raw body without JSON is not served, its tensors must be described")
        return length
    return None


def _members(json_text: memoryview) -> dict[str, _Value]:
    """The object's members, each value the sender's text."""
    try:
        try:
            return dict(_object(json_text))
        except (msgspec.MsgspecError, ValueError):
            # msgspec takes no half of a surrogate pair, which JSON's grammar allows. What becomes of it is decided
            # where records are read, in their words: they refuse it, too.
            if _SURROGATE.search(json_text) is None:
                raise
            return _spans(str(json_text, "utf-8"))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _refused(f"the body is no JSON object: {error}") from None


def _spans(text: str) -> dict[str, _Value]:
    """The same by the standard library's parser, forty times slower.

    Raises:
        ValueError: it is no JSON object.
    """
    found: dict[str, _Value] = {}
    mark, at = _mark(text, 0, "{")
    if text.startswith("}", at):
        mark, at = _mark(text, at, "}")
    while mark != "}":
        name, at = _decode_at(text, at)
        _, at = _mark(text, at, ":")
        _, end = _decode_at(text, at)
        found[str(name)] = text[at:end].encode()
        mark, at = _mark(text, end, ",}")
    if at != len(text):
        raise ValueError(f"something follows the object at character {at}")
    return found


def _mark(text: str, at: int, wanted: str) -> tuple[str, int]:
    """The mark that comes next, and where the space behind it ends."""
    found = _MARK.match(text, at)
    if found is None or found[1] not in wanted:
        raise ValueError(f"one of {wanted} was expected at character {at}")
    return found[1], found.end()


def _check_names(members: dict[str, _Value], model: ModelAddress) -> None:
    if unknown := [name for name in members if name not in _MEMBERS and name not in _NAMES]:
        raise _refused(
            f"{unknown[0]!r:.80} is no member of the Open Inference Protocol's request, expected some of "
            f"{', '.join(_MEMBERS)}; POST /v1/inferences takes whole request records"
        )
    for name, addressed in zip(_NAMES, model, strict=True):
        if name in members and (given := _as_text(members[name])) != addressed:
            raise _refused(f"{name}: the body says {given!r:.80}, the address {addressed!r:.80}")


def _as_text(raw: _Value) -> str | None:
    try:
        return _text(raw)
    except (msgspec.MsgspecError, ValueError):
        return None


def _check_features(members: dict[str, _Value]) -> None:
    """Refuses what Triton's clients may ask for and no worker answers; other mistakes are told where records are."""
    try:
        parameters = _object(members["parameters"]) if "parameters" in members else {}
        outputs = _objects(members["outputs"]) if "outputs" in members else []
        asked = [_object(output["parameters"]) for output in outputs if "parameters" in output]
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return
    if sequence := [name for name in parameters if name.startswith("sequence_")]:
        raise _refused(f"parameters.{sequence[0]:.80}: sequences are not served, every request stands for itself")
    if any("classification" in output for output in asked):
        raise _refused("outputs: the parameter 'classification' is not served, ask for the output's numbers")


def _refused(message: str) -> WireError:
    return WireError(ErrorCode.INVALID_REQUEST, message)
