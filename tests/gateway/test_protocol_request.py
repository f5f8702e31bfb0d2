"""Bodies of the Open Inference Protocol become request records: what is copied, what is refused, and in which words."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from pipeline.gateway.protocol.request import ModelAddress, changes_of, model_address, to_record
from pipeline.watcher.repository.names import model_name_fault
from schemas.errors import ErrorCode, WireError
from schemas.request import decode_request

DIGITS = ModelAddress("digits", "2")
DEFAULT = ModelAddress("digits", None)
INPUT = b'{"name":"x","datatype":"FP32","shape":[2],"data":[1.50, 2e3]}'
LENGTH = "Inference-Header-Content-Length"
# What JSON has to escape, what UTF-8 has to encode, and half of a pair, which no text should have.
_LETTERS = 'a"\\/\x00\x1fé€😀\ud800'


def refusal(body: bytes, headers: list[tuple[str, bytes]] | None = None, model: ModelAddress = DIGITS) -> str:
    """The sentence that a body is refused with."""
    with pytest.raises(WireError) as caught:
        to_record(body, headers or [], model)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    return caught.value.message


def test_model_comes_from_the_address() -> None:
    """The record names the model and the version of the address; without a version it names none."""
    body = b'{"inputs":[%b]}' % INPUT
    assert orjson.loads(to_record(body, [], DIGITS).value)["model_version"] == "2"
    named = orjson.loads(to_record(body, [], DEFAULT).value)
    assert named["model_name"] == "digits"
    assert "model_version" not in named


def test_senders_numbers_are_not_written_anew() -> None:
    """Tensors stay the sender's text, digit for digit."""
    value = to_record(b' { "inputs" : [%b], "id":"a" } ' % INPUT, [], DEFAULT).value
    assert value == b'{"model_name":"digits","id":"a","inputs":[%b]}' % INPUT


def test_raw_tensors_follow_the_new_json() -> None:
    """The header states the length of the record's JSON, and the raw bytes behind it are untouched."""
    raw = bytes(range(256))
    json = b'{"inputs":[{"name":"x","datatype":"UINT8","shape":[256],"parameters":{"binary_data_size":256}}]}'
    record = to_record(json + raw, [(LENGTH.lower(), b"%d" % len(json))], DIGITS)
    assert record.value.endswith(raw)
    assert record.headers == [(LENGTH, b"%d" % (len(record.value) - 256))]
    assert decode_request(record.value, record.headers).inputs[0].to_tensor().raw == raw


def test_empty_id_is_no_id() -> None:
    """Clients that send "" for none get a fresh id, as from Triton."""
    assert b'"id"' not in to_record(b'{"id":"","inputs":[%b]}' % INPUT, [], DIGITS).value


def test_model_named_in_the_body_too_is_taken() -> None:
    """KServe's client repeats the model's name in the body: the same one is no contradiction, another is."""
    assert to_record(b'{"model_name":"digits","inputs":[%b]}' % INPUT, [], DEFAULT).value.count(b"model_name") == 1
    assert "'other'" in refusal(b'{"model_name":"other","inputs":[%b]}' % INPUT)
    assert "'1'" in refusal(b'{"model_version":"1","inputs":[%b]}' % INPUT)
    assert "model_version" in refusal(b'{"model_version":2,"inputs":[%b]}' % INPUT)


@pytest.mark.parametrize(
    "member",
    ["tenant", "reply_to", "callback", "source_ip", "cache_control", "enable_cache", "timeout_ms", "stream",
     "requested_at", "Inputs"],
)  # fmt: skip
def test_members_of_records_are_refused(member: str) -> None:
    """What the protocol does not know is refused by name: none of our record's members slips in this way."""
    assert repr(member) in refusal(b'{"%b":null,"inputs":[%b]}' % (member.encode(), INPUT))


def test_escaped_member_is_the_member() -> None:
    """A name that is spelled with escapes is the name: it is seen."""
    assert "'tenant'" in refusal(b'{"\\u0074enant":"acme","inputs":[%b]}' % INPUT)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"null", b"{", b'{"inputs":NaN}', b"\xff", b'{"\xff":1}', b'{"inputs":' + b"[" * 100_000, b"{} {}"],
)
def test_what_is_no_object_is_refused(body: bytes) -> None:
    """Anything but one JSON object is INVALID_REQUEST, however it is broken."""
    assert "no JSON object" in refusal(body)


@pytest.mark.parametrize("value", [b"", b"-1", b"x", b"999", b"1" * 40])
def test_length_outside_of_the_body_is_refused(value: bytes) -> None:
    """A JSON length that the body has not is named with its value."""
    assert LENGTH in refusal(b'{"inputs":[]}', [(LENGTH, value)])


def test_raw_body_without_json_is_refused() -> None:
    """Triton's raw binary requests, whose tensors nobody describes, are refused in so many words."""
    assert "raw body" in refusal(b"\0\0\0\0", [(LENGTH, b"0")])


