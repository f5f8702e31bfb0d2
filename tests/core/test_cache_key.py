"""The cache key: one for all spellings of a request, another for whatever can change an answer.

The known answers in `vectors/cache_key.json` keep keys the same from release to release: stored answers and partition
keys outlive a deployment. They change only with the tags in `pipeline/core/cache_key.py` (`content/1` becomes
`content/2`), and then are made anew:

    python -c "from tests.core.test_cache_key import write_vectors; write_vectors()"
"""

import json
import struct
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from blake3 import blake3
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.core.cache_key import (
    IGNORED,
    KEYED,
    NOT_CONTENT,
    CacheScope,
    cache_key,
    content_digest,
    encode_outputs,
    partition_key,
    request_digest,
)
from pipeline.core.parameters import kept_output_parameters, sort_parameters
from schemas.errors import WireError
from schemas.request import InferenceRequest, UndecodableRecordError, decode_request
from schemas.tensor import Tensor
from tests.core.reference_key import keys_of_vector
from tests.schemas.records import (
    FAST,
    NAMES,
    PARAMETERS,
    Record,
    binary_record,
    body,
    hostile_records,
    json_tensors,
    members,
    minimal,
    nested,
    one_input,
    raw_tensors,
    requests,
)

VECTORS = Path(__file__).parent / "vectors" / "cache_key.json"

Value = str | int | float | bool


def record_content(value: bytes, headers: list[tuple[str, bytes]] | None = None) -> bytes:
    """Returns the content digest of a record, as the engine makes it."""
    request = decode_request(value, headers or [])
    tensors = [tensor.to_tensor() for tensor in request.inputs]
    return content_digest(tensors, sort_parameters(request.parameters).keyed)


def key_of(**changes: Any) -> bytes:
    """Returns the cache key of one fixed request, with parts of it changed."""
    parts: dict[str, Any] = {
        "tenant": None,
        "model_name": "digits",
        "model_version": "2",
        "fingerprint": "f1",
        "tensors": [Tensor("x", "FP32", (2,), ONE_TWO), NO_TEXT],
        "parameters": {"beam": 1},
        "outputs": [("label", {}), ("scores", {})],
    }
    parts |= changes
    scope = CacheScope(parts["tenant"], parts["model_name"], parts["model_version"], parts["fingerprint"])
    return cache_key(
        scope,
        content_digest(parts["tensors"], parts["parameters"]),
        encode_outputs(parts["outputs"]),
    )


def test_every_field_is_classified() -> None:
    """Each field of a request either is in the key or was decided not to be; a new one fails here."""
    assert set(InferenceRequest.model_fields) == KEYED | IGNORED
    assert frozenset() == KEYED & IGNORED
    assert NOT_CONTENT < IGNORED


@FAST
@given(json_tensors(), st.integers(0, 4))
def test_spelling_does_not_change_key(tensor: dict[str, Any], indent: int) -> None:
    """JSON nested or flat, spread or dense, in any order of members, and binary tensors are one content."""
    raw = decode_request(body(minimal(inputs=[tensor]))).inputs[0].to_tensor().raw
    expected = record_content(body(minimal(inputs=[tensor])))
    flat = tensor["data"]
    while flat and type(flat[0]) is list:
        flat = [element for part in flat for element in part]
    if tensor["shape"][:-1].count(0) == 0:
        shaped = minimal(inputs=[tensor | {"data": nested(flat, tensor["shape"])}])
        assert record_content(json.dumps(shaped, indent=indent).encode()) == expected
    reordered = dict(reversed(minimal(inputs=[dict(reversed(tensor.items()))]).items()))
    assert record_content(json.dumps(reordered, ensure_ascii=False).encode()) == expected
    in_binary = {name: value for name, value in tensor.items() if name != "data"}
    in_binary["parameters"] = {"binary_data_size": len(raw)}
    assert record_content(*binary_record(minimal(inputs=[in_binary]), raw)) == expected


@pytest.mark.parametrize("spelling", ["1", "1.0", "1e0", "10E-1", "0.1e+1", "1.00000000000000000001"])
def test_number_spellings_share_a_key(spelling: str) -> None:
    """A number for FP32 or FP64 may be written in any way."""
    for datatype in ("FP32", "FP64"):
        value = body(one_input(datatype, [1], [0.5])).replace(b"0.5", spelling.encode())
        assert record_content(value) == record_content(body(one_input(datatype, [1], [1.0])))


