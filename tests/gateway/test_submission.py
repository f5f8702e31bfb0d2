"""A request of HTTP as a record: what the worker reads is what was asked, and what the gateway says of it."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.client.records import build_record
from pipeline.core.cache_key import content_digest, request_digest
from pipeline.core.parameters import sort_parameters
from pipeline.gateway.delivery.submission import MEMBERS_BYTES_MAX, PreparedRequest, Submission, prepare_request
from schemas.decoded import DecodedRequest
from schemas.errors import ErrorCode, WireError
from schemas.request import decode_request
from schemas.tensor import Tensor
from tests.client.test_records import ARRAYS

NOW = 1_795_384_800.123456
IP = "203.0.113.7"
TENSOR = '{"name": "x", "datatype": "FP32", "shape": [2], "data": [-0.0, 1e-45]}'
BODY = f'{{"model_name": "m", "inputs": [{TENSOR}]}}'


def prepare(value: bytes | str, **given: Any) -> PreparedRequest:
    """A submission's record; `given` are the submission's own, or the arguments of `prepare_request`."""
    own = {name: given.pop(name) for name in list(given) if name in Submission._fields}
    submission = Submission(value if isinstance(value, bytes) else value.encode(), **{
        "headers": [], "tenant": None, "source_ip": IP, **own,
    })  # fmt: skip
    arguments: dict[str, Any] = {
        "now": NOW, "fresh_id": lambda: "fresh", "topic": "inference.requests", "reply_partition": None,
        "record_bytes_max": 1 << 20, **given,
    }  # fmt: skip
    return prepare_request(submission, **arguments)


def decoded(prepared: PreparedRequest) -> DecodedRequest:
    """What the worker reads."""
    return decode_request(prepared.record.value, prepared.record.headers)


def tensors_of(request: DecodedRequest) -> list[Tensor]:
    """Its inputs."""
    return [tensor.to_tensor() for tensor in request.inputs]


def refused(value: bytes | str, **given: Any) -> WireError:
    """Why a submission is refused."""
    with pytest.raises(WireError) as told:
        prepare(value, **given)
    return told.value


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "id": st.sampled_from(["r-1", "x:y", "fresh"]),
    "tenant": st.just("acme"),
    "source_ip": st.sampled_from([IP, "::1", None]),
    "requested_at": st.sampled_from(["2026-11-22T22:00:00.123456Z", None]),
    "reply_to": st.sampled_from([{"partition": 7}, {"topic": "inference.replies", "partition": 2}, None]),
    "cache_control": st.sampled_from(["no-store", "max-age=5", None]),
    "timeout_ms": st.sampled_from([0, 30_000, None]),
    "enable_cache": st.booleans(),
    "parameters": st.sampled_from([{}, {"id": "tenant", "p": 1.5}, {"source_ip": "é"}]),
    "callback": st.just({"url": "https://example.com/\u00e9"}),
}
BODIES = st.fixed_dictionaries({}, optional=VALUES)
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        name: VALUES[name].filter(lambda value: value is not None)
        for name in ("cache_control", "timeout_ms", "enable_cache")
    },
)


@given(
    ARRAYS, st.sampled_from([True, False]), BODIES, CHANGES, st.sampled_from([None, "key-1"]),
    st.sampled_from([None, 3]), st.booleans(), st.booleans(),
)  # fmt: skip
def test_worker_reads_the_request_with_the_gateways_members(
    array: np.ndarray[Any, Any], binary: bool, members: dict[str, Any], changes: dict[str, Any], key: str | None,
    reply: int | None, with_tenant: bool, escaped: bool,
) -> None:  # fmt: skip
    """The record is the client's request with the gateway's members set: all others equal, tensors bit for bit."""
    tenant = "acme" if with_tenant or "tenant" in members else None
    built = build_record("r", "m", {"x": array}, now=0.0, binary=binary)
    length = next((int(value) for name, value in built.headers if name.startswith("Inference-")), len(built.value))
    fields = {name: value for name, value in json.loads(built.value[:length]).items() if name != "id"}
    body = json.dumps(fields | members, ensure_ascii=escaped).encode()
    headers = [("inference-header-content-length", b"%d" % len(body))] if length != len(built.value) else []
    value = body + built.value[length:]
    sent = decode_request(value, headers)
    prepared = prepare(value, headers=headers, tenant=tenant, request_id=key, changes=changes, reply_partition=reply)
    read = decoded(prepared)
    assert tensors_of(read) == tensors_of(sent)
    assert read.id == prepared.record.id == (key or members.get("id") or "fresh")
    assert (read.tenant, read.source_ip) == (tenant, IP)
    assert read.requested_at is not None
    assert read.requested_at == (sent.requested_at or decoded(prepare(BODY)).requested_at)
    if sent.reply_to is not None:
        assert read.reply_to is not None
        assert (read.reply_to.partition, read.reply_to.topic) == (sent.reply_to.partition, sent.reply_to.topic)
        assert prepared.reply_partition is None
    else:
        assert (None if read.reply_to is None else read.reply_to.partition) == reply == prepared.reply_partition
    for name in ("cache_control", "timeout_ms", "enable_cache"):
        assert getattr(read, name) == changes.get(name, getattr(sent, name))
    for name in ("model_name", "model_version", "parameters", "stream"):
        assert getattr(read, name) == getattr(sent, name)
    content = content_digest(tensors_of(read), sort_parameters(read.parameters).keyed)
    assert prepared.digest.hex() == request_digest(read, content), "as the worker computes it"
    again = prepare(value, headers=headers, tenant=tenant, request_id=key, changes=changes, reply_partition=None)
    place = again.same_as(prepared.digest, 16)
    assert place is not None
    assert place.partition == (None if read.reply_to is None else read.reply_to.partition)


def test_senders_text_stays_as_it_is() -> None:
    """Spaces, escapes and numbers of any length are on the topic as they came; ours stand in front."""
    value = prepare(" \n" + BODY, tenant="acme").record.value
    assert value.endswith(BODY[1:].encode())
    assert value.startswith(b' \n{"id":"fresh","tenant":"acme","source_ip":"203.0.113.7","requested_at":"2026-11-22T')


def test_body_that_brings_a_member_keeps_the_others_text() -> None:
    """Replacing one member leaves the text of all others, digits and escapes included, and no name twice."""
    number = "0." + "1234567890" * 10
    inputs = TENSOR.replace("1e-45", number)
    body = f'{{"source_ip": "::1", "model_name": "\\u006d", "id": "r", "inputs": [{inputs}]}}'
    value = prepare(body).record.value
    assert number.encode() in value
    assert b'"\\u006d"' in value
    assert value.count(b'"source_ip"') == 1
    assert json.loads(value)["source_ip"] == IP


@pytest.mark.parametrize("spelling", ['"source_ip"', '"\\u0073ource_ip"', '"source\\u005Fip"'])
@pytest.mark.parametrize("given", ["null", '"::1"'])
def test_no_spelling_of_a_member_gets_past(spelling: str, given: str) -> None:
    """A member of the body never wins over the gateway's, however its name is written, and null counts as one."""
    read = decoded(prepare(BODY[:-1] + f", {spelling}: {given}}}"))
    assert read.source_ip == IP


