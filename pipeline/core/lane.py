"""One partition in one generation of the worker group: what was taken, answered, published, and what to commit.

This is the whole of "exactly one answer" that is not input or output. The worker around it reads the log, runs
requests and writes records; it asks the lane what may be taken, what is answered already, and what to commit. The
simulation drives the very same code (tests/simulation).
"""

from collections import deque
from dataclasses import dataclass

from msgspec.structs import replace

from pipeline.core.commit_note import CommitNote
from pipeline.core.duplicates import DuplicateWindow
from pipeline.core.ledger import Ledger
from pipeline.core.offsets import OffsetTracker

# No offset this far above the committed one is taken: what may be delivered twice is bounded for whoever comes next,
# and with it the ledger. Four seconds of one partition at full speed; commits come twice a second.
WINDOW_OFFSETS = 65_536
# Bytes of published results that no commit covers yet: the next owner reads them all.
UNCOMMITTED_RESULT_BYTES_MAX = 256 << 20
# Starts at one offset that got no further, before its records run one at a time; and starts that ended with one and
# the same record running alone, before that record is the culprit.
STARTS_MAX = 3
SUSPECT_STARTS_MAX = 3
# A record that runs for long holds up the commit while rounds of results go on: these many are kept apart, then merged.
_ROUNDS_MAX = 512


@dataclass(slots=True)
class _Round:
    """Results that were published together: where they begin, the highest request offset among them, their bytes."""

    results_from: int
    last_offset: int
    size: int


@dataclass(frozen=True, slots=True)
class LaneStart:
    """What is known of a partition when it is assigned.

    Attributes:
        offset: the first offset to read.
        note: the commit's note, or None where there is none of ours.
        requests_end: the end of the requests partition.
        results_from: no answer to `offset` or a later one stands before this offset of the results partition.
        results_end: the end of the results partition.
    """

    offset: int
    note: CommitNote | None
    requests_end: int
    results_from: int
    results_end: int


@dataclass(slots=True)
class _Isolation:
    """Records below `until` run one at a time, for one of them ends workers.

    `found` is the suspect of the commit's note and how often it was named; `named` likewise, by this lane.
    """

    until: int
    found: tuple[int, int]
    named: tuple[int, int]


