"""A request of HTTP as the record that goes on the requests topic. Pure: time, ids and the reply place are arguments.

The sender's text stays as it is, numbers of any size and escapes included; the members that are the gateway's to say
are put in front of it. Only where the body brings one of them itself is its object written anew, value by value.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from pipeline.client.records import Headers, RequestRecord, request_headers
from pipeline.core.cache_key import content_digest, partition_key, request_digest
from pipeline.core.cache_policy import parse_cache_control
from pipeline.core.exchange import is_place, utc_text
from pipeline.core.parameters import check_input_parameters, kept_output_parameters, sort_parameters
from schemas.decoded import DecodedRequest
from schemas.errors import ErrorCode, WireError
from schemas.request import BINARY_HEADER, ReplyTo, UndecodableRecordError, binary_header_length, decode_request

SOURCE = "/inference/gateway"
# What our members add to a body at most: id and tenant of 128 characters, up to 12 bytes each where they are escaped,
# a cache_control of 256, times and numbers. They are the gateway's, and count into the record's overhead of 64 KiB.
MEMBERS_BYTES_MAX = 8192

_BINARY_HEADER_NAME = "Inference-Header-Content-Length"
_NO_INPUTS = [{"name": "x", "datatype": "FP32", "shape": [0], "data": []}]
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Submission(NamedTuple):
    """A request as it came over HTTP.

    Attributes:
        value: the request record's value: JSON, or JSON and raw tensors.
        headers: none, or `Inference-Header-Content-Length` for the binary form.
        tenant: of the credential; the body's own is refused unless it is the same.
        source_ip: the peer; behind trusted proxies, the client.
        request_id: derived from an Idempotency-Key; None: the body's, else a fresh UUIDv7.
        changes: members to set over the body's: `cache_control`, `enable_cache`, `timeout_ms`.
        traceparent: of W3C, where there is one.
    """

    value: bytes
    headers: Sequence[tuple[str, bytes]]
    tenant: str | None
    source_ip: str
    request_id: str | None = None
    changes: Mapping[str, Any] = {}
    traceparent: bytes | None = None


@dataclass(frozen=True, slots=True)
class PlacedReply:
    """Where a request that is known already has its copy sent: a partition of the replies, or nowhere."""

    partition: int | None


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request that may be sent.

    Attributes:
        record: what goes on the topic.
        tenant: whose it is.
        digest: of the record's content, as the worker will have it: 16 bytes.
        reply_partition: of the replies, where a copy goes that the gateway asked for; None: it asked for none.
    """

    record: RequestRecord
    tenant: str | None
    digest: bytes
    reply_partition: int | None
    _request: DecodedRequest
    _content: bytes
    _has_own_reply: bool

    @property
    def model_name(self) -> str:
        """The model that it asks."""
        return self._request.model_name

    def same_as(self, digest: bytes, reply_partitions: int) -> PlacedReply | None:
        """How the content with this digest is this request's; None where it is another's.

        `reply_to` is content for the worker, but not for the sender where the gateway chose it: through another gateway
        the same request has another partition. So it is the same where any of the partitions, or none, gives the
        digest: some 45 us for 16 of them.
        """
        if digest == self.digest:
            reply = self._request.reply_to
            return PlacedReply(None if reply is None else reply.partition)
        if self._has_own_reply:
            return None
        places: list[int | None] = [None, *range(reply_partitions)]
        for partition in places:
            if bytes.fromhex(_digest(self._request, self._content, partition)) == digest:
                return PlacedReply(partition)
        return None


def prepare_request(
    submission: Submission,
    *,
    now: float,
    fresh_id: Callable[[], str],
    topic: str,
    reply_partition: int | None,
    record_bytes_max: int,
) -> PreparedRequest:
    """The record of a submission.

    Args:
        submission: as it came.
        now: Unix seconds, for `requested_at` where the sender says none, and `ce_time`.
        fresh_id: makes an id where nobody brings one.
        topic: the requests topic: ids of the form that its records get are refused.
        reply_partition: of the replies, where a copy of the result is wanted; None: nowhere. The sender's own counts.
        record_bytes_max: of the value as it came.

    Raises:
        WireError: INVALID_REQUEST, INVALID_INPUT or PAYLOAD_TOO_LARGE: whatever model it asks for, it is not valid.
    """
    if len(submission.value) > record_bytes_max:
        size = len(submission.value)
        raise WireError(ErrorCode.PAYLOAD_TOO_LARGE, f"the request has {size} bytes, the limit is {record_bytes_max}")
    request = _decoded(submission)
    _check_tenant(request.tenant, submission.tenant)
    has_own_reply = request.reply_to is not None
    place = None if has_own_reply else reply_partition
    members = _members(submission, request, now, fresh_id, place)
    _set_members(request, members)
    assert request.id is not None, "given or made"
    if is_place(request.id, topic):
        raise WireError(
            ErrorCode.INVALID_REQUEST,
            f"id: {request.id!r} has the form of a record's place in the log, which is kept for records without an id",
        )
    content = _content_of(request)
    value, binary = _with_members(submission, members)
    headers = request_headers(request.id, request.model_name, now, binary, SOURCE)
    if submission.traceparent is not None:
        headers.append(("traceparent", submission.traceparent))
    key = partition_key(request.tenant, request.model_name, content).encode()
    digest = bytes.fromhex(request_digest(request, content))
    record = RequestRecord(request.id, key, value, headers)
    return PreparedRequest(record, request.tenant, digest, place, request, content, has_own_reply)


