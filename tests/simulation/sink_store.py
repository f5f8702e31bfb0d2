"""ClickHouse as the sink meets it: parts, forgetful deduplication, a view pushed after its table, kills between.

A block becomes one part per day of expiry. Keeping a part has two moments: its token is noted, then its rows are there;
a server that is killed between them remembers a token without rows. Every moment is one turn of `Insertion.turns`.
"""

from collections import Counter, deque
from collections.abc import Generator, Mapping, Set
from dataclasses import dataclass, field

from pipeline.core.event_batch import Columns
from pipeline.core.sink_delivery import Held
from pipeline.errors import EventStoreError

# Blocks that are remembered. The real window is 10,000, so each block counts for 250 of those.
WINDOW = 40
BLOCK_SCALE = 10_000 // WINDOW
_DAY_S = 86_400
_MINUTE_US = 60_000_000

Day = int
Minute = tuple[int, Day]


@dataclass(frozen=True)
class Row:
    """A row, as far as it matters."""

    event_id: int
    day: Day
    minute: int
    batch: str


@dataclass
class Table:
    """A table, or a view's target: its memory of tokens, and its rows with their blocks' numbers."""

    noted: deque[tuple[Day, str]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    rows: list[tuple[Row, int]] = field(default_factory=list)
    blocks: int = 0

    def note(self, day: Day, token: str) -> bool:
        """Whether the token is new here; it is remembered."""
        self.blocks += 1
        if (day, token) in self.noted:
            return False
        self.noted.append((day, token))
        return True


def rows_of(columns: Columns) -> list[Row]:
    """A block's rows."""
    times = columns.get("completed_at", columns.get("occurred_at", ()))
    return [
        Row(event_id, expires_at // _DAY_S, at // _MINUTE_US, batch)
        for event_id, expires_at, at, batch in zip(
            columns["event_id"], columns["expires_at"], times, columns["batch"], strict=True
        )
    ]


@dataclass(eq=False)
class Insertion:
    """An insert that the server works on, whether its client still lives or not."""

    tables: Mapping[str, Columns]
    token: str
    begun_at: float
    is_done: bool = False
    error: EventStoreError | None = None


class SinkStore:
    """The server: tables `events`, `requests` and the view's counts by minute and day of expiry."""

    def __init__(self) -> None:
        self.tables = {"events": Table(), "requests": Table()}
        self.view_target = Table()
        self.view: Counter[Minute] = Counter()
        self.poison: set[int] = set()
        self.is_merged = False
        self._running: dict[Insertion, Generator[None, None, None]] = {}

    @property
    def running(self) -> list[Insertion]:
        """Inserts that have not ended."""
        return list(self._running)

    def begin(self, tables: Mapping[str, Columns], token: str, now: float) -> Insertion:
        """Takes an insert in; `advance` works on it."""
        insertion = Insertion(tables, token, now)
        self._running[insertion] = self._turns(insertion)
        return insertion

    def advance(self, insertion: Insertion) -> None:
        """One moment of an insert."""
        turns = self._running[insertion]
        try:
            next(turns)
        except StopIteration:
            self._end(insertion, None)
        except EventStoreError as error:
            self._end(insertion, error)

    def kill(self) -> None:
        """`kill -9`, and a new start: running inserts stop where they are."""
        for insertion in self.running:
            self.abort(insertion)

    def abort(self, insertion: Insertion) -> None:
        """The insert ends where it is; what its parts have kept stays."""
        self._end(insertion, EventStoreError("gone", retryable=True))

    def forget(self, blocks: int) -> None:
        """Others insert so many blocks."""
        for table in (*self.tables.values(), self.view_target):
            for _ in range(blocks):
                table.note(-1, f"other {table.blocks}")

    def check(self, columns: Columns) -> None:
        """Refuses what holds a poisonous row."""
        if any(event_id in self.poison for event_id in columns["event_id"]):
            raise EventStoreError("a row is refused", retryable=False)

    def present(self, table: str, event_ids: Set[int], token: str) -> set[int]:
        """As `LogTables.present`."""
        return {row.event_id for row, _ in self.tables[table].rows if row.event_id in event_ids and row.batch != token}

    def held(self, table: str, token: str, now: float) -> Held:
        """As `LogTables.held`; a merge hides in which block a row came."""
        found = [(row.event_id, block) for row, block in self.tables[table].rows if row.batch == token]
        first = 0 if self.is_merged else min((block for _, block in found), default=0)
        since = (self.tables[table].blocks - first) * BLOCK_SCALE
        return Held(frozenset(event_id for event_id, _ in found), since, now)

    def base_minutes(self) -> Counter[Minute]:
        """What the view should count."""
        return Counter((row.minute, row.day) for row, _ in self.tables["requests"].rows)

    def differing_minutes(self) -> dict[Minute, int]:
        """Rows of the base less those that the view counts, where that is not 0."""
        base = self.base_minutes()
        missing = {minute: base[minute] - self.view[minute] for minute in base.keys() | self.view.keys()}
        return {minute: count for minute, count in missing.items() if count}

    def rebuild(self, minutes: Set[Minute]) -> None:
        """Counts these minutes anew."""
        base = self.base_minutes()
        self.view.update({minute: base[minute] - self.view[minute] for minute in minutes})

    def _end(self, insertion: Insertion, error: EventStoreError | None) -> None:
        del self._running[insertion]
        insertion.is_done, insertion.error = True, error

    def _turns(self, insertion: Insertion) -> Generator[None, None, None]:
        for name, columns in insertion.tables.items():
            self.check(columns)
            rows = rows_of(columns)
            table = self.tables[name]
            for day in sorted({row.day for row in rows}):
                if table.note(day, insertion.token):
                    yield
                    table.rows += [(row, table.blocks) for row in rows if row.day == day]
                yield
            if name == "requests":
                yield from self._push(rows, insertion.token)

    def _push(self, rows: list[Row], token: str) -> Generator[None, None, None]:
        """The view gets the whole block, also where its table had it already."""
        for day in sorted({row.day for row in rows}):
            if self.view_target.note(day, token):
                yield
                self.view.update((row.minute, row.day) for row in rows if row.day == day)
            yield