def test_escapes_in_strings_share_a_key() -> None:
    """A string written with escapes is the string."""
    escaped = (
        rb'{"model_name":"digits","inputs":[{"name":"\u0078","datatype":"BYTES","shape":[1],"data":["\u00e9\/"]}]}'
    )
    assert record_content(escaped) == record_content(body(one_input("BYTES", [1], ["é/"])))


@FAST
@given(st.lists(raw_tensors(), min_size=2, max_size=4, unique_by=lambda tensor: tensor.name), PARAMETERS, st.randoms())
def test_order_does_not_change_content(tensors: list[Tensor], parameters: dict[str, Value], random: Any) -> None:
    """Inputs and parameters are sets: their order says nothing."""
    shuffled, names = list(tensors), list(parameters)
    random.shuffle(shuffled)
    random.shuffle(names)
    reordered = {name: parameters[name] for name in names}
    assert content_digest(shuffled, reordered) == content_digest(tensors, parameters)


@FAST
@given(requests(), requests())
def test_ignored_fields_do_not_reach_content(record: dict[str, Any], other: dict[str, Any]) -> None:
    """Fields that are not keyed may take any value without another content or partition."""
    changed = {name: value for name, value in record.items() if name in KEYED}
    changed |= {name: value for name, value in other.items() if name in IGNORED}
    assert record_content(body(changed)) == record_content(body(record))


def test_transport_parameters_do_not_reach_content() -> None:
    """binary_*, priority, timeout and sequence_* steer transport and server, not the answer's key."""
    parameters = {"binary_data_output": True, "priority": 1, "timeout": 5, "sequence_id": 7}
    assert record_content(body(minimal(parameters=parameters))) == record_content(body(minimal()))


ONE_TWO = struct.pack("<2f", 1.0, 2.0)
NO_TEXT = Tensor("y", "BYTES", (0,), b"")
CHANGES: dict[str, dict[str, Any]] = {
    "tenant": {"tenant": "acme"},
    "empty tenant": {"tenant": ""},
    "model": {"model_name": "digit"},
    "version": {"model_version": "3"},
    "fingerprint": {"fingerprint": "f2"},
    "model and version run together": {"model_name": "digits2", "model_version": ""},
    "version and fingerprint run together": {"model_version": "2f", "fingerprint": "1"},
    "tenant and model run together": {"tenant": "d", "model_name": "igits"},
    "renamed input": {"tensors": [Tensor("z", "FP32", (2,), ONE_TWO), NO_TEXT]},
    "datatype": {"tensors": [Tensor("x", "INT32", (2,), ONE_TWO), NO_TEXT]},
    "shape": {"tensors": [Tensor("x", "FP32", (2, 1), ONE_TWO), NO_TEXT]},
    "empty shape": {"tensors": [Tensor("x", "FP32", (2,), ONE_TWO), Tensor("y", "BYTES", (0, 1), b"")]},
    "bytes": {"tensors": [Tensor("x", "FP32", (2,), struct.pack("<2f", 2, 1)), NO_TEXT]},
    "one input less": {"tensors": [Tensor("x", "FP32", (2,), ONE_TWO)]},
    "swapped inputs": {"tensors": [Tensor("y", "FP32", (2,), ONE_TWO), Tensor("x", "BYTES", (0,), b"")]},
    "no parameters": {"parameters": {}},
    "parameter name": {"parameters": {"bean": 1}},
    "parameter value": {"parameters": {"beam": 2}},
    "parameter 1.0": {"parameters": {"beam": 1.0}},
    "parameter true": {"parameters": {"beam": True}},
    "parameter text 1": {"parameters": {"beam": "1"}},
    "parameter more": {"parameters": {"beam": 1, "a": 1}},
    "outputs reversed": {"outputs": [("scores", {}), ("label", {})]},
    "outputs fewer": {"outputs": [("label", {})]},
    "outputs more": {"outputs": [("label", {}), ("scores", {}), ("a", {})]},
    "outputs none": {"outputs": []},
    "outputs run together": {"outputs": [("labels", {}), ("cores", {})]},
    "output parameter": {"outputs": [("label", {"classification": 3}), ("scores", {})]},
    "other output's parameter": {"outputs": [("label", {}), ("scores", {"classification": 3})]},
}  # fmt: skip


