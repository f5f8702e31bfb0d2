"""From a record to its answer and what it puts into Kafka: the synchronous middle of the worker."""

import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import orjson
from aiokafka import ConsumerRecord
from blake3 import blake3

from pipeline.core.answer import Answer, failed
from pipeline.core.cache_key import content_digest, request_digest
from pipeline.core.callback_record import first_headers
from pipeline.core.duplicates import First
from pipeline.core.event_lines import EventLines
from pipeline.core.exchange import Exchange, offset_id
from pipeline.core.lane import Lane
from pipeline.core.parameters import sort_parameters
from pipeline.core.past_answer import recall
from pipeline.core.result_record import ResultRecord, encode_result, json_bytes_least
from pipeline.engine import InferenceEngine, Prepared
from pipeline.ports import Clock
from pipeline.worker.publisher import Outgoing, PlainRecord, Publisher
from pipeline.worker.record_spans import RecordSpans
from pipeline.worker.request_reader import CallbackRules, RequestReader
from schemas.errors import ErrorCode, WireError

logger = logging.getLogger(__name__)

# What a binary request becomes until Kafka has confirmed it: a result (1), and an event line that repeats inputs and
# result as base64 (4/3 each).
_HELD_PER_INPUT_BYTE = 4
# What a result's record may hold besides the answer: headers, framing.
_RECORD_OVERHEAD_BYTES = 2048


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
        callbacks: what becomes of `callback`; None refuses it.
    """

    worker: str
    group: str
    replies_topic: str
    reply_partitions: int
    dead_letter_topic: str
    record_bytes_max: int
    callbacks: CallbackRules | None = None


class InFlight:
    """Requests taken and not answered, in number and input bytes.

    Args:
        count_max: how many at most.
        bytes_max: of what they hold on to, and of answers that are not confirmed, together.
    """

    def __init__(self, count_max: int, bytes_max: int) -> None:
        self.count = 0
        self.bytes = 0
        self._count_max = count_max
        self._bytes_max = bytes_max

    def is_full(self, unconfirmed_bytes: int) -> bool:
        """Whether the next one has to wait, beside answers of so many bytes."""
        held = _HELD_PER_INPUT_BYTE * self.bytes + unconfirmed_bytes
        return self.count >= self._count_max or held >= self._bytes_max


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
        spans: of the records; None: nobody follows any.
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
        spans: RecordSpans | None = None,
    ) -> None:
        self._engine = engine
        self._publisher = publisher
        self._lines = lines
        self._clock = clock
        self._settings = settings
        self._worker_json = orjson.dumps(settings.worker)
        self._group = settings.group.encode()
        self._reader = RequestReader(
            settings.replies_topic, settings.reply_partitions, settings.dead_letter_topic, settings.callbacks
        )
        self._in_flight = in_flight
        self._on_room = on_room
        self._spans = spans
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
        refusal, letter = self._reader.read(exchange, record, lane)
        if self._spans is not None:
            self._spans.begin(exchange)
        others = () if letter is None else (letter,)
        if record.offset in lane.ledger and self._is_repeated(ticket, record, others):
            return
        own_id = exchange.own_id
        first = lane.duplicates.find(own_id, record.offset, record.timestamp) if own_id is not None else None
        if first is not None:
            self._refuse_duplicate(ticket, record, first)
        elif refusal is not None:
            self._remember(ticket)
            self.publish(ticket, failed(refusal), others)
        elif letter is not None:
            self._unanswered(exchange, "dead_letter")
            self._publish(ticket, None, b"", others)
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
            span=exchange.span,
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
        _digest(ticket)
        _note_id(ticket)

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
        answer, result = self._fitting(exchange, answer)
        self.results[answer.status, answer.failure.code if answer.failure else ""] += 1
        events = self._lines.of(exchange, answer, result)
        others += self._copies(exchange, result)
        if self._spans is not None:
            self._spans.answered(exchange, answer, redelivered=ticket.redelivered)
        self._publish(ticket, result, events, others)

    def _publish(
        self, ticket: Ticket, result: ResultRecord | None, events: bytes, others: tuple[PlainRecord, ...]
    ) -> None:
        if others:
            self.dead_letters += sum(record.topic == self._settings.dead_letter_topic for record in others)
        exchange = ticket.exchange
        sending = None
        if self._spans is not None and result is not None:
            sending = self._spans.send(exchange, result)
        self._publisher.add(
            Outgoing(
                ticket.lane, exchange.offset, exchange.key, result, events, others, ticket.redelivered,
                ticket.confirmed, sending,
            )
        )  # fmt: skip

    def _copies(self, exchange: Exchange, result: ResultRecord) -> tuple[PlainRecord, ...]:
        """The result for `reply_to`, and for whoever delivers `callback`; again with every repetition."""
        request = exchange.request
        if request is None or (request.reply_to is None and request.callback is None):
            return ()
        copies: tuple[PlainRecord, ...] = ()
        request_id = exchange.request_id.encode()
        reply, callback, rules = request.reply_to, request.callback, self._settings.callbacks
        if reply is not None and self._reader.refused_reply(reply) is None:
            topic = self._settings.replies_topic
            copies += (PlainRecord(topic, reply.partition, request_id, result.value, result.headers),)
        if callback is not None and rules is not None and self._reader.refused_callback(callback) is None:
            headers = first_headers(result.headers, exchange, callback.url)
            copies += (PlainRecord(rules.topic, None, request_id, result.value, headers),)
        return copies

    def _is_repeated(self, ticket: Ticket, record: ConsumerRecord, others: tuple[PlainRecord, ...]) -> bool:
        """Whether the answer is in the log already: then what belongs to it is published again, the answer is not."""
        exchange = ticket.exchange
        for known in ticket.lane.ledger.take(record.offset, record.timestamp, exchange.request_id):
            assert known.value is not None, "what was not kept is read again before its request is taken"
            try:
                answer, result, worker = recall(exchange, known.value, known.headers)
            except ValueError as error:
                about = {
                    "request_id": exchange.request_id, "tenant": exchange.tenant, "model": exchange.model_name
                }  # fmt: skip
                words = "results, offset %d: has a result's headers and is none: %s"
                logger.warning(words, known.results_offset, error, extra=about)
                continue
            self.repeated += 1
            exchange.digest = known.digest.hex()
            _note_id(ticket)
            if exchange.request is not None:
                exchange.input_bytes = _prepared(ticket).input_bytes
            events = self._lines.of(exchange, answer, result, worker)
            others += self._copies(exchange, result)
            self._unanswered(exchange, "repeated")
            self._publish(ticket, None, events, others)
            return True
        return False

    def _refuse_duplicate(self, ticket: Ticket, record: ConsumerRecord, first: First) -> None:
        """An id that was used before gets no second result; with other content it goes to the dead letters."""
        self.duplicates += 1
        exchange = ticket.exchange
        _digest(ticket)
        same = bytes.fromhex(exchange.digest) == first.digest
        others: tuple[PlainRecord, ...] = ()
        if not same:
            place = offset_id(exchange.topic, exchange.partition, first.offset)
            error = f"id: {exchange.request_id!r} was used by {place} with other content"
            others = (self._reader.letter(record, "DUPLICATE_ID", error),)
        events = self._lines.duplicate(exchange, first.offset, same)
        self._unanswered(exchange, "duplicate")
        self._publish(ticket, None, events, others)

    def _unanswered(self, exchange: Exchange, status: str) -> None:
        if self._spans is not None:
            self._spans.unanswered(exchange, status)

    def _fitting(self, exchange: Exchange, answer: Answer) -> tuple[Answer, ResultRecord]:
        """The answer as a record within the limit: as it was asked for, else in binary form, else the reason why not.

        JSON that is certain not to fit is not made first: 64 MB of FP32 are 170 MB of text and a second.
        """
        stored, limit = answer.outputs, self._settings.record_bytes_max
        room = limit - _RECORD_OVERHEAD_BYTES - len(exchange.key or b"")
        all_binary = stored is not None and stored.json is None and json_bytes_least(stored) > room
        result = encode_result(exchange, answer, self._worker_json, self._group, all_binary=all_binary)
        if len(result.value) > room and stored is not None and not all_binary:
            result = encode_result(exchange, answer, self._worker_json, self._group, all_binary=True)
        if len(result.value) <= room:
            return answer, result
        size = len(result.value)
        answer = failed(
            WireError(ErrorCode.PAYLOAD_TOO_LARGE, f"the result has {size} bytes, the record limit is {limit}")
        )
        return answer, encode_result(exchange, answer, self._worker_json, self._group)


def _overloaded(exchange: Exchange) -> WireError:
    waited_ms = max(exchange.taken_at * 1e3 - exchange.timestamp_ms, 0.0)
    return WireError(ErrorCode.OVERLOADED, f"no room for {waited_ms:.0f} ms: try again later")


def _digest(ticket: Ticket) -> None:
    """What a repeated id is compared by; of a record that is no request the reader has taken it from its bytes."""
    exchange = ticket.exchange
    if exchange.request is not None:
        exchange.digest = request_digest(exchange.request, _prepared(ticket).content)


def _note_id(ticket: Ticket) -> None:
    """Whoever brings this id again is not the first."""
    exchange = ticket.exchange
    if exchange.own_id is not None:
        first = First(exchange.offset, exchange.timestamp_ms, bytes.fromhex(exchange.digest))
        ticket.lane.duplicates.add(exchange.own_id, first)


def _prepared(ticket: Ticket) -> Prepared:
    """Content and size of a request, also where the engine did not look into it: expired, or its model is not served.

    They must be what the engine would have found: the same request later is a duplicate, not another one.
    """
    prepared, request = ticket.prepared, ticket.exchange.request
    if prepared.content or request is None:
        return prepared
    try:
        tensors = [tensor.to_tensor() for tensor in request.inputs]
        prepared.content = content_digest(tensors, sort_parameters(request.parameters).keyed)
        prepared.input_bytes = sum(len(tensor.raw) for tensor in tensors)
    except WireError:  # never valid, whatever model it meets
        inputs = [[tensor.name, tensor.datatype, tensor.shape, tensor.value()] for tensor in request.inputs]
        prepared.content = blake3(repr(inputs).encode("utf-8", "surrogatepass")).digest()
    return prepared
