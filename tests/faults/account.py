"""What was asked and acknowledged, and what came back: plain records, all of them in memory."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from threading import Lock
from typing import NamedTuple


class Kind(StrEnum):
    """What must become of a request record."""

    ANSWERED = "answered"  # succeeds, with a known label
    INVALID = "invalid"  # fails, with a known error code
    UNDECODABLE = "undecodable"  # dead letter, no result
    REPEATED = "repeated"  # an earlier record's id and content again: no second result
    CONFLICTING = "conflicting"  # an earlier record's id with other content: dead letter DUPLICATE_ID


class Place(NamedTuple):
    """Where a request record is in its log."""

    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Expected:
    """A request before it is sent, and what its answer must say.

    Attributes:
        request_id: None for a request without one.
        version: the model version that must answer; empty where none does.
        label: the digit; -1 where there is none.
        error: the error code of a request that must fail.
    """

    kind: Kind
    request_id: str | None
    key: bytes | None
    version: str = ""
    label: int = -1
    error: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request record that Kafka acknowledged. `timestamp_ms` is the broker's; `acked_at` is Unix seconds."""

    place: Place
    timestamp_ms: int
    acked_at: float
    expected: Expected

    def answer_id(self, topic: str) -> str:
        """The id its answer must carry."""
        return self.expected.request_id or f"{topic}:{self.place.partition}:{self.place.offset}"


@dataclass(frozen=True, slots=True)
class Answer:
    """A record of the results topic.

    Attributes:
        partition: its own.
        offset: its own.
        request_offset: by its header; -1 without one.
        request_timestamp: likewise, milliseconds.
        created_ms: the record's timestamp, set by the worker.
        read_at: when the oracle had it, Unix seconds.
        total_ms: what it says of its own duration.
    """

    partition: int
    offset: int
    request_offset: int
    request_timestamp: int
    answer_id: str
    ce_id: str
    key: bytes | None
    group: str
    status: str
    error: str
    version: str
    label: int
    cache_status: str
    total_ms: float
    created_ms: int
    read_at: float

    @property
    def place(self) -> Place:
        """The request it answers."""
        return Place(self.partition, self.request_offset)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record of the dead-letter topic, by its headers."""

    place: Place
    reason: str


@dataclass(frozen=True, slots=True)
class Window:
    """A fault's time, Unix seconds: from its begin over its end until everything flowed again.

    Attributes:
        answers_s: from its end until every partition answered a request of after its end; None if never.
        rows_s: from its end until rows of such requests were in ClickHouse; None if never.
    """

    kind: str
    target: str
    began_at: float
    ended_at: float
    answers_s: float | None = None
    rows_s: float | None = None

    @property
    def over_at(self) -> float:
        """When its effects had passed."""
        return self.ended_at + max(self.answers_s or 0.0, self.rows_s or 0.0)


@dataclass(slots=True)
class LogRows:
    """What ClickHouse has of the run.

    Attributes:
        requests: rows of `requests`; `request_ids` distinct ids among them.
        statuses: status by request id.
        events: rows of `events`; `event_ids` distinct ids among them.
        event_types: by request id, sorted, joined by commas.
        minutes: rows of the view `requests_per_minute`, as text.
        minutes_of_base: the same, computed from `requests`.
    """

    requests: int = 0
    request_ids: int = 0
    statuses: dict[str, str] = field(default_factory=dict)
    events: int = 0
    event_ids: int = 0
    event_types: dict[str, str] = field(default_factory=dict)
    minutes: frozenset[str] = frozenset()
    minutes_of_base: frozenset[str] = frozenset()


@dataclass(slots=True)
class Account:
    """Everything the oracle knows. Written by several threads, each member by one; read at any time.

    Attributes:
        asked: acknowledged requests by their place.
        answers: results in the order of their partitions' logs.
        refused: what Kafka did not acknowledge; it may be in the log all the same.
    """

    requests_topic: str
    asked: dict[Place, Asked] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    _newest: dict[int, Asked] = field(default_factory=dict)
    _waiting: dict[Place, list[Answer]] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def acknowledge(self, asked: Asked) -> None:
        """Kafka has a request. Its answer may have been read before."""
        with self._lock:
            self.asked[asked.place] = asked
            if self._waiting.pop(asked.place, None):
                self._note_answered(asked)

    def answer(self, answer: Answer) -> None:
        """A result was read."""
        with self._lock:
            self.answers.append(answer)
            asked = self.asked.get(answer.place)
            if asked is None:
                self._waiting.setdefault(answer.place, []).append(answer)
            else:
                self._note_answered(asked)

    def newest_answered(self) -> dict[int, Asked]:
        """By partition, the latest acknowledged request that has an answer."""
        with self._lock:
            return dict(self._newest)

    def first_answers(self) -> Iterator[Answer]:
        """The answer of each request: the first in its partition's order."""
        seen: set[Place] = set()
        for answer in self.answers:
            if answer.place not in seen:
                seen.add(answer.place)
                yield answer

    def _note_answered(self, asked: Asked) -> None:
        newest = self._newest.get(asked.place.partition)
        if newest is None or asked.acked_at > newest.acked_at:
            self._newest[asked.place.partition] = asked