def test_every_change_gives_another_key() -> None:
    """Each part that can change an answer changes the key, and no two of the changes meet."""
    keys = {"nothing": key_of(), **{name: key_of(**changes) for name, changes in CHANGES.items()}}
    assert len(set(keys.values())) == len(keys)
    assert {len(key) for key in keys.values()} == {32}


@FAST
@given(st.lists(st.tuples(raw_tensors(), PARAMETERS), min_size=2, max_size=2))
def test_different_contents_have_different_digests(pair: list[tuple[Tensor, dict[str, Value]]]) -> None:
    """Two contents share a digest only if they are equal in every byte and every type."""
    (first, parameters), (second, others) = pair
    typed = [{name: (type(value), repr(value)) for name, value in given_.items()} for given_ in (parameters, others)]
    same = (first, typed[0]) == (second, typed[1])
    assert (content_digest([first], parameters) == content_digest([second], others)) is same


@FAST
@given(raw_tensors(), st.data())
def test_any_flipped_bit_changes_content(tensor: Tensor, data: st.DataObject) -> None:
    """One bit of one input is enough for another content."""
    assume(tensor.raw)
    place = data.draw(st.integers(0, len(tensor.raw) * 8 - 1))
    changed = bytearray(tensor.raw)
    changed[place // 8] ^= 1 << place % 8
    other = Tensor(tensor.name, tensor.datatype, tensor.shape, bytes(changed))
    assert content_digest([other], {}) != content_digest([tensor], {})


@FAST
@given(st.lists(st.binary(max_size=3), min_size=2, max_size=4), st.lists(st.binary(max_size=3), min_size=2, max_size=4))
def test_bytes_elements_never_run_together(first: list[bytes], second: list[bytes]) -> None:
    """BYTES elements keep their borders: ["ab", "c"] and ["a", "bc"] are two contents."""

    def digest(parts: list[bytes]) -> bytes:
        raw = b"".join(struct.pack("<I", len(part)) + part for part in parts)
        return content_digest([Tensor("x", "BYTES", (len(parts),), raw)], {})

    assert (digest(first) == digest(second)) is (first == second)


@FAST
@given(st.lists(NAMES, max_size=3), st.lists(NAMES, max_size=3))
def test_outputs_never_run_together(first: list[str], second: list[str]) -> None:
    """Lists of outputs share an encoding only if they are equal, order included; none is a prefix of another."""
    encoded = [encode_outputs([(name, {}) for name in names]) for names in (first, second)]
    assert (encoded[0] == encoded[1]) is (first == second)
    assert first == second or not encoded[0].startswith(encoded[1])


def test_plain_outputs_and_parameters_agree() -> None:
    """The short way for outputs without parameters gives the encoding of the long one."""
    long_way = encode_outputs([("a", {}), ("b", {"k": 1})])
    assert long_way.startswith(encode_outputs([("a", {}), ("b", {})])[:-4])


@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
def test_zeros_of_both_signs_differ(datatype: str) -> None:
    """-0.0 and 0.0 can give two answers (1/x), so they have two keys."""
    contents = {record_content(body(one_input(datatype, [1], [zero]))) for zero in (0.0, -0.0)}
    assert len(contents) == 2
    assert len({content_digest([], {"a": zero}) for zero in (0.0, -0.0)}) == 2


def test_nan_payloads_differ() -> None:
    """NaNs with other bits are other bytes to a model, so they have other keys, and each its own again."""
    bits = (0x7FC00000, 0x7FC00001, 0xFFC00000, 0x7F800001)
    contents = [content_digest([Tensor("x", "FP32", (1,), struct.pack("<I", nan))], {}) for nan in (*bits, *bits)]
    assert len(set(contents)) == len(bits)
    assert contents[:4] == contents[4:]


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 600_000])
def test_joined_and_updated_digests_agree(size: int) -> None:
    """A content has one digest by the encoding that the module describes, whatever its size."""
    raw = bytes(size)
    encoding = b"content/1" + struct.pack("<I", 1) + b"\x01\0\0\0x" + b"\x05\0\0\0UINT8" + struct.pack("<Bq", 1, size)
    encoding += struct.pack("<Q", size) + raw + bytes(4)
    assert content_digest([Tensor("x", "UINT8", (size,), raw)], {}) == blake3(encoding).digest()


