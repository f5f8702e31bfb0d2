"""Faust's consumer, delivering chunks: one event for up to 256 fetched records of one partition.

Faust's own consumer makes four asyncio tasks for each record and cannot pass 6,000/s on a core; this one reaches what
aiokafka alone reaches. It keeps Faust's group membership, sticky assignor, flow control and commit timer, and replaces
how fetched records are handed over and how the offset to commit is found: from `Lane`s, which know exactly which
offsets are answered. That also removes two defects of Faust 0.15.3, which commits past running records when nothing is
committed yet, and forgets acknowledgements when partitions are revoked.

It leans on private parts of faust 0.15.3 and aiokafka 0.14.0: `check_versions` refuses others.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import aiokafka
import faust
from aiokafka import ConsumerRecord
from aiokafka.errors import CommitFailedError, IllegalStateError
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.tuples import ConsumerMessage, Message

from pipeline.core.lane import Lane
from pipeline.errors import ReplacedError, SettingsError
from pipeline.worker.gone_topics import failing_where_gone, gone_topics
from pipeline.worker.membership import Membership, uptime_s

FAUST_VERSION = "0.15.3"
AIOKAFKA_VERSION = "0.14.0"
CHUNK_RECORDS_MAX = 256
CHUNK_BYTES_MAX = 1 << 20
# Handed over at once, inflated. The first time their size is not known: `FETCHED_RECORDS_FIRST`, 128 MiB at the worst.
FETCHED_BYTES_MAX = 8 << 20
FETCHED_RECORDS_MAX = 32_768
FETCHED_RECORDS_FIRST = 16
# A rebalance waits this long for running misses; what is not answered by then is answered by the next owner.
REVOKED_GRACE_S = 5.0
# A heartbeat takes a millisecond; one that takes this long says that Kafka is away.
BEAT_LIMIT_S = 3.0


def check_versions() -> None:
    """Refuses releases whose private parts were not tried.

    Raises:
        SettingsError: naming the release that is installed and the one needed.
    """
    for name, found, wanted in (
        ("faust-streaming", faust.__version__, FAUST_VERSION),
        ("aiokafka", aiokafka.__version__, AIOKAFKA_VERSION),
    ):
        if found != wanted:
            raise SettingsError(f"{name} {found} is installed, the worker needs exactly {wanted}: run `make install`")


class _InLoop:
    """Stands for the thread that Faust would start: its service runs as a task of the loop that is there already."""

    def __init__(self, service: Any) -> None:
        self._service = service

    def start(self) -> None:
        """Starts the service; whoever waits for the thread is told by the service itself."""
        self._task = asyncio.ensure_future(self._service._serve())
        self._task.add_done_callback(_retrieve)

    def stop(self) -> None:
        """Nothing to join: the service has ended."""


def _retrieve(task: "asyncio.Task[None]") -> None:
    if not task.cancelled():
        task.exception()  # the service has told it already, before it raised


class GroupMember(driver.AIOKafkaConsumerThread):
    """Faust's consumer thread without a thread, with commits that carry notes and heartbeats that are timed.

    A thread of its own keeps heartbeats going while an agent blocks. Ours never does for long, and two threads that
    take turns switched ten times for each request where one loop switches 2.5 times: at 500/s that is 1.3 ms of CPU and
    0.6 ms of waiting for a core or the interpreter, against 1.0 and 0.1.
    """

    Worker: Any = _InLoop
    membership: Membership

    async def on_start(self) -> None:
        """Starts the consumer; every heartbeat it sends from now on is noted."""
        await super().on_start()
        coordinator = self._ensure_consumer()._coordinator
        send = coordinator._do_heartbeat

        async def timed() -> bool:
            generation, began_at = coordinator.generation, uptime_s()
            succeeded: bool = await send()
            if succeeded:
                self.membership.note(generation, began_at)
            return succeeded

        coordinator._do_heartbeat = timed
        coordinator._do_commit_offsets = failing_where_gone(coordinator._do_commit_offsets)
        reset = coordinator.reset_generation

        def reset_unless_replaced() -> None:
            # A member that is alive is forgotten only where another one joined under its instance id. Joining again
            # would forget that one, and so on: two processes would answer every request twice.
            if coordinator._group_instance_id and not coordinator._closing.done() and self.membership.is_recent():
                raise self._replaced(coordinator._group_instance_id)
            reset()

        coordinator.reset_generation = reset_unless_replaced

    def _replaced(self, instance_id: str) -> ReplacedError:
        error = ReplacedError(
            f"another process joined the group as PIPELINE_WORKER__INSTANCE_ID={instance_id}: each worker needs a "
            "name of its own"
        )
        app: Any = self.consumer.app
        app.on_failure(error)
        return error

    def check(self) -> None:
        """Looks whether the group's coordinator failed for good; Faust never asks.

        Raises:
            Exception: what it failed of.
        """
        if self._consumer is not None:
            self._consumer._coordinator.check_errors()

    def gone_topics(self) -> tuple[str, ...]:
        """Topics this member reads that Kafka does not have, as of its last look: every 5 s."""
        return () if self._consumer is None else gone_topics(self._consumer)

    def generation(self) -> int:
        """The generation the group's coordinator knows this member in; not positive where it knows it no more."""
        return int(self._ensure_consumer()._coordinator.generation)

    async def beat(self) -> int | None:
        """Sends a heartbeat: the generation it holds for, or None where Kafka gave no answer."""
        coordinator = self._ensure_consumer()._coordinator
        generation: int = coordinator.generation
        try:
            async with asyncio.timeout(BEAT_LIMIT_S):
                await coordinator.ensure_coordinator_known()
                succeeded: bool = generation > 0 and await coordinator._do_heartbeat()
        except TimeoutError:
            return None
        except ReplacedError:
            return -1
        if succeeded or coordinator.generation != generation or generation <= 0:
            return int(coordinator.generation)
        return None

    async def fetch_commits(self, partitions: Iterable[TP]) -> dict[TP, OffsetAndMetadata]:
        """The group's commits with their metadata; a partition without one is left out.

        Raises:
            KafkaError: refused.
        """
        wanted = [TopicPartition(*tp) for tp in partitions]
        found = await self._ensure_consumer()._coordinator.fetch_committed_offsets(wanted)
        return {TP(*tp): commit for tp, commit in found.items() if commit.offset >= 0}

    async def commit_notes(self, places: Mapping[TP, tuple[int, str]]) -> bool:
        """Commits offsets with metadata; False where the partitions are somebody else's by now.

        Raises:
            KafkaError: refused for another reason.
        """
        offsets = {TopicPartition(*tp): OffsetAndMetadata(offset, note) for tp, (offset, note) in places.items()}
        consumer = self._ensure_consumer()
        generation, began_at = consumer._coordinator.generation, uptime_s()
        try:
            await consumer.commit(offsets)
        except (CommitFailedError, IllegalStateError, ReplacedError):
            return False
        self.membership.note(generation, began_at)  # only a member may commit
        return True

    async def getmany(self, active_partitions: Any, timeout: float) -> Any:
        """Records that were fetched, by partition; waits for the first until the timeout, in seconds."""
        consumer = self._ensure_consumer()
        return await self._fetch_records(consumer, active_partitions, timeout, consumer._max_poll_records)

    async def _gather_remaining_tasks(self) -> None:
        """Faust cancels all tasks of the thread's loop; this loop is everybody's."""