class Lane:
    """One partition in one generation: which of its offsets run, which are answered.

    A closed lane's partition may have another owner: nothing of it is published or committed any more.

    Args:
        topic: the requests topic.
        partition: its number.
        generation: the group's generation it was assigned in.
        group: the worker group.
        start: what was found.
        duplicates: the partition's recent ids; a worker that keeps a partition hands them from lane to lane.
    """

    def __init__(
        self,
        topic: str,
        partition: int,
        generation: int,
        group: str,
        start: LaneStart,
        duplicates: DuplicateWindow | None = None,
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.generation = generation
        self.closed = False
        self.offsets = OffsetTracker()
        self.duplicates = duplicates if duplicates is not None else DuplicateWindow()
        note = start.note
        self.incarnation = note.incarnation + 1 if note is not None and note.generation == generation else 0
        window_end = min(start.requests_end, start.offset + WINDOW_OFFSETS)
        delivered = start.requests_end if note is None else min(start.requests_end, note.delivered_until)
        self.ledger = Ledger(group, start.offset, max(window_end, delivered))
        self.results_end = start.results_end
        self._results_from = start.results_from
        self._start = start
        self._committed = start.offset
        self._committed_note: CommitNote | None = note
        self._rounds: deque[_Round] = deque()
        self._uncommitted_bytes = 0
        self._isolation = _isolation_of(note, start.offset, window_end)

    # -- taking -------------------------------------------------------------------------------------------------------

    def may_take(self, offset: int) -> bool:
        """Whether a record may be begun now; else a commit has to come first."""
        return offset < self._committed + WINDOW_OFFSETS and self._uncommitted_bytes < UNCOMMITTED_RESULT_BYTES_MAX

    def may_be_known(self, offset: int) -> bool:
        """Whether somebody may have answered this offset before: its event rows may be in ClickHouse already."""
        return offset < self.ledger.until

    @property
    def isolated_until(self) -> int:
        """Below this offset records run one at a time; 0 where none has to."""
        return self._isolation.until

    def is_isolated(self, offset: int) -> bool:
        """Whether this record has to run alone, and be named before it runs."""
        return offset < self._isolation.until

    def is_culprit(self, offset: int) -> bool:
        """Whether this record, running alone, has ended so many workers that it must not run again."""
        suspect, starts = self._isolation.found
        return offset == suspect and starts >= SUSPECT_STARTS_MAX

    def name_suspect(self, offset: int) -> None:
        """The record that runs alone next; to be committed before it does."""
        suspect, starts = self._isolation.found
        self._isolation.named = (offset, starts + 1 if offset == suspect else 1)

    def is_named(self, offset: int) -> bool:
        """Whether the commit names this record as the one that runs alone."""
        return self._committed_note is not None and self._committed_note.suspect == offset

    @property
    def next_offset(self) -> int:
        """Where reading goes on."""
        return self.offsets.next_offset if self.offsets.next_offset is not None else self._start.offset

    # -- publishing ---------------------------------------------------------------------------------------------------

    def published(self, results_from: int, results_end: int, last_offset: int, size: int) -> None:
        """Results were confirmed by Kafka.

        Args:
            results_from: none of them stands before this offset of the results partition.
            results_end: the offset after the last of them.
            last_offset: the highest request offset they answer.
            size: their bytes.
        """
        rounds = self._rounds
        if len(rounds) >= _ROUNDS_MAX:
            rounds[-1].last_offset = max(rounds[-1].last_offset, last_offset)
            rounds[-1].size += size
        else:
            rounds.append(_Round(results_from, last_offset, size))
        self._uncommitted_bytes += size
        self.results_end = results_end

    # -- committing ---------------------------------------------------------------------------------------------------

    def to_commit(self, *, clean_end: bool = False) -> tuple[int, CommitNote] | None:
        """The offset and note to commit now, or None where that would say nothing new.

        Before anything is taken it is the start's offset with this start counted: never None for a lane just opened.

        Args:
            clean_end: this lane ends without a crash: it does not count among the starts that failed.
        """
        offset = self.offsets.committable()
        if offset is None:
            offset = self._start.offset
        note = self._note(offset, clean_end)
        if offset == self._committed and note == self._committed_note:
            return None
        # Nothing but a later place in the results, while the offset stays: not worth a commit every half second.
        if offset == self._committed and not clean_end and self._same_but_results(note):
            return None
        return offset, note

    def committed(self, offset: int, note: CommitNote) -> None:
        """Kafka has this commit."""
        self._committed = offset
        self._committed_note = note
        self._results_from = note.results_from
        rounds = self._rounds
        while rounds and rounds[0].last_offset < offset:
            self._uncommitted_bytes -= rounds.popleft().size

    def forgive(self, note: CommitNote, offset: int) -> CommitNote:
        """The note of a commit at `offset` for the lane after this one, in the same process.

        Where this lane committed it, its start did not fail, nor did the record that ran alone end the process.
        """
        if (note.generation, note.incarnation) != (self.generation, self.incarnation):
            return note
        clean = self._note(offset, clean_end=True)
        return replace(note, starts=clean.starts, suspect=clean.suspect, suspect_starts=clean.suspect_starts)

    def _note(self, offset: int, clean_end: bool) -> CommitNote:
        isolation = self._isolation
        starts = 0
        if offset == self._start.offset:
            found = self._start.note
            starts = (found.starts if found is not None else 0) + (0 if clean_end else 1)
        suspect, suspect_starts = isolation.found if clean_end else isolation.named
        if suspect < offset:
            suspect, suspect_starts = -1, 0
        delivered = self.ledger.until
        return CommitNote(
            results_from=self._results_from_for(offset),
            delivered_until=delivered if delivered > offset + WINDOW_OFFSETS else 0,
            generation=self.generation,
            incarnation=self.incarnation,
            starts=starts,
            isolate_until=isolation.until if isolation.until > offset else 0,
            suspect=suspect,
            suspect_starts=suspect_starts,
        )

    def _results_from_for(self, offset: int) -> int:
        """Where an answer to `offset` or a later one may stand first in the results partition.

        Until every offset that an earlier owner may have answered is committed, that is where this lane began to read.
        """
        if offset < self.ledger.until:
            return self._results_from
        for one in self._rounds:
            if one.last_offset >= offset:
                return one.results_from
        return self.results_end

    def _same_but_results(self, note: CommitNote) -> bool:
        known = self._committed_note
        return known is not None and note == replace(known, results_from=note.results_from)


def _isolation_of(note: CommitNote | None, offset: int, window_end: int) -> _Isolation:
    nobody = (-1, 0)
    if note is None:
        return _Isolation(0, nobody, nobody)
    until = note.isolate_until if note.isolate_until > offset else 0
    if note.starts >= STARTS_MAX:  # also while some run alone: it may be one behind them that ends workers
        until = max(until, window_end, offset + 1)
    found = (note.suspect, note.suspect_starts) if note.suspect >= offset else nobody
    return _Isolation(until, found, found)