def test_partition_key_ignores_version_and_outputs() -> None:
    """The record key is 32 hex characters over tenant, model and content alone."""
    content = content_digest([], {})
    keys = [
        partition_key(None, "digits", content),
        partition_key("", "digits", content),
        partition_key("acme", "digits", content),
        partition_key(None, "sentences", content),
        partition_key(None, "digits", content_digest([], {"a": 1})),
    ]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 32 and int(key, 16) >= 0 for key in keys)
    assert cache_key(CacheScope(None, "digits", "1", "f"), content, b"")[:16].hex() not in keys


FULL: dict[str, Any] = {
    "id": "a", "model_name": "digits", "model_version": "1", "parameters": {"p": 1},
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}], "outputs": [{"name": "label"}],
    "stream": False, "enable_cache": True, "cache_control": "no-cache", "tenant": "t", "timeout_ms": 5,
    "requested_at": "2026-11-22T22:00:00Z", "source_ip": "203.0.113.7", "reply_to": {"partition": 1},
    "callback": {"url": "https://example.com/a"},
}  # fmt: skip
OTHERS: dict[str, list[Any]] = {
    "id": ["b", None],
    "model_name": ["digit"],
    "model_version": ["2", None],
    "parameters": [{}, {"p": 1.0}, {"p": 1, "binary_data_output": True}, {"p": 1, "priority": 1}],
    "inputs": [[{"name": "x", "datatype": "FP32", "shape": [1], "data": [2.0]}]],
    "outputs": [None, [], [{"name": "scores"}], [{"name": "label", "parameters": {"binary_data": True}}]],
    "stream": [True],
    "enable_cache": [False],
    "cache_control": [None, "", "no-store"],
    "tenant": [None, "other"],
    "timeout_ms": [None, 0, 51],
    "requested_at": ["2026-11-22T22:00:01Z", None],
    "source_ip": ["203.0.113.8", None],
    "reply_to": [None, {"partition": 2}, {"partition": 1, "topic": "None"}, {"partition": 1, "topic": "x"}],
    "callback": [None, {"url": "https://example.com/b"}, {"url": ""}],
}


def digest_of(record: dict[str, Any]) -> str:
    """Returns what a repeated id is compared by."""
    request = decode_request(body(record))
    return request_digest(request, record_content(body(record)))


@pytest.mark.parametrize("field", InferenceRequest.model_fields)
def test_request_digest_ignores_only_not_content(field: str) -> None:
    """Another id, time or address is the same request again; any other difference is another request."""
    digests = [digest_of(FULL), *(digest_of(FULL | {field: other}) for other in OTHERS[field])]
    assert len(set(digests)) == (1 if field in NOT_CONTENT else len(digests))
    assert all(len(digest) == 32 for digest in digests)


def test_request_digest_is_same_in_binary() -> None:
    """The same request in the binary form is a duplicate, not another request."""
    raw = struct.pack("<f", 1.0)
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}
    value, headers = binary_record(FULL | {"inputs": [tensor]}, raw)
    found = request_digest(decode_request(value, headers), record_content(value, headers))
    assert found == digest_of(FULL)


def canonical(record: dict[str, Any]) -> tuple[bytes, str]:
    """Returns what the digest must cover: the inputs' bytes, and JSON text of all other fields that are content."""
    decoded = {name: value for name, value in members(decode_request(body(record))).items() if name not in NOT_CONTENT}
    del decoded["inputs"]
    return record_content(body(record)), json.dumps(decoded, sort_keys=True)


@FAST
@given(requests(), requests(), st.sets(st.sampled_from(sorted(InferenceRequest.model_fields))))
def test_request_digests_differ_with_content(first: dict[str, Any], second: dict[str, Any], swap: set[str]) -> None:
    """Two requests share a digest if and only if they are equal in all but id, time and address."""
    second = {name: value for name, value in second.items() if name in swap or name in {"model_name", "inputs"}}
    second = {name: value for name, value in first.items() if name not in swap} | second
    second |= {name: first[name] for name in ("model_name", "inputs") if name not in swap}
    assert (digest_of(first) == digest_of(second)) is (canonical(first) == canonical(second))