class ChunkConsumer(driver.Consumer):
    """Delivers chunks; `Event.message.value` is a list of aiokafka records of one partition, in offset order.

    Attributes:
        lanes: of this generation's partitions, and of those given away since.
        buffer: where chunks wait for the agent, once it runs.
    """

    app: Any  # a `WorkerApp`
    _thread: GroupMember

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lanes: dict[TP, Lane] = {}
        self.buffer: asyncio.Queue[Any] | None = None
        self._committing = asyncio.Lock()

    def _new_consumer_thread(self) -> GroupMember:
        member = GroupMember(self, loop=self.loop, thread_loop=self.loop, beacon=self.beacon)
        member.membership = self.app.membership
        member.membership.send_with(member.beat)
        return member

    @property
    def group(self) -> GroupMember:
        """This process as a member of its group."""
        return self._thread

    def lane(self, message: Message) -> Lane | None:
        """The lane of a delivered chunk, or None where its partition was given away meanwhile."""
        lane = self.lanes.get(message.tp)
        return lane if lane is not None and lane.generation == message.generation_id and not lane.closed else None

    def ack(self, message: Message) -> bool:
        """All records of a chunk are answered. What is committed is decided by its lane alone."""
        self._unacked_messages.discard(message)
        if self._waiting_for_ack is not None and not self._waiting_for_ack.done():
            self._waiting_for_ack.set_result(None)
        newly, message.acked = not message.acked, True
        return newly

    def on_buffer_full(self, tp: TP) -> None:
        """A full queue blocks the delivery itself; taking partitions out of the fetch would idle for a second."""

    def on_buffer_drop(self, tp: TP) -> None:
        """See `on_buffer_full`."""

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Commits what is answered in every lane, with its note. Faust calls it twice a second."""
        return await self.commit_lanes(list(self.lanes.values()))

    async def commit_lanes(self, lanes: Iterable[Lane], *, clean_end: bool = False) -> bool:
        """Commits what is answered in these lanes; False where nothing was to commit, or it is too late.

        Raises:
            KafkaError: Kafka refused for good.
        """
        async with self._committing:
            due = {}
            for lane in lanes:
                if not lane.closed and (place := lane.to_commit(clean_end=clean_end)) is not None:
                    due[TP(lane.topic, lane.partition)] = lane, *place
            if not due:
                return False
            places = {tp: (offset, note.encode()) for tp, (_, offset, note) in due.items()}
            if not await self._thread.commit_notes(places):
                return False
            for lane, offset, note in due.values():
                lane.committed(offset, note)
                self._committed_offset[TP(lane.topic, lane.partition)] = offset
            self.app.on_progress()
            return True

    async def perform_seek(self) -> None:
        """To where each lane goes on. Faust's own would not seek to offset 0, and skip what was fetched and dropped."""
        for tp, lane in self.lanes.items():
            if not lane.closed and tp in self.assignment():
                await self.seek(tp, lane.next_offset)
                self._read_offset[tp] = lane.next_offset

    async def wait_empty(self) -> None:
        """Waits for running chunks, but not for ever; then commits what is answered, and closes the lanes."""
        loop = asyncio.get_running_loop()
        limit = loop.time() + REVOKED_GRACE_S
        lanes = list(self.lanes.values())
        generation = self._thread.generation()
        for lane in lanes:
            lane.closed = lane.closed or lane.generation != generation  # the group went on without us
        while self._unacked_messages and not all(lane.closed for lane in lanes) and (left := limit - loop.time()) > 0:
            self._waiting_for_ack = loop.create_future()
            await asyncio.wait([self._waiting_for_ack], timeout=left)
            self._waiting_for_ack = None
        await self.commit_lanes(lanes, clean_end=True)
        for lane in lanes:
            lane.closed = True
        self._unacked_messages.clear()
        self.app.on_progress()

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Finishes and commits what was taken, then lets go of the partitions."""
        await super().on_partitions_revoked(revoked)
        for tp in revoked:
            if (lane := self.lanes.get(tp)) is not None:
                lane.closed = True

    async def _drain_messages(self, fetcher: Any) -> None:
        stopped, fetcher_stopped = self._stopped.is_set, fetcher._stopped.is_set
        try:
            while not (stopped() or fetcher_stopped()):
                records, active = await self._wait_next_records(1.0)
                if records is None or self.should_stop:
                    return
                if not self.flow_active:
                    await self._seek_back()
                    continue
                self._bound_next(records)
                generation = self.app.consumer_generation_id
                for aiokafka_tp, fetched in records.items():
                    tp = TP(aiokafka_tp.topic, aiokafka_tp.partition)
                    await self._deliver(tp, fetched, active, generation)
                if not records:
                    await asyncio.sleep(0)
        except (*self.consumer_stopped_errors, asyncio.CancelledError):  # type: ignore[misc]
            if not self.app.should_stop:
                raise

    def _bound_next(self, records: Mapping[Any, Sequence[ConsumerRecord]]) -> None:
        """Chooses how many records the next fetch hands over, from how large these were.

        Kafka limits a fetch as it is stored; a batch is inflated when its records are taken, twentyfold is common.
        """
        count = sum([len(some) for some in records.values()])
        if count:
            size = sum([record.serialized_value_size for some in records.values() for record in some])
            fitting = FETCHED_BYTES_MAX * count // max(size, 1)
            self._thread._ensure_consumer()._max_poll_records = min(max(fitting, 1), FETCHED_RECORDS_MAX)

    async def _seek_back(self) -> None:
        """Records fetched while the flow was stopped are fetched again from the committed offset."""
        try:
            await self.perform_seek()
        except Exception as error:  # noqa: BLE001 - a rebalance in progress fails in many ways, and seeks again itself
            self.log.warning("seek while the flow was stopped: %r", error)

    async def _deliver(
        self, tp: TP, fetched: Sequence[ConsumerRecord], active: set[TP] | None, generation: int
    ) -> None:
        for chunk in _chunks(fetched):
            read = self._read_offset[tp]
            if read is not None and chunk[0].offset < read:
                chunk = [record for record in chunk if record.offset >= read]
                if not chunk:
                    continue
            if not self.flow_active or self.app.consumer_generation_id != generation:
                return  # a rebalance: the next owner starts at the committed offset
            if active is not None and tp not in active:
                # Paused between fetch and delivery: without the way back these records would be committed past.
                await self.seek(tp, chunk[0].offset)
                return
            last = chunk[-1]
            value: Any = chunk
            message = ConsumerMessage(
                last.topic, last.partition, last.offset, last.timestamp / 1000.0, last.timestamp_type, None, None,
                value, None, 0, 0, tp, generation_id=generation,
            )  # fmt: skip
            if self.buffer is not None and not self.buffer.full():
                await self.callback(message)  # does not wait; waiting for either costs four tasks
            else:
                await self.wait_first(self.callback(message), self.suspend_flow.wait())
            self._read_offset[tp] = last.offset + 1


def _chunks(records: Sequence[ConsumerRecord]) -> Iterator[list[ConsumerRecord]]:
    """Records cut into chunks bounded in number and bytes, at least one record each."""
    chunk: list[ConsumerRecord] = []
    size = 0
    for record in records:
        record_bytes = record.serialized_value_size
        if chunk and (len(chunk) >= CHUNK_RECORDS_MAX or size + record_bytes > CHUNK_BYTES_MAX):
            yield chunk
            chunk, size = [], 0
        chunk.append(record)
        size += record_bytes
    if chunk:
        yield chunk


class ChunkTransport(driver.Transport):
    """Faust's aiokafka transport with `ChunkConsumer`."""

    Consumer = ChunkConsumer


class ChunkSchema(faust.Schema[Any, Any]):
    """Hands keys and values through as they are; it never raises, so no record is acknowledged behind our back."""

    def loads_key(self, app: Any, message: Any, *, loads: Any = None, serializer: Any = None) -> Any:
        """The key, untouched."""
        return message.key

    def loads_value(self, app: Any, message: Any, *, loads: Any = None, serializer: Any = None) -> Any:
        """The value, untouched."""
        return message.value
