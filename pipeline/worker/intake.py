"""From a record to its answer and what it puts into Kafka: the synchronous middle of the worker."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import orjson
from aiokafka import ConsumerRecord
from blake3 import blake3

from pipeline.core.answer import Answer, failed
from pipeline.core.cache_key import content_digest, request_digest
from pipeline.core.duplicates import First, duplicate_key
from pipeline.core.event_lines import EventLines
from pipeline.core.exchange import Exchange, is_place, offset_id
from pipeline.core.lane import SUSPECT_STARTS_MAX, Lane
from pipeline.core.ledger import Answered
from pipeline.core.parameters import sort_parameters
from pipeline.core.past_answer import recall
from pipeline.core.result_record import Headers, ResultRecord, encode_result
from pipeline.engine import InferenceEngine, Prepared
from pipeline.ports import Clock
from pipeline.worker.publisher import Outgoing, PlainRecord, Publisher
from schemas.errors import ErrorCode, WireError
from schemas.request import (
    InferenceRequest,
    ReplyTo,
    UndecodableRecordError,
    decode_request,
    is_request_id,
    readable_request,
)

# What a result's record may hold besides the answer: headers, framing.
_RECORD_OVERHEAD_BYTES = 2048
# W3C Trace Context, section 3.2.2: 00-<32 hex>-<16 hex>-<2 hex>.
_TRACEPARENT_BYTES = 55


@dataclass(frozen=True, slots=True)
class IntakeSettings:
    """What the intake must know.

    Attributes:
        worker: this worker's name.
        group: its consumer group.
        replies_topic: the topic of `reply_to` where none is named, and the only one allowed.
        reply_partitions: how many partitions it has.
        dead_letter_topic: where records go that are no JSON object.
        record_bytes_max: the record limit.
    """

    worker: str
    group: str
    replies_topic: str
    reply_partitions: int
    dead_letter_topic: str
    record_bytes_max: int


class InFlight:
    """Requests taken and not answered, in number and input bytes."""

    def __init__(self, count_max: int, bytes_max: int) -> None:
        self.count = 0
        self.bytes = 0
        self._count_max = count_max
        self._bytes_max = bytes_max

    @property
    def full(self) -> bool:
        """Whether the next one has to wait."""
        return self.count >= self._count_max or self.bytes >= self._bytes_max


@dataclass(slots=True, eq=False)
class Ticket:
    """One record's way through the engine: a `Waiter`."""

    intake: "Intake"
    lane: Lane
    exchange: Exchange
    prepared: Prepared
    redelivered: bool
    confirmed: Callable[[], None]

    def answered(self, answer: Answer) -> None:
        """The engine's answer to a miss."""
        self.intake.release(self.exchange)
        self.intake.publish(self, answer)


