"""What a record of the requests topic says: a request with a name, or why it is none."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from aiokafka import ConsumerRecord
from blake3 import blake3

from pipeline.core.callback_url import read_url
from pipeline.core.duplicates import duplicate_key
from pipeline.core.exchange import Exchange, is_place
from pipeline.core.lane import SUSPECT_STARTS_MAX, Lane
from pipeline.core.result_record import Headers
from pipeline.core.trace_context import is_traceparent
from pipeline.worker.publisher import PlainRecord
from schemas.decoded import DecodedCallback, DecodedReplyTo, DecodedRequest
from schemas.errors import ErrorCode, WireError
from schemas.headers import dead_letter_headers
from schemas.request import UndecodableRecordError, decode_request, is_request_id, readable_request


class CallbackRules(NamedTuple):
    """What becomes of `callback`.

    Attributes:
        topic: where callbacks to deliver go.
        allow_http: whether http is as good as https.
    """

    topic: str
    allow_http: bool


class RequestReader:
    """Decodes records into their exchanges, and says what is refused before any model is asked.

    Args:
        replies_topic: the topic of `reply_to` where none is named, and the only one allowed.
        reply_partitions: how many partitions it has.
        dead_letter_topic: where records go that are no JSON object.
        callbacks: None refuses them all.
    """

    def __init__(
        self,
        replies_topic: str,
        reply_partitions: int,
        dead_letter_topic: str,
        callbacks: CallbackRules | None = None,
    ) -> None:
        self._replies_topic = replies_topic
        self._reply_partitions = reply_partitions
        self._dead_letter_topic = dead_letter_topic
        self._callbacks = callbacks

    def read(
        self, exchange: Exchange, record: ConsumerRecord, lane: Lane
    ) -> tuple[WireError | None, PlainRecord | None]:
        """Decodes a record into its exchange: why it is refused, and its dead letter, where there is either."""
        for name, value in record.headers:
            if name == "traceparent" and value is not None and is_traceparent(value):
                exchange.traceparent = value
        if lane.is_culprit(record.offset):
            return self._condemn(exchange, record)
        try:
            exchange.request = request = decode_request(record.value, record.headers)
        except WireError as error:
            self._identify_invalid(exchange, record)
            return error, None
        except UndecodableRecordError as error:
            letter = self.letter(record, error.reason, error.message)
            self._name(exchange, record, _named(record.headers), None)
            return None if exchange.own_id is None else WireError(ErrorCode.INVALID_REQUEST, error.message), letter
        return self._identify(exchange, request, record), None

    def _condemn(self, exchange: Exchange, record: ConsumerRecord) -> tuple[WireError, PlainRecord]:
        """A record that ended worker after worker, running alone: it is not even decoded as the others are."""
        message = f"{exchange.request_id} ended {SUSPECT_STARTS_MAX} workers, running alone: it does not run again"
        alone = _id_alone(record.value)
        self._name(exchange, record, _named(record.headers) or alone.id, alone.tenant)
        return WireError(ErrorCode.INTERNAL, message), self.letter(record, "CRASHED_WORKER", message)

    def _name(self, exchange: Exchange, record: ConsumerRecord, request_id: str | None, tenant: str | None) -> None:
        """A record that is not decoded: its bytes are its content, and it has an id only where somebody gave it one."""
        exchange.digest = blake3(record.value or b"").hexdigest(16)
        exchange.tenant = tenant
        if request_id is not None and not is_place(request_id, record.topic):
            exchange.request_id = request_id
            exchange.own_id = duplicate_key(request_id, tenant)

    def _identify(self, exchange: Exchange, request: DecodedRequest, record: ConsumerRecord) -> WireError | None:
        """Takes over what names the request and its answer; what it asks for and cannot have is the refusal."""
        exchange.model_name = request.model_name
        exchange.tenant = request.tenant
        if request.requested_at is not None:
            exchange.requested_at = request.requested_at.timestamp()
        if request.id is not None:
            if is_place(request.id, record.topic):
                return WireError(
                    ErrorCode.INVALID_REQUEST,
                    f"id: {request.id!r} has the form of a record's place in the log, which is kept for records "
                    "without an id",
                )
            exchange.request_id = request.id
            exchange.own_id = duplicate_key(request.id, request.tenant)
        if request.callback is not None and (refusal := self.refused_callback(request.callback)) is not None:
            return refusal
        return None if request.reply_to is None else self.refused_reply(request.reply_to)

    def refused_reply(self, reply: DecodedReplyTo) -> WireError | None:
        """Why no copy can go where the request wants it; its answer stays on results."""
        allowed, partitions = self._replies_topic, self._reply_partitions
        if reply.topic in (None, allowed) and reply.partition < partitions:
            return None
        if reply.topic not in (None, allowed):
            what = f"reply_to.topic: {reply.topic!r:.80} is not allowed, only {allowed}"
        else:
            what = f"reply_to.partition: {reply.partition} of {allowed}, which has {partitions}"
        return WireError(ErrorCode.INVALID_REQUEST, what)

    def refused_callback(self, callback: DecodedCallback) -> WireError | None:
        """Why its answer is not delivered where the request wants it; whom the name leads to is judged when it is."""
        if self._callbacks is None:
            return WireError(ErrorCode.INVALID_REQUEST, "callback: this worker has no topic for callbacks")
        try:
            read_url(callback.url, allow_http=self._callbacks.allow_http)
        except ValueError as error:
            return WireError(ErrorCode.INVALID_REQUEST, f"callback.url: {error}")
        return None

    def _identify_invalid(self, exchange: Exchange, record: ConsumerRecord) -> None:
        """An invalid request is answered under its own id where that is readable and allowed."""
        exchange.request = None
        readable = readable_request(record.value)
        exchange.model_name = readable.model_name or ""
        self._name(exchange, record, readable.request_id, readable.tenant)

    def letter(self, record: ConsumerRecord, reason: str, error: str) -> PlainRecord:
        """A record for the dead letters, with its original bytes and headers."""
        ours = dead_letter_headers(reason, error, record.topic, record.partition, record.offset)
        headers: Headers = [*record.headers, *ours]
        return PlainRecord(self._dead_letter_topic, None, record.key, record.value, headers)


class _Names(msgspec.Struct):
    id: str | None = None
    tenant: str | None = None


_decode_names = msgspec.json.Decoder(_Names).decode


def _id_alone(value: bytes | None) -> _Names:
    """Id and tenant of a JSON object, read by another parser than the one that may have ended the workers before."""
    try:
        names = _decode_names(value or b"")
    except (msgspec.DecodeError, RecursionError):
        return _Names()
    return names if names.id is not None and is_request_id(names.id) else _Names()


def _named(headers: Sequence[tuple[str, bytes]]) -> str | None:
    value = next((value for name, value in headers if name == "ce_id"), None)
    text = value.decode("ascii", "replace") if value is not None else None
    return text if text is not None and is_request_id(text) else None