@FAST
@given(hostile_records())
def test_broken_records_never_break_keys(record: Record) -> None:
    """Whatever decodes has its digests: nothing that passed validation fails in the encoding."""
    try:
        request = decode_request(*record)
        content = record_content(*record)
    except (WireError, UndecodableRecordError):
        return
    outputs = encode_outputs([(output.name, output.parameters) for output in request.outputs or ()])
    assert len(request_digest(request, content)) == 32
    assert len(partition_key(request.tenant, request.model_name, content)) == 32
    scope = CacheScope(request.tenant, request.model_name, "1", "f")
    assert len(cache_key(scope, content, outputs)) == 32


class Known(NamedTuple):
    """A record of the vectors, and the outputs that its model declares."""

    record: Record
    model_outputs: tuple[str, ...] = ()


BOTH = ("label", "scores")
VERSION, FINGERPRINT = "1", "f1"
# Of longer encodings the digest is enough.
_ENCODING_BYTES_MAX = 256


def in_binary(*tensors: Tensor, **changes: Any) -> Record:
    """A record with all tensors behind the JSON."""
    inputs = [
        {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(raw)}}
        for name, datatype, shape, raw in tensors
    ]
    return binary_record(minimal(inputs=inputs, **changes), b"".join(tensor.raw for tensor in tensors))


def in_json(**changes: Any) -> Record:
    """A record in JSON alone."""
    return body(minimal(**changes)), []


def plain_vectors() -> dict[str, Known]:
    """Returns the requests that the vectors began with; their outputs are none, as no model is asked."""
    sixteen_bits = [Tensor("b", "FP16", (2,), bytes(range(4))), Tensor("a", "BF16", (1,), bytes(range(4, 6)))]
    return {
        "minimal": Known(in_json()),
        "full": Known((body(FULL), [])),
        "bytes": Known((body(one_input("BYTES", [3], ["", "é", "a\0b"])), [])),
        "zero-sized": Known((body(one_input("INT64", [2, 0], [[], []])), [])),
        "binary": Known(in_binary(*sixteen_bits, tenant="acme")),
        "parameters": Known(in_json(parameters={"i": 1, "f": 1.0, "b": True, "s": "1", "z": -0.0})),
    }


def harder_vectors() -> dict[str, Known]:
    """Returns the requests that implementations in other languages are likely to disagree on."""
    nans = struct.pack("<4I", 0x7FC00000, 0x7FC00001, 0xFFC00000, 0x7F800001)
    two = [{"name": name, "datatype": "INT32", "shape": [1], "data": [place]} for place, name in enumerate("ab")]
    # UTF-16 has U+1F600 first.
    wide = [{"name": name, "datatype": "INT32", "shape": [1], "data": [1]} for name in ("\U0001f600", "\uff5e")]
    forms = body(one_input("FP32", [4], [0.5])).replace(b"0.5", b"1, 1.0, 1e0, 10E-1")
    asked = {"name": "label", "parameters": {"classification": 3, "binary_data": True}}
    transport = {"beam": 1, "binary_data_output": True, "priority": 1, "timeout": 5}
    return {
        "tenant": Known(in_json(tenant="acme"), BOTH),
        "no tenant": Known(in_json(), BOTH),
        "all outputs named": Known(in_json(outputs=[{"name": "label"}, {"name": "scores"}]), BOTH),
        "outputs empty": Known(in_json(outputs=[]), BOTH),
        "outputs in another order": Known(in_json(outputs=[{"name": "scores"}, {"name": "label"}]), BOTH),
        "output with a parameter": Known(in_json(outputs=[asked]), BOTH),
        "parameters of transport": Known(in_json(parameters=transport), BOTH),
        "NaN payloads": Known(in_binary(Tensor("x", "FP32", (4,), nans)), BOTH),
        "zeros of both signs": Known((body(one_input("FP32", [2], [0.0, -0.0])), []), BOTH),
        "zeros of both signs in binary": Known(in_binary(Tensor("x", "FP32", (2,), bytes(7) + b"\x80")), BOTH),
        "integer -0 is 0.0": Known((body(one_input("FP32", [1], [0.5])).replace(b"0.5", b"-0"), []), BOTH),
        "denormals of FP32": Known((body(one_input("FP32", [2], [1e-45, -1e-45])), []), BOTH),
        "denormals of FP64": Known((body(one_input("FP64", [2], [5e-324, 2.5e-308])), []), BOTH),
        "FP32 rounded from a double": Known((body(one_input("FP32", [2], [0.1, 7.038531e-26])), []), BOTH),
        "numbers in four forms": Known((forms, []), BOTH),
        "integers of 64 bits": Known((body(one_input("UINT64", [2], [2**53 + 1, 2**64 - 1])), []), BOTH),
        "booleans": Known((body(one_input("BOOL", [2, 1], [[True], [False]])), []), BOTH),
        "zero bytes in strings": Known(in_binary(Tensor("x", "BYTES", (2,), b"\1\0\0\0\0\2\0\0\0\0a")), BOTH),
        "ab, c": Known((body(one_input("BYTES", [2], ["ab", "c"])), []), BOTH),
        "a, bc": Known((body(one_input("BYTES", [2], ["a", "bc"])), []), BOTH),
        "bytes that are no text": Known(in_binary(Tensor("x", "BYTES", (1,), b"\2\0\0\0\xff\xc3")), BOTH),
        "two inputs": Known(in_json(inputs=two), BOTH),
        "two inputs in the other order": Known(in_json(inputs=two[::-1]), BOTH),
        "names by code points": Known(in_json(inputs=wide, parameters={"\U0001f600": 1, "\uff5e": 2}), BOTH),
    }  # fmt: skip


