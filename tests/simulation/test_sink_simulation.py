"""The sink from a seed: whatever dies, pauses or comes twice, ClickHouse ends with one row for each event.

`SIMULATION_SEEDS=10000:20000` tries others than those of every run.
"""

import os
from collections import Counter
from functools import lru_cache

import pytest

from pipeline.core import event_batch
from pipeline.core.event_rows import decode_line
from tests.simulation.sink_world import METADATA_BYTES_MAX, History, SinkWorld

_FIRST, _END = map(int, os.environ.get("SIMULATION_SEEDS", "0:1000").split(":"))
# Seeds of one test: a failure names its own, and pytest's cost for each test is 2 ms.
_SEEDS_EACH = 100


@pytest.fixture(autouse=True)
def decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The histories have few lines, read again and again: half of their time."""
    monkeypatch.setattr(event_batch, "decode_line", lru_cache(maxsize=4096)(decode_line))


def repeat(history: History) -> str:
    """The last of what happened, and how to see it again."""
    seed = history.seed
    command = f"SIMULATION_SEEDS={seed}:{seed + 1} pytest tests/simulation/test_sink_simulation.py"
    return "\n".join([*history.told[-40:], f"Repeat: {command}"])


def one_row_per_event(world: SinkWorld) -> None:
    """I1: no event has two rows."""
    _check_single(world, "events")


def one_row_per_request(world: SinkWorld) -> None:
    """I2: no request has two rows."""
    _check_single(world, "requests")


def _check_single(world: SinkWorld, table: str) -> None:
    counts = Counter(row.event_id for row, _ in world.store.tables[table].rows)
    double = {event_id: count for event_id, count in counts.items() if count > 1}
    batches = sorted({row.batch[:20] for row, _ in world.store.tables[table].rows if row.event_id in double})
    assert not double, f"{len(double)} rows of {table} are double, in batches {batches}.\n{repeat(world.history)}"


def nothing_lost(world: SinkWorld) -> None:
    """I3: every event of the log has its rows, or its line is a dead letter."""
    whole = world._draft(0, len(world.writers.log), None).finish()
    for table in ("events", "requests"):
        there = {row.event_id for row, _ in world.store.tables[table].rows}
        lost = whole.ids(table) - there - world.history.buried
        assert not lost, f"{len(lost)} rows of {table} are lost.\n{repeat(world.history)}"


def view_equals_base(world: SinkWorld) -> None:
    """I4: the view counts what its base has."""
    differing = world.store.differing_minutes()
    assert not differing, f"the view differs by {differing}.\n{repeat(world.history)}"


def bounded(world: SinkWorld) -> None:
    """I5: metadata fits Kafka's limit, batches theirs, and no delivery goes round in circles."""
    history = world.history
    assert history.metadata_bytes_max <= METADATA_BYTES_MAX, repeat(history)
    assert history.batch_lines_max <= 200, repeat(history)
    assert history.steps_max < 400, repeat(history)


INVARIANTS = (one_row_per_event, one_row_per_request, nothing_lost, view_equals_base, bounded)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("first", range(_FIRST, _END, _SEEDS_EACH))
def test_sink_keeps_its_invariants(first: int) -> None:
    """Crashes, pauses, kills, repetitions and resets break none of the invariants."""
    for seed in range(first, min(first + _SEEDS_EACH, _END)):
        world = SinkWorld(seed)
        world.run()
        for check in INVARIANTS:
            check(world)


def test_sink_simulation_follows_from_its_seed() -> None:
    """The same seed gives the same history."""
    first, second = (SinkWorld(7).run() for _ in range(2))
    assert first == second


def test_sink_simulation_meets_all_that_it_should() -> None:
    """Taken together, seeds reach every step and every misfortune; else they would prove little."""
    met: set[str] = set()
    for seed in range(60):
        met |= SinkWorld(seed).run().met
    wanted = {
        "Commit", "LookUp", "Trace", "Insert", "MatchMinutes", "Probe", "BuryRows",
        "repeated", "retried", "refused", "fenced", "reset", "left out", "completed", "rebuilt",
    }  # fmt: skip
    assert wanted - met == set()