class Intake:
    """Takes records, gets their answers, hands them to the publisher.

    Args:
        engine: answers requests.
        publisher: puts answers into Kafka.
        lines: writes their events.
        clock: time.
        settings: names and limits.
        in_flight: the bound on misses.
        on_room: is called when a miss was answered.
    """

    def __init__(
        self,
        engine: InferenceEngine,
        publisher: Publisher,
        lines: EventLines,
        clock: Clock,
        settings: IntakeSettings,
        in_flight: InFlight,
        on_room: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._publisher = publisher
        self._lines = lines
        self._clock = clock
        self._settings = settings
        self._worker_json = orjson.dumps(settings.worker)
        self._group = settings.group.encode()
        self._in_flight = in_flight
        self._on_room = on_room
        self.results: defaultdict[tuple[str, ...], int] = defaultdict(int)
        self.dead_letters = 0
        self.duplicates = 0
        self.repeated = 0

    def take(
        self, record: ConsumerRecord, lane: Lane, confirmed: Callable[[], None], *, overloaded: bool = False
    ) -> None:
        """Answers one record, now or later; `confirmed` is called when all of it is in Kafka.

        Args:
            record: from the requests topic.
            lane: its partition.
            confirmed: is called once.
            overloaded: there is no room, and it waited for too long already: its answer is OVERLOADED.
        """
        exchange = Exchange(
            record.topic, record.partition, record.offset, record.timestamp, record.key, self._clock.now(),
            offset_id(record.topic, record.partition, record.offset),
        )  # fmt: skip
        ticket = Ticket(self, lane, exchange, Prepared(), lane.may_be_known(record.offset), confirmed)
        exchange.requested_at = record.timestamp / 1e3
        refusal, letter = self._read(exchange, record, lane)
        others = () if letter is None else (letter,)
        if ticket.redelivered:
            known = lane.ledger.take(record.offset, record.timestamp, exchange.request_id)
            if known is not None:
                self._repeat(ticket, known, others)
                return
        own_id = exchange.own_id
        first = lane.duplicates.find(own_id, record.offset, record.timestamp) if own_id is not None else None
        if first is not None:
            self._refuse_duplicate(ticket, record, first)
        elif refusal is not None:
            self._remember(ticket)
            self.publish(ticket, failed(refusal), others)
        elif letter is not None:
            self._publisher.add(
                Outgoing(lane, record.offset, record.key, None, b"", others, ticket.redelivered, confirmed)
            )
        elif overloaded:
            self._remember(ticket)
            self.publish(ticket, failed(_overloaded(exchange)))
        else:
            self._submit(ticket, record)

    def _submit(self, ticket: Ticket, record: ConsumerRecord) -> None:
        exchange = ticket.exchange
        assert exchange.request is not None
        answer = self._engine.submit(
            exchange.request,
            ticket,
            requested_at=exchange.requested_at,
            appended_at=record.timestamp / 1e3,
            prepared=ticket.prepared,
        )
        self._remember(ticket)
        if answer is not None:
            self.publish(ticket, answer)
        else:
            exchange.input_bytes = ticket.prepared.input_bytes
            self._in_flight.count += 1
            self._in_flight.bytes += exchange.input_bytes

    def _remember(self, ticket: Ticket) -> None:
        """The request's digest, and its id for those that bring it again."""
        exchange = ticket.exchange
        if exchange.request is not None:
            exchange.digest = request_digest(exchange.request, ticket.prepared.content or _content(exchange.request))
        if exchange.own_id is not None:
            first = First(exchange.offset, exchange.timestamp_ms, bytes.fromhex(exchange.digest))
            ticket.lane.duplicates.add(exchange.own_id, first)

    def release(self, exchange: Exchange) -> None:
        """A miss was answered: there is room for another."""
        self._in_flight.count -= 1
        self._in_flight.bytes -= exchange.input_bytes
        self._on_room()

    def publish(self, ticket: Ticket, answer: Answer, others: tuple[PlainRecord, ...] = ()) -> None:
        """Hands an answer to the publisher."""
        exchange = ticket.exchange
        exchange.complete(self._clock.now())
        exchange.input_bytes = ticket.prepared.input_bytes
        result = encode_result(exchange, answer, self._worker_json, self._group)
        if len(result.value) + len(exchange.key or b"") > self._settings.record_bytes_max - _RECORD_OVERHEAD_BYTES:
            answer, result = self._too_large(exchange, len(result.value))
        self.results[answer.status, answer.failure.code if answer.failure else ""] += 1
        events = self._lines.of(exchange, answer, result)
        others += self._copies(exchange, result)
        self._publisher.add(
            Outgoing(
                ticket.lane, exchange.offset, exchange.key, result, events, others, ticket.redelivered, ticket.confirmed
            )
        )

    def _copies(self, exchange: Exchange, result: ResultRecord) -> tuple[PlainRecord, ...]:
        reply = exchange.request.reply_to if exchange.request is not None else None
        if reply is None or self._refused_reply(reply) is not None:
            return ()
        request_id = exchange.request_id.encode()
        return (PlainRecord(self._settings.replies_topic, reply.partition, request_id, result.value, result.headers),)

    def _repeat(self, ticket: Ticket, known: Answered, others: tuple[PlainRecord, ...]) -> None:
        """The answer is in the log already: what belongs to it is published again, the answer is not.

        Raises:
            ValueError: the record in the results topic is no result, although all its headers say so.
        """
        self.repeated += 1
        exchange = ticket.exchange
        assert known.value is not None, "what was not kept is read again before its request is taken"
        exchange.digest = known.digest.hex()
        if exchange.own_id is not None:
            ticket.lane.duplicates.add(exchange.own_id, First(exchange.offset, exchange.timestamp_ms, known.digest))
        if exchange.request is not None:
            exchange.input_bytes = _input_bytes(exchange.request)
        answer, result, worker = recall(exchange, known.value, known.headers)
        events = self._lines.of(exchange, answer, result, worker)
        others += self._copies(exchange, result)
        self._publisher.add(
            Outgoing(ticket.lane, exchange.offset, exchange.key, None, events, others, True, ticket.confirmed)
        )

    def _refuse_duplicate(self, ticket: Ticket, record: ConsumerRecord, first: First) -> None:
        """An id that was used before gets no second result; with other content it goes to the dead letters."""
        self.duplicates += 1
        exchange = ticket.exchange
        if exchange.request is not None:
            exchange.digest = request_digest(exchange.request, _content(exchange.request))
        same = bytes.fromhex(exchange.digest) == first.digest
        others: tuple[PlainRecord, ...] = ()
        if not same:
            place = offset_id(exchange.topic, exchange.partition, first.offset)
            error = f"id: {exchange.request_id!r} was used by {place} with other content"
            others = (self._letter(record, "DUPLICATE_ID", error),)
        events = self._lines.duplicate(exchange, first.offset, same)
        self._publisher.add(
            Outgoing(
                ticket.lane, exchange.offset, exchange.key, None, events, others, ticket.redelivered, ticket.confirmed
            )
        )

    def _read(
        self, exchange: Exchange, record: ConsumerRecord, lane: Lane
    ) -> tuple[WireError | None, PlainRecord | None]:
        """Decodes a record into its exchange: why it is refused, and its dead letter, where there is either."""
        if lane.is_culprit(record.offset):
            return self._condemn(exchange, record)
        try:
            exchange.request = request = decode_request(record.value, record.headers)
        except WireError as error:
            self._identify_invalid(exchange, record)
            return error, None
        except UndecodableRecordError as error:
            letter = self._letter(record, error.reason, error.message)
            self._name(exchange, record, _named(record.headers))
            return None if exchange.own_id is None else WireError(ErrorCode.INVALID_REQUEST, error.message), letter
        return self._identify(exchange, request, record), None

    def _condemn(self, exchange: Exchange, record: ConsumerRecord) -> tuple[WireError, PlainRecord]:
        """A record that ended worker after worker, running alone: it is not even decoded as the others are."""
        message = f"{exchange.request_id} ended {SUSPECT_STARTS_MAX} workers, running alone: it does not run again"
        self._name(exchange, record, _named(record.headers) or _id_alone(record.value))
        return WireError(ErrorCode.INTERNAL, message), self._letter(record, "CRASHED_WORKER", message)

    def _name(self, exchange: Exchange, record: ConsumerRecord, request_id: str | None) -> None:
        """A record that is not decoded: its bytes are its content, and it has an id only where somebody gave it one."""
        exchange.digest = blake3(record.value or b"").hexdigest(16)
        if request_id is not None and not is_place(request_id, record.topic):
            exchange.request_id = request_id
            exchange.own_id = duplicate_key(request_id, None)

    def _identify(self, exchange: Exchange, request: InferenceRequest, record: ConsumerRecord) -> WireError | None:
        """Takes over what names the request and its answer; what it asks for and cannot have is the refusal."""
        exchange.model_name = request.model_name
        if request.requested_at is not None:
            exchange.requested_at = request.requested_at.timestamp()
        for name, value in record.headers:
            if name == "traceparent" and value is not None and len(value) == _TRACEPARENT_BYTES:
                exchange.traceparent = value
        if request.id is not None:
            if is_place(request.id, record.topic):
                return WireError(
                    ErrorCode.INVALID_REQUEST,
                    f"id: {request.id!r} has the form of a record's place in the log, which is kept for records "
                    "without an id",
                )
            exchange.request_id = request.id
            exchange.own_id = duplicate_key(request.id, request.tenant)
        if request.callback is not None:
            return WireError(ErrorCode.INVALID_REQUEST, "callback: webhooks are not delivered by this release")
        return None if request.reply_to is None else self._refused_reply(request.reply_to)

    def _refused_reply(self, reply: ReplyTo) -> WireError | None:
        """Why no copy can go where the request wants it; its answer stays on results."""
        allowed, partitions = self._settings.replies_topic, self._settings.reply_partitions
        if reply.topic in (None, allowed) and reply.partition < partitions:
            return None
        if reply.topic not in (None, allowed):
            what = f"reply_to.topic: {reply.topic!r:.80} is not allowed, only {allowed}"
        else:
            what = f"reply_to.partition: {reply.partition} of {allowed}, which has {partitions}"
        return WireError(ErrorCode.INVALID_REQUEST, what)

    def _identify_invalid(self, exchange: Exchange, record: ConsumerRecord) -> None:
        """An invalid request is answered under its own id where that is readable and allowed."""
        exchange.request = None
        request_id, model_name = readable_request(record.value)
        exchange.model_name = model_name or ""
        self._name(exchange, record, request_id)

    def _letter(self, record: ConsumerRecord, reason: str, error: str) -> PlainRecord:
        """A record for the dead letters, with its original bytes and headers."""
        self.dead_letters += 1
        headers: Headers = [
            *record.headers,
            ("reason", reason.encode()),
            ("error", error.encode("utf-8", "replace")),
            ("source-topic", record.topic.encode()),
            ("source-partition", b"%d" % record.partition),
            ("source-offset", b"%d" % record.offset),
        ]
        return PlainRecord(self._settings.dead_letter_topic, None, record.key, record.value, headers)

    def _too_large(self, exchange: Exchange, size: int) -> tuple[Answer, ResultRecord]:
        limit = self._settings.record_bytes_max
        answer = failed(
            WireError(ErrorCode.PAYLOAD_TOO_LARGE, f"the result has {size} bytes, the record limit is {limit}")
        )
        return answer, encode_result(exchange, answer, self._worker_json, self._group)


def _overloaded(exchange: Exchange) -> WireError:
    waited_ms = max(exchange.taken_at * 1e3 - exchange.timestamp_ms, 0.0)
    return WireError(ErrorCode.OVERLOADED, f"no room for {waited_ms:.0f} ms: try again later")


class _IdAlone(msgspec.Struct):
    id: str | None = None


_decode_id = msgspec.json.Decoder(_IdAlone).decode


def _id_alone(value: bytes | None) -> str | None:
    """The id of a JSON object, read by another parser than the one that may have ended the workers before."""
    try:
        request_id = _decode_id(value or b"").id
    except (msgspec.DecodeError, RecursionError):
        return None
    return request_id if request_id is not None and is_request_id(request_id) else None


def _input_bytes(request: InferenceRequest) -> int:
    """Raw bytes of all inputs; 0 where they were never valid, as the engine counts them."""
    try:
        return sum(len(tensor.to_tensor().raw) for tensor in request.inputs)
    except WireError:
        return 0


def _named(headers: Sequence[tuple[str, bytes]]) -> str | None:
    value = next((value for name, value in headers if name == "ce_id"), None)
    text = value.decode("ascii", "replace") if value is not None else None
    return text if text is not None and is_request_id(text) else None


def _content(request: InferenceRequest) -> bytes:
    """The content's digest of a request that the engine did not look into: expired, or its model is not served.

    It must be what the engine would have computed: the same request later is a duplicate, not another one.
    """
    try:
        tensors = [tensor.to_tensor() for tensor in request.inputs]
        return content_digest(tensors, sort_parameters(request.parameters).keyed)
    except WireError:
        pass  # never valid, whatever model it meets
    inputs = [[tensor.name, tensor.datatype, tensor.shape, tensor.data] for tensor in request.inputs]
    return blake3(repr(inputs).encode("utf-8", "surrogatepass")).digest()
