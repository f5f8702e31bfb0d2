"""What every `EventStore` promises; the fake and the real one inherit it."""

from collections.abc import Mapping, Sequence

import pytest

from pipeline.core.event_batch import BatchDraft, BatchLimits, EventBatch, EventRecord
from pipeline.errors import EventStoreError
from pipeline.ports import EventStore, InsertBlock
from tests.sink.event_records import end, event, record


def batch_of(names: Sequence[str], start: int = 0) -> EventBatch:
    """A batch with an event and a request for each name."""
    draft = BatchDraft("inference.events", 0, start, BatchLimits(10_000, 1 << 24))
    for offset, name in enumerate(names, start=start):
        assert draft.offer(EventRecord.of(offset, record(event(name), end(name))))
    return draft.finish()


def blocks_of(batch: EventBatch) -> list[InsertBlock]:
    """The batch as blocks."""
    return [InsertBlock(table, columns) for table, columns in batch.tables.items()]


class EventStoreContract:
    """Needs `store`, an empty event store, and `row_counts`, which counts what it holds."""

    async def row_counts(self, store: EventStore) -> Mapping[str, int]:
        raise NotImplementedError

    async def test_insert_is_there_when_it_returns(self, store: EventStore) -> None:
        """Rows of all blocks are in the store once `insert` returns."""
        batch = batch_of(["a", "b"])
        await store.insert(blocks_of(batch), batch.token)
        assert await self.row_counts(store) == {"events": 4, "requests": 2}

    async def test_repeated_token_keeps_one_copy(self, store: EventStore) -> None:
        """The same token and rows again change nothing."""
        batch = batch_of(["a", "b"])
        for _ in range(3):
            await store.insert(blocks_of(batch), batch.token)
        assert await self.row_counts(store) == {"events": 4, "requests": 2}

    async def test_other_token_is_another_insert(self, store: EventStore) -> None:
        """Rows under a token of their own are added, equal or not."""
        for start in (0, 10):
            batch = batch_of(["a"], start)
            await store.insert(blocks_of(batch), batch.token)
        assert await self.row_counts(store) == {"events": 4, "requests": 2}

    async def test_repetition_completes_a_part(self, store: EventStore) -> None:
        """What an interrupted insert left out is added by its repetition, and only that."""
        batch = batch_of(["a", "b", "c"])
        await store.insert(blocks_of(batch)[:1], batch.token)
        await store.insert(blocks_of(batch), batch.token)
        assert await self.row_counts(store) == {"events": 6, "requests": 3}

    async def test_nothing_to_insert_is_no_error(self, store: EventStore) -> None:
        """A batch without rows succeeds."""
        await store.insert([], "t/0/0-1/none")
        assert await self.row_counts(store) == {"events": 0, "requests": 0}


async def expect_refusal(store: EventStore, block: InsertBlock) -> EventStoreError:
    """The error of an insert that must fail."""
    with pytest.raises(EventStoreError) as refused:
        await store.insert([block], "t/0/0-1/refused")
    return refused.value
