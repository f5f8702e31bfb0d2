"""Every result into the result store, by a consumer group that all gateways share.

In each partition's order, some at a time, committed afterwards: what is read again is kept once all the same, for the
first result of a name wins in the store. A store that is away is waited for, its results stay in Kafka meanwhile; but
what is older than a result lives in the store is passed over, so that an outage of hours is not replayed. What the
store has no room for is passed over at once: ClickHouse has it.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from pipeline.adapters.redis_result_store import ResultRefused
from pipeline.adapters.topics import RECORD_OVERHEAD_BYTES
from pipeline.config import MIB, Settings
from pipeline.core.stored_result import StoredResult
from pipeline.errors import ResultStoreError
from pipeline.gateway.delivery.group_reader import GroupReader, result_of
from pipeline.gateway.delivery.metrics import DeliveryMetrics
from pipeline.ports import Clock, ResultStore

_log = logging.getLogger(__name__)

# What is kept by one call: 4 MiB is some 2,000 results, written in 20-50 ms.
BATCH_BYTES_MAX = 4 * MIB
# Larger ones are found in ClickHouse; beyond the default record limit of 8 MiB only who raised that has any.
RESULT_BYTES_MAX = 32 * MIB
# So few are not worth a call of the store, a fetch and a commit each: at 200 results a second those took a quarter of
# the gateway's time and of the broker's. Whoever waits has a copy, and who asks the store does so every 0.1 s.
_FEW = 100
_GATHER_S = 0.05
_PAUSE_S_FIRST = 0.1
_PAUSE_S_MAX = 5.0

Named = tuple[bytes, StoredResult]


class Filler(GroupReader):
    """Keeps results.

    Args:
        settings: where Kafka is, names, and how long results live in the store.
        options: of an aiokafka client.
        group: the gateways' for this.
        store: where they go.
        clock: this process's time.
        metrics: where it counts.
        stored: is given the names of results that are in the store by now.
        passed: is given results that are not, as the store is away or has no room.
    """

    def __init__(
        self,
        settings: Settings,
        options: Mapping[str, Any],
        group: str,
        store: ResultStore,
        clock: Clock,
        metrics: DeliveryMetrics,
        stored: Callable[[Iterable[bytes]], None],
        passed: Callable[[bytes, StoredResult], object],
    ) -> None:
        fetch_bytes = max(2 * BATCH_BYTES_MAX, settings.limits.record_bytes + RECORD_OVERHEAD_BYTES)
        super().__init__(
            settings, options, settings.topic("results"), group, reset="earliest", fetch_bytes_max=fetch_bytes
        )
        self._store = store
        self._ttl_s = settings.gateway.result_ttl_s
        self._clock = clock
        self._metrics = metrics
        self._stored = stored
        self._passed = passed

    async def place(self, consumer: AIOKafkaConsumer, partitions: frozenset[TopicPartition]) -> None:
        """Where the group has got to, but not before what is still worth keeping."""
        if not partitions:
            return
        oldest_ms = max(int((self._clock.now() - self._ttl_s) * 1000), 0)
        # In this order: what comes between the two questions is the first of an empty partition, not behind its end.
        ends = await consumer.end_offsets(partitions)
        firsts = await consumer.offsets_for_times(dict.fromkeys(partitions, oldest_ms))
        for partition in partitions:
            first = firsts.get(partition)
            start = ends[partition] if first is None else first.offset
            committed = await consumer.committed(partition)
            consumer.seek(partition, start if committed is None else max(committed, start))

    async def take(
        self, consumer: AIOKafkaConsumer, records: Mapping[TopicPartition, Sequence[ConsumerRecord]]
    ) -> None:
        """Keeps them, waiting for the store if that is away, and commits."""
        waited_s = 0.0
        for results in self._batches(chain.from_iterable(records.values())):
            waited_s += await self._keep(results)
        await self._commit(consumer, {partition: chunk[-1].offset + 1 for partition, chunk in records.items()})
        if sum(map(len, records.values())) < _FEW:
            await asyncio.sleep(_GATHER_S)
        if waited_s > self._ttl_s / 2:
            # What has come meanwhile may be too old by half already.
            await self.place(consumer, frozenset(consumer.assignment()))

    def _batches(self, records: Iterable[ConsumerRecord]) -> Iterator[list[tuple[float, Named]]]:
        """Their results, each with when it was appended, cut by bytes."""
        batch: list[tuple[float, Named]] = []
        size = 0
        for record in records:
            found = result_of(record)
            if found is None:
                self._metrics.kept["foreign"] += 1
                continue
            length = len(found[1].value)
            if batch and size + length > BATCH_BYTES_MAX:
                yield batch
                batch, size = [], 0
            batch.append((record.timestamp / 1e3, found))
            size += length
        if batch:
            yield batch

    async def _keep(self, batch: Sequence[tuple[float, Named]]) -> float:
        """Keeps a batch for certain, or what of it can be kept; returns for how many seconds the store was away."""
        pause_s, waited_s = _PAUSE_S_FIRST, 0.0
        while True:
            results = await self._worth_keeping(batch)
            try:
                await self._store.keep(results)
            except ResultRefused:
                await self._keep_one_by_one(results)
                return waited_s
            except ResultStoreError as error:
                self._metrics.store_errors["keep"] += 1
                if not waited_s:
                    _log.warning("results are kept when the store answers: %s", error)
                    for named in results:
                        self._passed(*named)
            else:
                self._metrics.kept["kept"] += len(results)
                self._stored(name for name, _ in results)
                return waited_s
            await asyncio.sleep(pause_s)
            waited_s += pause_s
            pause_s = min(pause_s * 2, _PAUSE_S_MAX)
            tried = {id(named) for named in results}
            batch = [one for one in batch if id(one[1]) in tried]

    async def _worth_keeping(self, batch: Sequence[tuple[float, Named]]) -> list[Named]:
        """Without what would be gone at once, and what is too large."""
        results: list[Named] = []
        oldest = self._clock.now() - self._ttl_s
        for appended_at, named in batch:
            size = len(named[1].value)
            if appended_at <= oldest:
                self._metrics.kept["expired"] += 1
            elif size > RESULT_BYTES_MAX:
                await self._pass_over(named, "too_large", f"{size} bytes, at most {RESULT_BYTES_MAX}")
            else:
                results.append(named)
        return results

    async def _keep_one_by_one(self, results: Sequence[Named]) -> None:
        """The store has no room for all of them: those it has room for, in order."""
        for named in results:
            try:
                await self._store.keep([named])
            except ResultStoreError as error:
                await self._pass_over(named, "refused", str(error))
            else:
                self._metrics.kept["kept"] += 1
                self._stored([named[0]])

    async def _pass_over(self, named: Named, outcome: str, cause: str) -> None:
        """This one is found in ClickHouse alone: nobody must find it pending in the store until its time is over."""
        name, result = named
        if not self._metrics.kept[outcome]:
            _log.warning("a result is not kept in the store, only in ClickHouse; others will only count: %s", cause)
        self._metrics.kept[outcome] += 1
        self._passed(name, result)
        try:
            await self._store.release(name, result.digest)
        except ResultStoreError as error:
            self._metrics.store_errors["release"] += 1
            _log.debug("a reservation is not taken back: %s", error)

    async def _commit(self, consumer: AIOKafkaConsumer, offsets: Mapping[TopicPartition, int]) -> None:
        try:
            await consumer.commit(dict(offsets))
        except (CommitFailedError, IllegalStateError) as error:
            # Somebody else's by now, who keeps the same results again: they are there.
            _log.debug("%s: %s", self.topic, error)
        except KafkaError as error:
            _log.warning("%s: offsets not committed: %s", self.topic, error)