def test_repeated_member_counts_as_its_last() -> None:
    """Of a member that stands twice the last one counts, as for the worker; ours replaces both."""
    body = BODY[:-1] + ', "tenant": "a", "tenant": "b", "source_ip": "::1", "source_ip": "::2"}'
    read = decoded(prepare(body, tenant="b"))
    assert (read.tenant, read.source_ip) == ("b", IP)
    assert refused(body, tenant="a").code is ErrorCode.INVALID_REQUEST


@pytest.mark.parametrize(("given", "credential"), [("acme", None), ("acme", "other"), ("other", "acme")])
def test_tenant_of_the_body_must_be_the_keys(given: str, credential: str | None) -> None:
    """A body that says another tenant than the credential, or one where that has none, is refused."""
    error = refused(BODY[:-1] + f', "tenant": "{given}"}}', tenant=credential)
    assert error.code is ErrorCode.INVALID_REQUEST
    assert error.message.startswith("tenant: ")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("", ErrorCode.INVALID_REQUEST),
        ("[]", ErrorCode.INVALID_REQUEST),
        ("{}", ErrorCode.INVALID_REQUEST),
        ('{"model_name": NaN}', ErrorCode.INVALID_REQUEST),
        (BODY[:-1] + ', "zzz": 1}', ErrorCode.INVALID_REQUEST),
        (BODY[:-1] + ', "tenant": "\\ud800"}', ErrorCode.INVALID_REQUEST),
        (BODY[:-1] + ', "id": "inference.requests:0:5"}', ErrorCode.INVALID_REQUEST),
        (BODY[:-1] + ', "id": "a b"}', ErrorCode.INVALID_REQUEST),
        (BODY[:-1] + ', "cache_control": "max-age=x"}', ErrorCode.INVALID_REQUEST),
        (BODY[:-1] + ', "parameters": {"triton_x": 1}}', ErrorCode.INVALID_REQUEST),
        (BODY.replace("[2]", "[3]"), ErrorCode.INVALID_INPUT),
        (BODY.replace("1e-45", "1e999"), ErrorCode.INVALID_INPUT),
        (BODY.replace('"data"', '"parameters": {"shared_memory_region": "r"}, "data"'), ErrorCode.INVALID_REQUEST),
    ],
)
def test_wrong_request_is_refused_at_once(body: str, code: ErrorCode) -> None:
    """What no model could take is told at once, with the code that the worker would have answered."""
    assert refused(body).code is code


