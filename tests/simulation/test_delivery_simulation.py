"""A group of workers from a seed: whatever fails, exactly one answer and one set of events for each record.

`DELIVERY_SEEDS=2000:20000` tries others than those of every run.
"""

import os
from collections.abc import Iterable

import pytest

from tests.simulation.delivery_faults import FAULTS
from tests.simulation.delivery_invariants import BrokenInvariantError
from tests.simulation.delivery_mutations import MUTATIONS
from tests.simulation.delivery_world import DeliveryWorld

_FIRST, _END = map(int, os.environ.get("DELIVERY_SEEDS", "0:2000").split(":"))
# One test of pytest costs as much as a seed.
_BLOCK = 100
# Every mistake was found by one of these; most by one of the first twenty.
_MUTATION_SEEDS = 600


def _run(seeds: Iterable[int]) -> None:
    for seed in seeds:
        DeliveryWorld(seed).run()


@pytest.mark.parametrize("first", range(_FIRST, _END, _BLOCK))
def test_delivery_keeps_its_promises(first: int) -> None:
    """Crashes at every step, pauses, rebalances, outages, hand-made offsets and poison break no promise."""
    _run(range(first, min(first + _BLOCK, _END)))


@pytest.mark.parametrize("mistake", MUTATIONS)
@pytest.mark.timeout(60)
def test_mistake_is_found(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each mistake that somebody could make breaks a promise within few seeds: the simulation can fail."""
    MUTATIONS[mistake](monkeypatch)
    with pytest.raises(BrokenInvariantError):
        _run(range(_MUTATION_SEEDS))


def test_delivery_follows_from_its_seed() -> None:
    """The same seed gives the same history, to the last record."""
    first, second = (DeliveryWorld(7).run() for _ in range(2))
    assert first.history == second.history


def test_undisturbed_delivery_answers_once() -> None:
    """Without faults nothing is answered again, nobody is replaced, and nobody looks anything up but at the start."""
    for seed in range(50):
        met = DeliveryWorld(seed, faults=()).run().met
        assert not {what for what in met if what.startswith(("crash", "pause", "fault"))}
        assert "result of a zombie" not in met


def test_delivery_meets_all_that_it_should() -> None:
    """Taken together, the seeds of every run reach every fault at every step; else they would prove little."""
    met: set[str] = set()
    for seed in range(300):
        met |= DeliveryWorld(seed).run().met
    steps = (
        "after reading commits", "after reading results", "before a commit", "after a commit", "after taking",
        "before results", "after sending results", "between results and events", "before events",
        "after sending events", "between events and the offset",
    )  # fmt: skip
    wanted = {f"{what} {step}" for what in ("crash", "pause") for step in steps} | {f"fault {name}" for name in FAULTS}
    wanted |= {
        "result of an owner", "result of a zombie", "event record", "event record redelivered",
        "event record of a zombie", "answer recalled", "condemned", "letter NOT_JSON", "letter DUPLICATE_ID",
        "letter CRASHED_WORKER", "ended: poison", "ended: stopped", "ended: killed",
    }  # fmt: skip
    assert wanted - met == set()
