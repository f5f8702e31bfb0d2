"""Another id in a request's bytes, and nothing else changed."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.client.request_ids import with_request_id
from schemas.request import decode_request
from tests.schemas import records

NEW = "0198c0de-0000-7000-8000-000000000000"
LENGTH = "Inference-Header-Content-Length"

# A busy machine is no fault of what is tested.
FAST = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
# Letters of every kind that JSON writes in more than one way; drawing from all of Unicode takes a second to begin with.
TEXT = st.text('aid"\\/{}[],: \n\x7fé\u2028😀', max_size=8)
SPACES = st.text(" \t\r\n", max_size=3)
NUMBERS = st.one_of(
    st.integers().map(str),
    st.integers(10**30, 10**40).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(["-0", "1.0", "1e400", "1E+2", "0.10", "9" * 5000]),
)


def escaped(text: str) -> str:
    """A JSON string with every character escaped."""
    units = text.encode("utf-16-be", "surrogatepass")
    return '"' + "".join(f"\\u{units[i] << 8 | units[i + 1]:04x}" for i in range(0, len(units), 2)) + '"'


@st.composite
def strings(draw: st.DrawFn, text: st.SearchStrategy[str] = TEXT) -> str:
    """A string's JSON, in one of the ways to write it."""
    content = draw(text)
    return draw(st.sampled_from([json.dumps(content), json.dumps(content, ensure_ascii=False), escaped(content)]))


NAMES = strings(st.one_of(st.sampled_from(["id", "ID", "id ", "ids", "", "inputs", "a"]), TEXT))


def containers(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Arrays and objects of JSON texts, with any spaces."""
    arrays = st.tuples(st.lists(values, max_size=3), SPACES).map(lambda one: f"[{one[1]}{f',{one[1]}'.join(one[0])}]")
    return arrays | objects(values)


@st.composite
def objects(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    """An object with any members, some of them named `id`, some repeated."""
    pieces = [
        f"{draw(SPACES)}{draw(NAMES)}{draw(SPACES)}:{draw(SPACES)}{draw(values)}{draw(SPACES)}"
        for _ in range(draw(st.integers(0, 4)))
    ]
    return "{" + (",".join(pieces) or draw(SPACES)) + "}"


VALUES = st.recursive(
    st.one_of(NUMBERS, strings(), st.sampled_from(["true", "false", "null"])), containers, max_leaves=6
)
BODIES = st.tuples(SPACES, objects(VALUES), SPACES).map("".join)


def members(body: bytes) -> list[tuple[str, Any]]:
    """The members of an object in their order, repeated ones too; numbers as their texts."""
    found: list[tuple[str, Any]] = json.loads(
        body, object_pairs_hook=list, parse_int=lambda text: ("int", text), parse_float=lambda text: ("float", text)
    )
    return found


@FAST
@given(BODIES)
@example('{"id":"a","\\u0069d":"b","x":{"id":"c"}}')
@example("{}")
@example(" { } ")
def test_everything_but_the_id_is_equal(text: str) -> None:
    """Whatever a body holds, all other members keep their order, names and values, and every `id` is the new one."""
    body = text.encode()
    changed = with_request_id(body, [("h", b"v")], NEW)
    assert changed is not None
    value, headers = changed
    assert headers == [("h", b"v")]
    before, after = members(body), members(value)
    if any(name == "id" for name, _ in before):
        assert after == [(name, NEW if name == "id" else content) for name, content in before]
    else:
        assert after == [("id", NEW), *before]


@FAST
@given(BODIES, st.binary(max_size=20), st.sampled_from([LENGTH, LENGTH.lower(), LENGTH.upper()]))
def test_raw_bytes_stay_behind_the_json(text: str, tail: bytes, name: str) -> None:
    """In the binary form the header follows the JSON's new length, and the tensors' bytes are untouched."""
    body = text.encode()
    headers = [("first", b"1"), (name, b"%d" % len(body)), ("last", b"2")]
    changed = with_request_id(body + tail, headers, NEW)
    assert changed is not None
    value, after = changed
    assert [one for one, _ in after] == ["first", name, "last"]
    length = int(dict(after)[name])
    assert value[length:] == tail
    alone = with_request_id(body, [], NEW)
    assert alone is not None
    assert value[:length] == alone[0]


@FAST
@given(BODIES)
def test_second_change_replaces_the_first(text: str) -> None:
    """A retry that fails again can be sent again: only the id differs, however often."""
    first = with_request_id(text.encode(), [], "first-id")
    assert first is not None
    second, direct = with_request_id(*first, NEW), with_request_id(text.encode(), [], NEW)
    assert second == direct


def test_spaces_and_numbers_stay_as_they_were() -> None:
    """The bytes around the id's value are the producer's own."""
    body = b'\n{ "a" : 1.50 ,\t"id"\r: "old" , "big": 123456789012345678901234567890 }\n'
    changed = with_request_id(body, [], NEW)
    assert changed is not None
    assert changed[0] == body.replace(b'"old"', json.dumps(NEW).encode())


def test_retried_request_is_read_as_before() -> None:
    """The worker's own decoder sees the same request under the new id, binary tensors included."""
    body = {
        "id": "old", "model_name": "m", "parameters": {"id": 7, "p": 2**62},
        "inputs": [{"name": "id", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}],
    }  # fmt: skip
    text = json.dumps(body).encode()
    value, headers = text + b'\x00\x01\x02\x03{}"\\', [(LENGTH, b"%d" % len(text))]
    changed = with_request_id(value, headers, NEW)
    assert changed is not None
    before, after = decode_request(value, headers), decode_request(*changed)
    assert records.members(after) == {**records.members(before), "id": NEW}


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"[]", b'"id"', b"5", b"null", b"{", b'{"id"', b'{"id":', b'{"id":"a"', b'{"id":"a",}', b"{,}",
        b'{"id":"a"}x', b'{"id":"a"}{}', b'{id:"a"}', b'{1:2}', b'{"a":NaN}', b'{"a":-Infinity}', b'{"id":"\xff"}',
        b'\xef\xbb\xbf{}', b'{"a":' + b"[" * 100_000, b"{}\x0b", b'{"a" 1}', b'{"a":1 "b":2}',
    ],
)  # fmt: skip
def test_no_object_gets_no_id(body: bytes) -> None:
    """What is no JSON object (RFC 8259) is left alone."""
    assert with_request_id(body, [], NEW) is None


@pytest.mark.parametrize("length", [b"", b"-1", b"999", b"x", b"1"])
def test_broken_lengths_get_no_id(length: bytes) -> None:
    """Where the binary form's length is none, nobody can say where the JSON ends."""
    assert with_request_id(b'{"id":"a"}1234', [(LENGTH, length)], NEW) is None
