"""Workers as the sink meets them: records of the events topic, some of them repeated, some of them zombies'."""

import random
from functools import lru_cache

from pipeline.core.event_batch import EventRecord
from tests.sink.event_records import end, event, event_id, record

Headers = list[tuple[str, bytes]]


@lru_cache(maxsize=1024)
def lines_of(request: int) -> bytes:
    """The lines of one request: an event, and its end. Days of expiry and minutes vary."""
    name = f"r-{request}"
    day = 20 + request % 2
    completed_at = f"2026-11-22T22:0{request % 3}:01Z"
    return record(
        event(name, expires_at=f"2099-11-{day}T22:00:00Z"),
        end(
            name,
            completed_at=completed_at,
            expires_at=f"2099-11-{day}T22:00:00Z",
            requests_expires_at=f"2099-12-{day}T22:00:00Z",
        ),
    )


def event_id_of(request: int) -> int:
    """The id of a request's end."""
    return event_id(f"r-{request}", "result.published").int


class Writers:
    """One partition's workers, one after the other; a replaced one may go on writing.

    Attributes:
        log: what they have written.
        answered: requests that have been answered, so far from 0.
    """

    def __init__(self, rng: random.Random) -> None:
        self.log: list[EventRecord] = []
        self.answered = 0
        self._rng = rng
        self._generation = 1
        self._incarnation = 0
        self._committed = 0
        self._in_hand: list[tuple[list[int], Headers]] = []
        self._unwritten: list[tuple[list[int], Headers]] = []

    def answer(self) -> None:
        """The owner answers some more requests, writes their events at once or later, and commits now and then."""
        first = self.answered
        self.answered += self._rng.randint(1, 4)
        self._in_hand.append((list(range(first, self.answered)), self._headers()))
        if self._rng.random() < 0.6:
            for part in self._in_hand:
                self._write(*part)
            self._in_hand.clear()
            if self._rng.random() < 0.4:
                self._committed = self.answered

    def replace(self) -> None:
        """A new owner repeats what its predecessor did not commit; that one may still write what it had in hand."""
        doubtful = list(range(self._committed, self.answered + self._rng.randint(0, 2)))
        if self._rng.random() < 0.7:
            self._unwritten += self._in_hand
        self._in_hand.clear()
        if self._rng.random() < 0.3:
            self._incarnation += 1
        else:
            self._generation, self._incarnation = self._generation + 1, 0
        self.answered = max([self.answered, *(request + 1 for request in doubtful)])
        if self._unwritten and self._rng.random() < 0.3:
            self._write(*self._unwritten.pop())  # before its successor writes
        if doubtful:
            self._write(doubtful, [*self._headers(), ("redelivered", b"1")])
            self._committed = self.answered

    def wake_zombie(self) -> None:
        """A replaced owner writes something of what it had in its hands, or all of it."""
        for _ in range(self._rng.choice([1, len(self._unwritten)])):
            if self._unwritten:
                self._write(*self._unwritten.pop(self._rng.randrange(len(self._unwritten))))

    def write_unnamed(self) -> None:
        """A foreign writer, without a generation, repeats a record."""
        if self.log:
            value = self._rng.choice(self.log).value
            self.log.append(EventRecord.of(len(self.log), value))

    def _headers(self) -> Headers:
        headers = [("generation", b"%d" % self._generation)]
        return [*headers, ("incarnation", b"%d" % self._incarnation)] if self._incarnation else headers

    def _write(self, requests: list[int], headers: Headers) -> None:
        self.log.append(EventRecord.of(len(self.log), b"".join(map(lines_of, requests)), headers))
