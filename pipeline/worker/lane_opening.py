"""Partitions are assigned: what is answered already is read from the results before anything is taken.

In every generation, for every partition: the group's commit with its note, the requests' end, and the results from
where the note says to their end. Only then is the start committed, which the broker refuses to whoever lost the
partition meanwhile, and only then are records taken.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

from aiokafka.errors import KafkaError
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.types import TP

from pipeline.adapters.log_reader import LogReader
from pipeline.core.commit_note import CommitNote, read_note
from pipeline.core.duplicates import WINDOW_RECORDS, DuplicateWindow, First, duplicate_key
from pipeline.core.exchange import is_place
from pipeline.core.lane import Lane, LaneStart
from pipeline.core.ledger import Answered, read_answered
from pipeline.errors import TopicError
from pipeline.worker.transport import ChunkConsumer

logger = logging.getLogger(__name__)

# Ids are looked for this far back: the window of 10 minutes, and an hour for clocks that went wrong.
_RESTORE_MS = 70 * 60 * 1000
# The tail is read backwards in pieces until this many bytes: 100,000 results of 600 KB would take a minute.
_RESTORE_BYTES = 64 << 20
_RESTORE_PIECE = 20_000
# Kafka is away for a moment: tried again this soon.
_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class LedgerNames:
    """The topics and the group that belong together."""

    requests: str
    results: str
    group: str


class LaneOpener:
    """Opens lanes for what is assigned.

    Args:
        log: reads results, and single requests.
        names: whose.
    """

    def __init__(self, log: LogReader, names: LedgerNames) -> None:
        self._log = log
        self._names = names

    async def open_all(self, consumer: ChunkConsumer, generation: int) -> None:
        """Puts a lane for each assigned partition into the consumer; none where the group went on meanwhile.

        Raises:
            TopicError: the group has no commit for a partition whose log does not begin at 0 any more.
            KafkaError: Kafka refused for good.
        """
        told = False

        def is_current() -> bool:
            return bool(consumer.app.consumer_generation_id == generation)

        while is_current():
            try:
                await self._open(consumer, generation, is_current)
            except KafkaError as error:
                if not error.retriable:
                    raise
                if not told:
                    logger.warning("partitions cannot be opened yet: %r", error)
                    told = True
                await asyncio.sleep(_PAUSE_S)
            else:
                return

    async def read_again(self, partition: int, results_offset: int) -> Answered | None:
        """One result, in full."""
        place = TopicPartition(self._names.results, partition)
        record = await self._log.first(place, results_offset, results_offset + 1)
        return None if record is None else read_answered(record.headers, record.offset, record.value)

    async def _open(self, consumer: ChunkConsumer, generation: int, is_current: Callable[[], bool]) -> None:
        tps = sorted(tp for tp in consumer.assignment() if tp.topic == self._names.requests)
        commits = await consumer.group.fetch_commits(tps)
        starts = await self._starts(tps, commits)
        lanes = {tp: self._lane(tp, generation, starts[tp], consumer.lanes.get(tp)) for tp in tps}
        for tp, lane in lanes.items():
            if not len(lane.duplicates):
                await self._restore_duplicates(lane, starts[tp], is_current)
        await self._read_results(lanes, starts, is_current)
        if not is_current():
            return
        if lanes and not await consumer.commit_lanes(lanes.values()):
            logger.info("generation %d ended while its partitions were opened", generation)
            return
        consumer.lanes = lanes
        for lane in lanes.values():
            _tell(lane, starts[TP(lane.topic, lane.partition)])

    def _lane(self, tp: TP, generation: int, start: LaneStart, before: Lane | None) -> Lane:
        if before is not None and start.note is not None:
            start = replace(start, note=before.forgive(start.note, start.offset))
        # Owned in the generation just before this one: nobody else can have answered anything in between.
        kept = before.duplicates if before is not None and before.generation == generation - 1 else None
        return Lane(tp.topic, tp.partition, generation, self._names.group, start, kept)

    async def _starts(self, tps: list[TP], commits: dict[TP, OffsetAndMetadata]) -> dict[TP, LaneStart]:
        requests = await self._log.bounds(TopicPartition(*tp) for tp in tps)
        results = await self._log.bounds(TopicPartition(self._names.results, tp.partition) for tp in tps)
        starts = {}
        for tp in tps:
            begin, end = requests[TopicPartition(*tp)]
            offset, note = self._place(tp, commits.get(tp), begin, end)
            results_begin, results_end = results[TopicPartition(self._names.results, tp.partition)]
            if note is None:
                results_from = await self._results_since(tp, offset, end, results_end)
            else:
                # Past the end: the results topic was made anew, and nothing in it is known.
                results_from = note.results_from if note.results_from <= results_end else results_begin
            starts[tp] = LaneStart(offset, note, end, max(results_from, results_begin), results_end)
        return starts

    def _place(self, tp: TP, commit: OffsetAndMetadata | None, begin: int, end: int) -> tuple[int, CommitNote | None]:
        """The offset to begin at, and the note of its commit."""
        name, group = f"{tp.topic}-{tp.partition}", self._names.group
        if commit is None:
            if begin:
                raise TopicError(
                    f"group {group} has no commit for {name}, whose log begins at {begin}: what was answered is not "
                    f"known. Say where to begin: kafka-consumer-groups --group {group} --topic "
                    f"{tp.topic}:{tp.partition} --reset-offsets --to-earliest --execute"
                )
            return 0, None
        note = read_note(commit.metadata)
        if commit.offset > end:
            logger.error(
                "%s: the commit %d is past the end %d: the topic was made anew, or lost records; begins at %d",
                name, commit.offset, end, begin,
            )  # fmt: skip
            return begin, None
        if commit.offset < begin:
            logger.error(
                "%s: records %d to %d were deleted by their retention before they were answered",
                name, commit.offset, begin - 1,
            )  # fmt: skip
            return begin, note
        if note is None and commit.offset:
            logger.warning(
                "%s: the commit %d was not made by a worker: its answers are looked up by time", name, commit.offset
            )
        return commit.offset, note

    async def _results_since(self, tp: TP, offset: int, end: int, results_end: int) -> int:
        """Where results of this request and later ones begin, by the clock of the brokers, with an hour to spare."""
        record = await self._log.first(TopicPartition(*tp), offset, end)
        if record is None:
            return results_end
        results = TopicPartition(self._names.results, tp.partition)
        place = (await self._log.offsets_at({results: max(record.timestamp - _RESTORE_MS, 0)}))[results]
        return results_end if place is None else place

    async def _read_results(
        self, lanes: dict[TP, Lane], starts: dict[TP, LaneStart], is_current: Callable[[], bool]
    ) -> None:
        by_partition = {tp.partition: lane for tp, lane in lanes.items()}
        ranges = {
            TopicPartition(self._names.results, tp.partition): (start.results_from, start.results_end)
            for tp, start in starts.items()
        }
        async with aclosing(self._log.scan(ranges, is_current)) as records:
            async for record in records:
                answered = read_answered(record.headers, record.offset, record.value)
                if answered is not None:
                    lane = by_partition[record.partition]
                    lane.ledger.note(answered)
                    self._note_id(lane.duplicates, lane.topic, answered)

    async def _restore_duplicates(self, lane: Lane, start: LaneStart, is_current: Callable[[], bool]) -> None:
        """The ids of the results before those that the ledger needed, as far back as the window reaches."""
        results = TopicPartition(self._names.results, lane.partition)
        since = (await self._log.offsets_at({results: int(time.time() * 1000) - _RESTORE_MS}))[results]
        begin = (await self._log.bounds([results]))[results][0]
        first = max(start.results_from - WINDOW_RECORDS, begin, start.results_from if since is None else since)
        pieces: list[list[Answered]] = []
        end, size = start.results_from, 0
        while end > first and size < _RESTORE_BYTES and is_current():
            piece: list[Answered] = []
            from_ = max(end - _RESTORE_PIECE, first)
            async with aclosing(self._log.scan({results: (from_, end)}, is_current)) as records:
                async for record in records:
                    size += record.serialized_value_size
                    answered = read_answered(record.headers, record.offset, None)
                    if answered is not None:
                        piece.append(answered)
            pieces.append(piece)
            end = from_
        for piece in reversed(pieces):
            for answered in piece:
                self._note_id(lane.duplicates, lane.topic, answered)

    def _note_id(self, window: DuplicateWindow, topic: str, answered: Answered) -> None:
        if answered.group == self._names.group and not is_place(answered.request_id, topic):
            window.add(
                duplicate_key(answered.request_id, answered.tenant),
                First(answered.request_offset, answered.request_timestamp_ms, answered.digest),
            )


def _tell(lane: Lane, start: LaneStart) -> None:
    logger.info(
        "%s-%d: generation %d goes on at %d of %d; %d answers of it are in the results, %d recent ids known",
        lane.topic, lane.partition, lane.generation, start.offset, start.requests_end, len(lane.ledger),
        len(lane.duplicates),
    )  # fmt: skip
    if lane.isolated_until > start.offset:
        logger.error(
            "%s-%d: work at offset %d ended workers (%d starts got no further): records run one at a time until %d",
            lane.topic, lane.partition, start.offset, start.note.starts if start.note else 0, lane.isolated_until,
        )  # fmt: skip
