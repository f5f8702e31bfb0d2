"""Giving a request's record another id, byte for byte the same otherwise.

The body is not parsed and written anew: numbers of any size, repeated members, escapes and spaces stay as they were.
"""

import json
from collections.abc import Iterator, Sequence
from typing import NoReturn

from schemas.request import BINARY_HEADER, binary_header_length

Headers = Sequence[tuple[str, bytes]]

_WHITESPACE = " \t\n\r"


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON value (RFC 8259)")


# What the values are does not matter, only where they end: integers stay text, as Python converts at most 4,300 digits.
_DECODER = json.JSONDecoder(parse_int=str, parse_constant=_refuse)


def with_request_id(value: bytes, headers: Headers, request_id: str) -> tuple[bytes, list[tuple[str, bytes]]] | None:
    """A request's value and headers with `request_id` as the body's `id`; None where the body is no JSON object.

    Every top-level `id` is replaced, so that it does not matter which of repeated ones a reader takes. In the binary
    form (JSON, then raw tensor bytes) the header Inference-Header-Content-Length follows the JSON's new length.
    """
    changed = list(headers)
    index = next((index for index, (name, _) in enumerate(headers) if name.lower() == BINARY_HEADER), None)
    if index is None:
        body = _with_id(value, request_id)
        return None if body is None else (body, changed)
    name, text = headers[index]
    length = binary_header_length(text, len(value))
    body = None if length is None else _with_id(value[:length], request_id)
    if body is None:
        return None
    changed[index] = (name, b"%d" % len(body))
    return body + value[length:], changed


def _with_id(body: bytes, request_id: str) -> bytes | None:
    try:
        text = body.decode()
        members = list(_members(text))
    except (ValueError, RecursionError):
        return None
    quoted = json.dumps(request_id)
    pieces, position = [], 0
    for name, start, end in members:
        if name == "id":
            pieces += [text[position:start], quoted]
            position = end
    if not pieces:
        position = text.index("{") + 1
        pieces = [text[:position], f'"id":{quoted}', "," if members else ""]
    return "".join((*pieces, text[position:])).encode()


def _members(text: str) -> Iterator[tuple[str, int, int]]:
    """Name, and start and end of the value, of each top-level member.

    Raises:
        ValueError: no JSON object, or more than one JSON value.
        RecursionError: nested too deeply to be one for any reader.
    """
    position = _after(text, 0, "{")
    closed = text.startswith("}", position)
    while not closed:
        if not text.startswith('"', position):
            raise ValueError(f"no member's name at {position}")
        name, position = _DECODER.raw_decode(text, position)
        start = _after(text, position, ":")
        _, end = _DECODER.raw_decode(text, start)
        yield name, start, end
        position = _skip(text, end)
        closed = text.startswith("}", position)
        if not closed:
            position = _after(text, position, ",")
    if _skip(text, position + 1) != len(text):
        raise ValueError("something follows the object")


def _after(text: str, position: int, character: str) -> int:
    """The next place that is no space behind a character that must come first."""
    position = _skip(text, position)
    if not text.startswith(character, position):
        raise ValueError(f"{character} expected at {position}")
    return _skip(text, position + 1)


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in _WHITESPACE:
        position += 1
    return position
