"""Partitions are assigned: what is answered already is read from the results before anything is taken.

In every generation, for every partition: the group's commit with its note, the requests' end, and the results from
where the note says to their end. Only then is the start committed, which the broker refuses to whoever lost the
partition meanwhile, and only then are records taken.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace

from aiokafka.errors import KafkaError, KafkaTimeoutError
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.types import TP

from pipeline.adapters.log_reader import LogReader
from pipeline.core.commit_note import CommitNote, read_note
from pipeline.core.duplicates import WINDOW_MS, WINDOW_RECORDS, DuplicateWindow, First, duplicate_key
from pipeline.core.exchange import is_place
from pipeline.core.lane import Lane, LaneStart
from pipeline.core.ledger import Answered, read_answered
from pipeline.errors import TopicError
from pipeline.worker.transport import ChunkConsumer

logger = logging.getLogger(__name__)

# Where a commit has no note, its results are looked for from an hour before its request was appended: two brokers'
# clocks may differ.
_CLOCKS_MS = 60 * 60 * 1000
# Ids are restored from about so many bytes of results at most: 100,000 of 600 KB would take a minute to read.
_RESTORE_BYTES = 64 << 20
# Results that are looked at to tell how large and how old the ones before them are.
_PROBED = 50
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
                # A Kafka that is slow; aiokafka does not call it retriable.
                if not error.retriable and not isinstance(error, KafkaTimeoutError):
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
        results = await self._log.bounds(self._results_of(tp) for tp in tps)
        starts = await self._starts(tps, commits, results)
        lanes = {tp: self._lane(tp, generation, starts[tp], consumer.lanes.get(tp)) for tp in tps}
        unknown = {tp: starts[tp].results_from for tp, lane in lanes.items() if not len(lane.duplicates)}
        tails = await self._tails(unknown, results, is_current)
        await self._read_results(lanes, starts, tails, is_current)
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

    def _results_of(self, tp: TP) -> TopicPartition:
        return TopicPartition(self._names.results, tp.partition)

    async def _starts(
        self, tps: list[TP], commits: dict[TP, OffsetAndMetadata], results: Mapping[TopicPartition, tuple[int, int]]
    ) -> dict[TP, LaneStart]:
        requests = await self._log.bounds(TopicPartition(*tp) for tp in tps)
        starts = {}
        for tp in tps:
            begin, end = requests[TopicPartition(*tp)]
            offset, note = self._place(tp, commits.get(tp), begin, end)
            results_begin, results_end = results[self._results_of(tp)]
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
        results = self._results_of(tp)
        place = (await self._log.offsets_at({results: max(record.timestamp - _CLOCKS_MS, 0)}))[results]
        return results_end if place is None else place

    async def _tails(
        self,
        unknown: Mapping[TP, int],
        results: Mapping[TopicPartition, tuple[int, int]],
        is_current: Callable[[], bool],
    ) -> dict[TP, int]:
        """Where the results begin whose ids are still in the window, before those that the ledger needs.

        By the brokers' own time: the youngest result that is looked at is as good as now, and no clock of ours is.

        Args:
            unknown: the ledger's begin for each partition whose ids are not known.
            results: where each results partition begins and ends.
            is_current: whether anybody still wants it.
        """
        probes = {
            self._results_of(tp): (max(end - _PROBED, results[self._results_of(tp)][0]), end)
            for tp, end in unknown.items()
        }
        youngest: dict[int, int] = {}
        sizes: defaultdict[int, list[int]] = defaultdict(list)
        async with aclosing(self._log.scan(probes, is_current)) as records:
            async for record in records:
                youngest[record.partition] = record.timestamp
                sizes[record.partition].append(record.serialized_value_size)
        probed = [tp for tp in unknown if tp.partition in youngest]
        times = {self._results_of(tp): max(youngest[tp.partition] - WINDOW_MS, 0) for tp in probed}
        places = await self._log.offsets_at(times) if times else {}
        tails = {}
        for tp in probed:
            size = max(sum(sizes[tp.partition]) // len(sizes[tp.partition]), 1)
            count = min(WINDOW_RECORDS, _RESTORE_BYTES // size)
            since = places[self._results_of(tp)]
            begin = results[self._results_of(tp)][0]
            tails[tp] = max(begin, unknown[tp] - count, unknown[tp] if since is None else min(since, unknown[tp]))
        return tails

    async def _read_results(
        self,
        lanes: dict[TP, Lane],
        starts: dict[TP, LaneStart],
        tails: Mapping[TP, int],
        is_current: Callable[[], bool],
    ) -> None:
        by_partition = {tp.partition: (lane, starts[tp].results_from) for tp, lane in lanes.items()}
        ranges = {
            self._results_of(tp): (tails.get(tp, start.results_from), start.results_end) for tp, start in starts.items()
        }
        async with aclosing(self._log.scan(ranges, is_current)) as records:
            async for record in records:
                lane, results_from = by_partition[record.partition]
                is_needed = record.offset >= results_from
                answered = read_answered(record.headers, record.offset, record.value if is_needed else None)
                if answered is None:
                    continue
                if is_needed:
                    lane.ledger.note(answered)
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