@pytest.mark.parametrize("length", [b"x", b"-1", b"99999", b""])
def test_broken_binary_length_is_refused(length: bytes) -> None:
    """A header that names no length within the body is INVALID_REQUEST."""
    assert refused(BODY, headers=[("Inference-Header-Content-Length", length)]).code is ErrorCode.INVALID_REQUEST


@pytest.mark.parametrize(
    "given",
    [
        {"changes": {"timeout_ms": -1}},
        {"changes": {"cache_control": "x" * 257}},
        {"changes": {"cache_control": "max-age=soon"}},
        {"changes": {"enable_cache": "yes"}},
        {"changes": {"unknown": 1}},
        {"request_id": "not an id"},
        {"source_ip": "nowhere"},
    ],
)
def test_wrong_change_is_refused_by_name(given: dict[str, Any]) -> None:
    """What a header asks for is held to the same rules as the body's member, and the message names it."""
    name = next(iter(given.get("changes", given)))
    error = refused(BODY, **given)
    assert error.code is ErrorCode.INVALID_REQUEST
    assert {"request_id": "id"}.get(name, name) in error.message


def test_size_is_of_the_body_as_it_came() -> None:
    """A body of exactly the limit is taken, one byte more is PAYLOAD_TOO_LARGE; our members do not count."""
    assert prepare(BODY, record_bytes_max=len(BODY)).record.id == "fresh"
    assert refused(BODY + " ", record_bytes_max=len(BODY)).code is ErrorCode.PAYLOAD_TOO_LARGE


def test_members_stay_within_their_allowance() -> None:
    """The longest members that are allowed take less than what the record limit is widened by."""
    changes = {"cache_control": "\u00e9" * 256, "timeout_ms": 604_800_000, "enable_cache": False}
    prepared = prepare(
        BODY, tenant="\U0001f600" * 128, request_id="i" * 128, changes=changes, source_ip="ff02::1%" + "e" * 50,
        reply_partition=9999,
    )  # fmt: skip
    assert len(prepared.record.value) - len(BODY) < MEMBERS_BYTES_MAX


def test_same_content_through_another_gateway_is_the_same() -> None:
    """The reply partition that a gateway chose is no content; everything else is, the sender's own reply included."""
    body = BODY[:-1] + ', "id": "r"}'
    other_body = body.replace("1e-45", "1")
    own_reply = body[:-1] + ', "reply_to": {"partition": 4}}'
    first = prepare(body, reply_partition=4)
    for partition in (None, 0, 4, 15):
        place = prepare(body, reply_partition=partition).same_as(first.digest, 16)
        assert place is not None
        assert place.partition == 4
    assert prepare(body, reply_partition=1).same_as(prepare(other_body, reply_partition=1).digest, 16) is None
    assert prepare(body, changes={"timeout_ms": 5}).same_as(first.digest, 16) is None
    assert prepare(own_reply).same_as(prepare(body, reply_partition=5).digest, 16) is None
    assert prepare(body).same_as(prepare(body, reply_partition=17).digest, 16) is None
    assert decoded(prepare(body, reply_partition=5)).reply_to is not None


def test_headers_are_cloudevents_of_the_gateway() -> None:
    """The record carries the CloudEvents attributes, its form, and the trace where there is one."""
    headers = dict(prepare(BODY, traceparent=b"00-1-2-01").record.headers)
    assert headers == {
        "ce_specversion": b"1.0", "ce_id": b"fresh", "ce_source": b"/inference/gateway",
        "ce_type": b"inference.request.v1", "ce_time": b"2026-11-22T22:00:00.123456Z", "ce_subject": b"m",
        "content-type": b"application/json", "traceparent": b"00-1-2-01",
    }  # fmt: skip


def test_partition_key_is_the_clients() -> None:
    """Over HTTP and over Kafka one request has one partition key, so that both meet the same worker's cache."""
    record = build_record("r", "m", {"x": np.array([1, 2], "f4")}, now=0.0, tenant="acme")
    assert prepare(record.value, tenant="acme").record.key == record.key
