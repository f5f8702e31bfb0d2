"""decode_request: which records are requests, and what is said of those that are not."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import ErrorCode, WireError
from schemas.request import InferenceRequest, UndecodableRecordError, decode_request, normalized_ip, readable_request
from tests.schemas.records import FAST, IDS, body, members, minimal, requests

MINIMAL = minimal()
TENSOR: dict[str, Any] = MINIMAL["inputs"][0]


def refusal(value: bytes) -> tuple[ErrorCode, str]:
    """Returns code and message of a record that is refused with an error result."""
    with pytest.raises(WireError) as caught:
        decode_request(value)
    return caught.value.code, caught.value.message


def undecodable(value: bytes | None) -> str:
    """Returns the reason of a record that goes to the dead letters."""
    with pytest.raises(UndecodableRecordError) as caught:
        decode_request(value)
    return caught.value.reason


def test_minimal_request_has_contract_defaults() -> None:
    """What is absent has the default that the contract names."""
    assert members(decode_request(body(MINIMAL))) == {
        "id": None, "model_name": "digits", "model_version": None, "parameters": {},
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.5], "parameters": {}}],
        "outputs": None, "stream": False, "enable_cache": True, "cache_control": None, "tenant": None,
        "timeout_ms": None, "requested_at": None, "source_ip": None, "reply_to": None, "callback": None,
    }  # fmt: skip


@FAST
@given(requests())
def test_valid_requests_decode_to_their_members(record: dict[str, Any]) -> None:
    """Every valid request decodes to what its model says, and what was set is the record again."""
    model = InferenceRequest.model_validate_json(body(record))
    assert members(decode_request(body(record))) == model.model_dump()
    expected = model.model_dump(exclude_unset=True)
    assert {name: expected[name] for name in record if name != "requested_at"} == {
        name: value for name, value in record.items() if name != "requested_at"
    }


@pytest.mark.parametrize("field", ["model_name", "inputs"])
def test_missing_members_are_named(field: str) -> None:
    """A member that is required and absent is named."""
    record = {name: value for name, value in MINIMAL.items() if name != field}
    assert refusal(body(record)) == (ErrorCode.INVALID_REQUEST, f"{field}: Field required")


@pytest.mark.parametrize("field", ["name", "datatype", "shape"])
def test_missing_tensor_members_are_named(field: str) -> None:
    """A member of a tensor that is required and absent is named with its place."""
    tensor = {name: value for name, value in TENSOR.items() if name != field}
    assert refusal(body(minimal(inputs=[TENSOR, tensor]))) == (
        ErrorCode.INVALID_REQUEST,
        f"inputs[1].{field}: Field required",
    )


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"id": ""}, "id"),
    ({"id": "a" * 129}, "id"),
    ({"id": "a b"}, "id"),
    ({"id": "a\n"}, "id"),
    ({"id": "é"}, "id"),
    ({"id": 7}, "id"),
    ({"model_name": ""}, "model_name"),
    ({"model_name": "m" * 257}, "model_name"),
    ({"model_name": None}, "model_name"),
    ({"model_version": 2}, "model_version"),
    ({"model_version": "latest"}, "model_version"),
    ({"model_version": "1" * 19}, "model_version"),
    ({"model_version": "٣"}, "model_version"),
    ({"parameters": []}, "parameters"),
    ({"parameters": None}, "parameters"),
    ({"parameters": {"a": None}}, "parameters: 'a'"),
    ({"parameters": {"a": [1]}}, "parameters: 'a'"),
    ({"parameters": {"a": {"b": 1}}}, "parameters: 'a'"),
    ({"parameters": {"ok": 1, "a": 2**63}}, "parameters: 'a'"),
    ({"parameters": {"a": -(2**63) - 1}}, "parameters: 'a'"),
    ({"inputs": []}, "inputs"),
    ({"inputs": {}}, "inputs"),
    ({"inputs": [TENSOR] * 1025}, "inputs"),
    ({"inputs": [TENSOR, 7]}, "inputs[1]"),
    ({"inputs": [TENSOR | {"name": ""}]}, "inputs[0].name"),
    ({"inputs": [TENSOR | {"name": "n" * 257}]}, "inputs[0].name"),
    ({"inputs": [TENSOR | {"datatype": "FLOAT"}]}, "inputs[0].datatype"),
    ({"inputs": [TENSOR | {"datatype": "fp32"}]}, "inputs[0].datatype"),
    ({"inputs": [TENSOR | {"shape": 1}]}, "inputs[0].shape"),
    ({"inputs": [TENSOR | {"shape": [1, -1]}]}, "inputs[0].shape[1]"),
    ({"inputs": [TENSOR | {"shape": [1.0]}]}, "inputs[0].shape[0]"),
    ({"inputs": [TENSOR | {"shape": [True]}]}, "inputs[0].shape[0]"),
    ({"inputs": [TENSOR | {"shape": [2**63]}]}, "inputs[0].shape[0]"),
    ({"inputs": [TENSOR | {"shape": [1] * 33}]}, "inputs[0].shape"),
    ({"inputs": [TENSOR | {"parameters": {"binary_data_size": None}}]}, "inputs[0].parameters: 'binary_data_size'"),
    ({"outputs": {}}, "outputs"),
    ({"outputs": ["label"]}, "outputs[0]"),
    ({"outputs": [{"name": ""}]}, "outputs[0].name"),
    ({"outputs": [{}]}, "outputs[0].name"),
    ({"stream": 1}, "stream"),
    ({"stream": "true"}, "stream"),
    ({"enable_cache": None}, "enable_cache"),
    ({"enable_cache": 0}, "enable_cache"),
    ({"cache_control": 60}, "cache_control"),
    ({"cache_control": "a" * 257}, "cache_control"),
    ({"tenant": 1}, "tenant"),
    ({"tenant": ""}, "tenant"),
    ({"tenant": "t" * 129}, "tenant"),
    ({"timeout_ms": -1}, "timeout_ms"),
    ({"timeout_ms": 1.5}, "timeout_ms"),
    ({"timeout_ms": "30000"}, "timeout_ms"),
    ({"timeout_ms": 7 * 86_400_000 + 1}, "timeout_ms"),
    ({"requested_at": "yesterday"}, "requested_at"),
    ({"requested_at": "2026-11-22T22:00:00"}, "requested_at"),
    ({"requested_at": 1795384800}, "requested_at"),
    ({"requested_at": "0001-01-01T00:00:00Z"}, "requested_at"),
    ({"requested_at": "9999-12-31T23:59:59-14:00"}, "requested_at"),
    ({"source_ip": "localhost"}, "source_ip"),
    ({"source_ip": "256.0.0.1"}, "source_ip"),
    ({"source_ip": 1}, "source_ip"),
    ({"source_ip": "fe80::1%" + "e" * 100}, "source_ip"),
    ({"reply_to": {}}, "reply_to.partition"),
    ({"reply_to": {"partition": -1}}, "reply_to.partition"),
    ({"reply_to": {"partition": "0"}}, "reply_to.partition"),
    ({"reply_to": {"partition": 0, "topic": "t" * 250}}, "reply_to.topic"),
    ({"reply_to": {"partition": 0, "topic": ""}}, "reply_to.topic"),
    ({"callback": {}}, "callback.url"),
    ({"callback": "https://example.com"}, "callback"),
    ({"callback": {"url": "h" * 2049}}, "callback.url"),
    ({"unknown": 1}, "unknown"),
    ({"enable_cahce": False}, "enable_cahce"),
    ({"inputs": [TENSOR | {"dtype": "FP32"}]}, "inputs[0].dtype"),
    ({"outputs": [{"name": "label", "binary": True}]}, "outputs[0].binary"),
    ({"reply_to": {"partition": 0, "key": "k"}}, "reply_to.key"),
    ({"callback": {"url": "https://example.com", "secret": "s"}}, "callback.secret"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "field"), WRONG, ids=[f"{field} {index}" for index, (_, field) in enumerate(WRONG)]
)
def test_wrong_members_are_refused_by_name(changes: dict[str, Any], field: str) -> None:
    """A member of a wrong type or value, or an unknown one, is INVALID_REQUEST and the message begins with its name."""
    code, message = refusal(body(minimal(**changes)))
    assert (code, message[: len(field)], message[len(field)]) == (ErrorCode.INVALID_REQUEST, field, message[len(field)])
    assert message[len(field)] in ": "


def test_refusal_names_value_and_expectation() -> None:
    """The message says what was found and what is expected."""
    assert refusal(body(minimal(timeout_ms=-5))) == (
        ErrorCode.INVALID_REQUEST,
        "timeout_ms: Input should be greater than or equal to 0, got -5",
    )


def test_long_values_are_cut_in_messages() -> None:
    """A value of a megabyte does not become a message of a megabyte."""
    _, message = refusal(body(minimal(stream="x" * 1_000_000)))
    assert len(message) < 250


@pytest.mark.parametrize("field", ["id", "model_version", "outputs", "cache_control", "tenant", "timeout_ms",
                                   "requested_at", "source_ip", "reply_to", "callback"])  # fmt: skip
def test_null_means_absent_where_optional(field: str) -> None:
    """Null in an optional member is the same as its absence."""
    assert members(decode_request(body(minimal(**{field: None})))) == members(decode_request(body(MINIMAL)))


@FAST
@given(IDS)
def test_every_id_of_the_alphabet_is_kept(text: str) -> None:
    """1 to 128 characters of the alphabet are an id, kept as they are."""
    assert decode_request(body(minimal(id=text))).id == text


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("place", ['"inputs":[{"data":[%s]}]', '"parameters":{"a":%s}', '"timeout_ms":%s', '"x":%s'])
def test_number_words_are_no_json(word: str, place: str) -> None:
    """NaN and the infinities as literals are no JSON, wherever they stand."""
    assert undecodable(b'{"model_name":"m",' + (place % word).encode() + b"}") == "NOT_JSON"


def test_number_words_inside_strings_are_text() -> None:
    """The words are ordinary text inside a string."""
    assert decode_request(body(minimal(model_name="NaN Infinity"))).model_name == "NaN Infinity"


@pytest.mark.parametrize("sign", ["", "-"])
def test_overflowing_tensor_number_is_invalid_input(sign: str) -> None:
    """1e999 is JSON, and no number that FP32 or FP64 has."""
    for datatype in ("FP32", "FP64"):
        value = body(minimal(inputs=[TENSOR | {"datatype": datatype}])).replace(b"1.5", f"{sign}1e999".encode())
        with pytest.raises(WireError) as caught:
            decode_request(value).inputs[0].to_tensor()
        assert (caught.value.code, caught.value.message) == (
            ErrorCode.INVALID_INPUT,
            f"tensor 'x': data[0] is outside the range of {datatype}",
        )


def test_overflowing_parameter_is_invalid_request() -> None:
    """1e999 is no parameter: nothing finite could be forwarded."""
    code, message = refusal(body(minimal(parameters={"a": 0})).replace(b'"a": 0', b'"a": 1e999'))
    assert (code, message[:15]) == (ErrorCode.INVALID_REQUEST, "parameters: 'a'")


@pytest.mark.parametrize("value", [None, b""])
def test_absent_value_is_a_tombstone(value: bytes | None) -> None:
    """A record without a value is a tombstone."""
    assert undecodable(value) == "TOMBSTONE"


@pytest.mark.parametrize(
    "value",
    [b" ", b"{", b"{}}", b"{'a':1}", b'{"a":1,}', b"\xef\xbb\xbf{}", b'{"a":"\xff"}', b'{"a":"\x01"}', b'{"a":01}',
     b"[]", b"null", b"true", b"7", b'"text"', "{}".encode("utf-16"), b'{"a":"\\ud800"}', b'{"a":' + b"9" * 5000 + b"}",
     b'{"a":' * 1000 + b"1" + b"}" * 1000, b"[" * 100_000],
    ids=["blank", "open", "two", "quotes", "comma", "bom", "latin", "control", "zero", "list", "null", "true", "number",
         "string", "utf-16", "surrogate", "digits", "nested", "brackets"],
)  # fmt: skip
def test_no_json_object_is_undecodable(value: bytes) -> None:
    """What is not a JSON object, or is one that no reader should take apart, goes to the dead letters."""
    assert undecodable(value) == "NOT_JSON"


def test_repeated_member_takes_the_last() -> None:
    """A member that is there twice has its last value, as in most JSON readers."""
    value = b'{"model_name":"first","model_name":"last",' + body(MINIMAL)[1:].replace(b'"model_name": "digits", ', b"")
    assert decode_request(value).model_name == "last"


def test_order_of_members_does_not_matter() -> None:
    """A request is the same in any order of its members."""
    reordered = dict(reversed(MINIMAL.items()))
    assert decode_request(body(reordered)) == decode_request(body(MINIMAL))


def test_integer_parameters_stay_integers() -> None:
    """A parameter keeps its JSON type: 1, 1.0, true and "1" are four values, and 64 bits are kept."""
    values = {"a": 1, "b": 1.0, "c": True, "d": "1", "e": 2**63 - 1, "f": -(2**63)}
    found = decode_request(body(minimal(parameters=values))).parameters
    assert [(name, type(value), value) for name, value in found.items()] == [
        (name, type(value), value) for name, value in values.items()
    ]


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("203.0.113.7", "::ffff:203.0.113.7"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("::ffff:203.0.113.7", "::ffff:203.0.113.7"),
        ("fe80::1%eth0", "fe80::1"),
        ("::", "::"),
    ],
)
def test_addresses_are_written_as_ipv6(text: str, normalized: str) -> None:
    """Addresses become what ClickHouse's IPv6 reads: IPv4 mapped, zones dropped."""
    import ipaddress

    decode_request(body(minimal(source_ip=text)))
    found = normalized_ip(text)
    assert ipaddress.IPv6Address(found) == ipaddress.IPv6Address(normalized)
    assert "%" not in found


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b'{"id":"a-1","model_name":7}', ("a-1", None)),
        (b'{"id":7,"model_name":"digits"}', (None, "digits")),
        (b'\n {"id":"a-1","model_name":"digits"}', ("a-1", "digits")),
        (b'{"id":"a-1"} and more', ("a-1", None)),
        (b'{"id":"a b"}', (None, None)),
        (b'{"id":"a\\n"}', (None, None)),
        (b'{"id":"' + b"a" * 129 + b'"}', (None, None)),
        (b'{"model_name":"' + b"m" * 257 + b'"}', (None, None)),
        (b'{"model_name":"\\ud800"}', (None, None)),
        (b"{}", (None, None)),
        (b"[]", (None, None)),
        (b"{", (None, None)),
        (b"\xff", (None, None)),
        (b'{"id":"a","x":' + b"[" * 100_000, (None, None)),
    ],
)
def test_readable_names_are_usable_or_none(value: bytes, found: tuple[str | None, str | None]) -> None:
    """An invalid request is answered under its own id and model only where those are valid ones."""
    assert readable_request(value)[:2] == found


@FAST
@given(requests(), st.integers(0, 3))
def test_whitespace_and_escapes_do_not_matter(record: dict[str, Any], indent: int) -> None:
    """The same request in other JSON text decodes to the same request."""
    spread = json.dumps(record, indent=indent, ensure_ascii=False).encode()
    assert members(decode_request(spread)) == members(decode_request(body(record)))