def _decoded(submission: Submission) -> DecodedRequest:
    try:
        return decode_request(submission.value, submission.headers)
    except UndecodableRecordError as error:
        raise WireError(ErrorCode.INVALID_REQUEST, error.message) from None


def _check_tenant(given: str | None, tenant: str | None) -> None:
    if given is not None and given != tenant:
        expected = "none, for the key has none" if tenant is None else repr(tenant)
        raise WireError(
            ErrorCode.INVALID_REQUEST, f"tenant: comes from the API key, got {given!r:.140}, expected {expected}"
        )


def _members(
    submission: Submission, request: DecodedRequest, now: float, fresh_id: Callable[[], str], reply: int | None
) -> dict[str, Any]:
    """What the gateway says of a request: what is the same in the body already is left out."""
    members: dict[str, Any] = dict(submission.changes)
    if submission.request_id is not None and submission.request_id != request.id:
        members["id"] = submission.request_id
    elif request.id is None:
        members["id"] = fresh_id()
    if submission.tenant is not None and request.tenant is None:
        members["tenant"] = submission.tenant
    if submission.source_ip != request.source_ip:
        members["source_ip"] = submission.source_ip
    if request.requested_at is None:
        members["requested_at"] = utc_text(now)
    if reply is not None:
        members["reply_to"] = {"partition": reply}
    return members


def _set_members(request: DecodedRequest, members: Mapping[str, Any]) -> None:
    """Sets them on the decoded request, with the worker's own opinion of their values."""
    alone = json.dumps({"model_name": "m", "inputs": _NO_INPUTS} | dict(members)).encode()
    try:
        checked = decode_request(alone)
    except UndecodableRecordError as error:
        raise WireError(ErrorCode.INVALID_REQUEST, error.message) from None
    for name in members:
        setattr(request, name, getattr(checked, name))


def _content_of(request: DecodedRequest) -> bytes:
    """The digest of inputs and parameters; what no model takes is refused, in the order of the worker."""
    if request.cache_control:
        parse_cache_control(request.cache_control)
    keyed = sort_parameters(request.parameters).keyed
    for tensor in request.inputs:
        check_input_parameters(tensor)
    tensors = [tensor.to_tensor() for tensor in request.inputs]
    for output in request.outputs or ():
        kept_output_parameters(output)
    return content_digest(tensors, keyed)


def _digest(request: DecodedRequest, content: bytes, partition: int | None) -> str:
    """The digest of a request with another place for its reply."""
    own = request.reply_to
    name = "reply_to"  # read-only for readers of a request; nobody else has this one
    setattr(request, name, None if partition is None else ReplyTo(partition=partition))
    try:
        return request_digest(request, content)
    finally:
        setattr(request, name, own)


def _with_members(submission: Submission, members: Mapping[str, Any]) -> tuple[bytes, Headers]:
    """The value with these members, and the header of its binary form; raw tensors are copied once."""
    value = submission.value
    length = next((text for name, text in submission.headers if name.lower() == BINARY_HEADER), None)
    json_bytes = len(value) if length is None else binary_header_length(length, len(value))
    assert json_bytes is not None, "decoded before"
    if not members:
        parts: list[bytes | memoryview] = [value[:json_bytes]]
    elif _may_bring(value, json_bytes, members):
        parts = [_written_anew(value[:json_bytes], members)]
    else:
        # A valid request is no empty object, so a comma follows.
        start = value.index(b"{") + 1
        parts = [value[:start], _dumps(members)[1:-1], b",", memoryview(value)[start:json_bytes]]
    if length is None:
        return b"".join(parts), []
    text = b"%d" % sum(len(part) for part in parts)
    return b"".join([*parts, memoryview(value)[json_bytes:]]), [(_BINARY_HEADER_NAME, text)]


def _may_bring(value: bytes, json_bytes: int, names: Mapping[str, Any]) -> bool:
    """Whether the JSON may have one of these members: their names stand nowhere in it, and nothing is spelled out."""
    if value.find(b"\\u", 0, json_bytes) >= 0:
        return True
    return any(value.find(b'"%b"' % name.encode(), 0, json_bytes) >= 0 for name in names)


def _written_anew(body: bytes, members: Mapping[str, Any]) -> bytes:
    """The object with these members in the place of its own; the others' values are the sender's text."""
    try:
        given: dict[str, Any] = _decode_members(body)
    except msgspec.MsgspecError as error:
        raise WireError(ErrorCode.INVALID_REQUEST, f"the request is not JSON: {error}") from None
    texts = {name: bytes(raw) for name, raw in given.items()} | {name: _dumps(value) for name, value in members.items()}
    return b"{%b}" % b",".join([b"%b:%b" % (_dumps(name), text) for name, text in texts.items()])


def _dumps(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
