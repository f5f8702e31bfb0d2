"""An `EventStore` in memory, with ClickHouse's rule: a table takes the rows of a token once."""

from collections.abc import Iterable

from pipeline.errors import EventStoreError
from pipeline.ports import InsertBlock


class MemoryEventStore:
    """Rows by table; `failures` are raised by the next inserts, one each, before their block `fail_after`."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, object]]] = {}
        self.tokens: list[str] = []
        self.failures: list[EventStoreError] = []
        self.fail_after = 0
        self._held: set[tuple[str, str]] = set()

    async def insert(self, blocks: Iterable[InsertBlock], token: str) -> None:
        """See `pipeline.ports.EventStore.insert`."""
        failure = self.failures.pop(0) if self.failures else None
        self.tokens.append(token)
        for index, block in enumerate(blocks):
            if failure is not None and index == self.fail_after:
                raise failure
            if (block.table, token) in self._held:
                continue
            self._held.add((block.table, token))
            rows = zip(*block.columns.values(), strict=True)
            self.rows.setdefault(block.table, []).extend(dict(zip(block.columns, row, strict=True)) for row in rows)
        if failure is not None:
            raise failure