# Vectors that are one request, by the cache key.
SAME_KEYS = [
    {"no tenant", "all outputs named", "outputs empty"},
    {"zeros of both signs", "zeros of both signs in binary"},
    {"two inputs", "two inputs in the other order"},
]


def vectors() -> list[dict[str, Any]]:
    """Returns known requests, what their keys are made of, and the keys, by the code as it is."""
    found: list[dict[str, Any]] = []
    for name, ((value, headers), model_outputs) in (plain_vectors() | harder_vectors()).items():
        request = decode_request(value, headers)
        content = record_content(value, headers)
        asked = [(output.name, kept_output_parameters(output)) for output in request.outputs or ()]
        outputs = encode_outputs(asked or [(output, {}) for output in model_outputs])
        scope = CacheScope(request.tenant, request.model_name, VERSION, FINGERPRINT)
        vector: dict[str, Any] = {
            "name": name,
            "value_hex": value.hex(),
            "json_bytes": headers[0][1].decode() if headers else "",
            "tenant": request.tenant,
            "model_name": request.model_name,
            "version": VERSION,
            "fingerprint": FINGERPRINT,
            "model_outputs": [*model_outputs],
        }
        encoding = keys_of_vector(vector)["content_encoding"]
        if len(encoding) <= 2 * _ENCODING_BYTES_MAX:
            vector["content_encoding"] = encoding
        vector["content"] = content.hex()
        vector["cache_key"] = cache_key(scope, content, outputs).hex()
        vector["partition_key"] = partition_key(request.tenant, request.model_name, content)
        vector["request_digest"] = request_digest(request, content)
        found.append(vector)
    return found


def write_vectors() -> None:
    """Writes the known answers anew; the digests of those that are there change only with the encoding's tags."""
    VECTORS.write_text(json.dumps(vectors(), indent=2) + "\n")


def known() -> list[dict[str, Any]]:
    """Returns the vectors as they are written down."""
    found: list[dict[str, Any]] = json.loads(VECTORS.read_text())
    return found


def test_known_answers_stay_the_same() -> None:
    """Keys of stored answers and of partitions are the same in every release."""
    assert vectors() == known()


@pytest.mark.parametrize("vector", known(), ids=lambda vector: vector["name"])
def test_reference_from_document_gives_known_answers(vector: dict[str, Any]) -> None:
    """What docs/cache-key.md says is enough to make every key: a second implementation, written from it, agrees."""
    expected = {"content_encoding", "content", "cache_key", "partition_key", "request_digest"} & vector.keys()
    assert len(expected) >= 4
    assert {name: digest for name, digest in keys_of_vector(vector).items() if name in expected} == {
        name: vector[name] for name in expected
    }


def test_known_answers_meet_only_where_they_are_one_request() -> None:
    """The vectors that spell one request have one cache key, and all others have their own."""
    keys = {vector["name"]: vector["cache_key"] for vector in known()}
    for names in SAME_KEYS:
        assert len({keys[name] for name in names}) == 1
    assert len(set(keys.values())) == len(keys) - sum(len(names) - 1 for names in SAME_KEYS)