@pytest.mark.parametrize("name", ["sequence_id", "sequence_start", "sequence_end"])
def test_sequences_are_refused(name: str) -> None:
    """A request of a sequence is refused before anybody is asked: none is served."""
    assert name in refusal(b'{"parameters":{"%b":1},"inputs":[%b]}' % (name.encode(), INPUT))


def test_classification_is_refused() -> None:
    """Triton's classification of an output is refused by its name."""
    asked = b'{"outputs":[{"name":"a"},{"name":"y","parameters":{"classification":3}}],"inputs":[%b]}' % INPUT
    assert "classification" in refusal(asked)


@pytest.mark.parametrize("part", [b'"parameters":3', b'"outputs":{}', b'"outputs":[1]', b'"outputs":null', b'"id":7'])
def test_other_mistakes_are_told_by_records(part: bytes) -> None:
    """What is wrong inside of the protocol's members is judged once, where records are read."""
    record = to_record(b'{%b,"inputs":[%b]}' % (part, INPUT), [], DIGITS)
    assert part in record.value


@given(
    st.dictionaries(
        st.sampled_from(["id", "parameters", "inputs", "outputs"]),
        st.recursive(st.none() | st.booleans() | st.integers() | st.text(_LETTERS), st.lists, max_leaves=9),
    )
)
def test_every_member_arrives_as_it_was(members: dict[str, Any]) -> None:
    """Whatever the members' values, the record says the same; an empty id alone is left out."""
    members = {name: value for name, value in members.items() if name != "id" or value != ""}
    body = json.dumps(members).encode()
    assert json.loads(to_record(body, [], DEFAULT).value) == {"model_name": "digits", **members}


@pytest.mark.parametrize(
    "name",
    [
        "a/b",
        "..",
        ".",
        "",
        "-rf",
        "a b",
        "a\0b",
        "a\nb",
        "ｄigits",
        "dіgits",
        "a" * 10_000,
        "a\\b",
        "é",
        "%2e",
        "\u202e",
    ],
)
def test_names_that_no_model_has_are_known(name: str) -> None:
    """What the watcher would not let a model be called is no model's address."""
    assert model_name_fault(name) is not None
    assert model_address(name, None) is None


@pytest.mark.parametrize("name", ["digits", "a.b-c_1", "_x", "9", "a" * 255])
def test_names_that_models_have_are_taken(name: str) -> None:
    """What the watcher lets a model be called is an address."""
    assert model_name_fault(name) is None
    assert model_address(name, "1") == (name, "1")


@pytest.mark.parametrize(("given_version", "read"), [("1", "1"), ("01", "1"), ("0", "0"), ("9" * 18, "9" * 18)])
def test_versions_are_numbers(given_version: str, read: str) -> None:
    """A version is read as a number, as Triton reads it."""
    assert model_address("m", given_version) == ("m", read)


@pytest.mark.parametrize("given_version", ["", "-1", "1.0", "1" * 19, "²", "١", "latest", " 1", "1\n"])
def test_what_is_no_version_is_no_address(given_version: str) -> None:
    """Other digits than ASCII's, signs and words name no version."""
    assert model_address("m", given_version) is None


def test_headers_change_the_record() -> None:
    """The three headers set the record's members of the same meaning; none, nothing."""
    headers = {"Cache-Control": "no-cache", "Inference-Enable-Cache": "False", "Inference-Timeout-Ms": "1500"}
    assert changes_of(Headers(headers)) == {
        "cache_control": "no-cache",
        "enable_cache": False,
        "timeout_ms": 1500,
    }
    assert changes_of(Headers({})) == {}


def test_repeated_cache_control_is_one_list() -> None:
    """Several lines of Cache-Control are one list (RFC 9110 section 5.3)."""
    headers = Headers(raw=[(b"cache-control", b"no-store"), (b"cache-control", b"max-age=1")])
    assert changes_of(headers) == {"cache_control": "no-store, max-age=1"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Inference-Enable-Cache", "maybe"),
        ("Inference-Enable-Cache", ""),
        ("Inference-Timeout-Ms", "-1"),
        ("Inference-Timeout-Ms", "1.5"),
        ("Inference-Timeout-Ms", "604800001"),
        ("Inference-Timeout-Ms", "9" * 5000),
        ("Cache-Control", "x" * 257),
    ],
)
def test_wrong_headers_are_named(name: str, value: str) -> None:
    """A header that cannot be read is refused by its name, before the body is sent on."""
    with pytest.raises(WireError, match=name):
        changes_of(Headers({name: value}))


def test_wrong_max_age_is_refused_at_once() -> None:
    """A max-age that is no number of seconds is told here, not by a worker later."""
    with pytest.raises(WireError, match="max-age"):
        changes_of(Headers({"cache-control": "max-age=soon"}))
