"""Who is overloaded: told when it begins and once a minute, never of a healthy fleet; with the product's own router."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.overload_watch import REMIND_S, FleetReading, Overload, OverloadWatch
from pipeline.core.routing import InstanceView, Router
from tests.simulation.load import Instance, run_load
from tests.simulation.routing_table import CAPACITY, FAULT_AT_S, FAULTS, NAMES

WORKERS = 4

FRESH = InstanceView("", 0.010, 0, 0.0, 0.0, 1.0, 0, 0, 0, 0)


class Looks:
    """A fleet whose numbers a test moves on, and a look at it each second."""

    def __init__(self, *names: str) -> None:
        self.watch = OverloadWatch()
        self.views = {name: replace(FRESH, name=name) for name in names}
        self.now = 100.0
        self.refused = 0
        self.waiting = 0

    def look(self, seconds: float = 1.0, refused: int = 0, **calls: int) -> list[Overload]:
        """Time passes in which instances got so many calls; what is told then."""
        self.now += seconds
        self.refused += refused
        for name, count in calls.items():
            self.change(name, calls=self.views[name].calls + count)
        return self.watch.look(FleetReading([*self.views.values()], self.waiting, self.refused), self.now)

    def change(self, name: str, **changes: float) -> None:
        self.views[name] = replace(self.views[name], **changes)  # type: ignore[arg-type]


class Told(NamedTuple):
    """One event of a simulated worker."""

    at: float
    worker: int
    overload: Overload


def watched_load(load: float, seconds: float, seed: int, slowness: Callable[[float], float | None]) -> list[Told]:
    """What the routers of several workers have told, by a fleet whose instance `a` is as slow as that."""
    told: list[Told] = []

    class WatchedRouter(Router):
        def __init__(self, names: list[str], rng: random.Random) -> None:
            super().__init__(names, rng)
            self._watch = OverloadWatch()
            self._look_at = 0.0

        def begin(self, name: str, now: float) -> int:
            while now >= self._look_at:
                reading = FleetReading(self.views(self._look_at), 0, 0)
                found = self._watch.look(reading, self._look_at)
                told.extend(Told(self._look_at, id(self), overload) for overload in found)
                self._look_at += 1.0
            return super().begin(name, now)

    fleet = {name: Instance() for name in NAMES}
    fleet["a"].slowness = slowness
    run_load(fleet, rate=CAPACITY * load, seconds=seconds, seed=seed, clients=WORKERS, router=WatchedRouter)
    return told


@cache
def faulted(fault: str, load: float, seed: int) -> list[Told]:
    """Each is simulated once for all tests; a slow one for longer, for it is told later, and again after a minute."""
    return watched_load(load, 90.0 if fault == "10x slow" else 36.0, seed, FAULTS[fault])


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("load", [0.05, 0.8])
def test_healthy_fleet_is_never_told(load: float, seed: int) -> None:
    """Shares that differ by chance, idle or nearly full: no worker tells anything."""
    assert faulted("none", load, seed) == []


@pytest.mark.parametrize("load", [0.05, 0.2])
def test_now_and_then_a_long_call_is_not_told(load: float) -> None:
    """One call in a hundred takes ten times as long: its instance is passed over for 14 s and more, and is not slow."""
    rng = random.Random(7)
    assert watched_load(load, 120.0, 1, lambda _: 10.0 if rng.random() < 0.01 else 1.0) == []


@pytest.mark.parametrize("load", [0.05, 0.6])
@pytest.mark.parametrize("pause_s", [0.3, 1.0])
def test_short_pause_is_not_told(load: float, pause_s: float) -> None:
    """An instance that refuses everything for a moment is ejected, and comes back before anybody is told."""
    refuses: Callable[[float], float | None] = lambda now: None if 0 <= now - FAULT_AT_S < pause_s else 1.0  # noqa: E731
    assert watched_load(load, 15.0, 1, refuses) == []


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    ("fault", "load", "within_s"),
    [("refuses", 0.05, 15.0), ("refuses", 0.3, 8.0), ("silent", 0.3, 30.0), ("10x slow", 0.15, 60.0)],
)
def test_troubled_instance_is_told_by_every_worker(fault: str, load: float, within_s: float, seed: int) -> None:
    """Each worker tells of it in time, of no other instance, and not twice within a minute."""
    told = faulted(fault, load, seed)
    first: dict[int, float] = {}
    for one in told:
        first.setdefault(one.worker, one.at)
    assert {one.overload.instance for one in told} == {"a"}
    assert len(first) == WORKERS
    assert min(first.values()) > FAULT_AT_S
    assert max(first.values()) <= FAULT_AT_S + within_s
    by_worker = {worker: [one.at for one in told if one.worker == worker] for worker in first}
    assert all(later - earlier >= REMIND_S for times in by_worker.values() for earlier, later in pairwise(times))


def test_reasons_are_what_routing_did() -> None:
    """Who refuses is silent, who answers late is slow, with its latency beside those of the instances in use."""
    assert {one.overload.reason for one in faulted("refuses", 0.3, 1)} == {"silent"}
    slow = [one.overload.attributes for one in faulted("10x slow", 0.15, 1)]
    assert {numbers["reason"] for numbers in slow} == {"slow"}
    for numbers in slow:
        assert numbers["latency_ms"] >= 3 * numbers["best_latency_ms"]
        assert numbers["best_latency_ms"] <= numbers["median_latency_ms"]
        assert numbers["calls_share"] < numbers["fair_share"] / 4


steps = st.fixed_dictionaries({
    "seconds": st.floats(0.1, 90.0),
    "refused": st.sampled_from([0, 0, 0, 5]),
    "calls": st.tuples(*[st.sampled_from([0, 1, 20])] * 3),
    "latency_s": st.tuples(*[st.sampled_from([0.010, 0.020, 0.500])] * 3),
    "ejected_s": st.tuples(*[st.sampled_from([0.0, 0.0, 2.0])] * 3),
    "share": st.tuples(*[st.sampled_from([1.0, 1.0, 0.3])] * 3),
})  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.lists(steps, max_size=40))
def test_never_two_events_within_a_minute(history: list[dict[str, object]]) -> None:
    """Whatever the numbers: one a minute for each instance, and the first of an episode says that it begins."""
    looks = Looks("a", "b", "c")
    told_at: dict[str, list[float]] = {name: [] for name in "abc"}
    began_at: dict[str, float] = {}
    for step in history:
        for index, name in enumerate("abc"):
            changes = {column: step[column][index] for column in ("latency_s", "ejected_s", "share")}  # type: ignore[index]
            looks.change(name, **changes)
        calls = dict(zip("abc", step["calls"], strict=True))  # type: ignore[call-overload]
        overloads = looks.look(step["seconds"], step["refused"], **calls)  # type: ignore[arg-type]
        for overload in overloads:
            lasted_s = overload.attributes["lasted_s"]
            began_at[overload.instance] = since = began_at[overload.instance] if lasted_s else looks.now
            assert lasted_s == round(looks.now - since, 1)
            told_at[overload.instance].append(looks.now)
        assert {overload.instance for overload in overloads} <= looks.watch.lasting
    assert all(later - earlier >= REMIND_S for times in told_at.values() for earlier, later in pairwise(times))


@given(st.integers(1, 200), st.integers(10, 30), st.integers(2, 8))
def test_ejected_instance_is_told_within_six_seconds(calls: int, before: int, others: int) -> None:
    """At any rate: told after four to six looks without calls to it, once, and of nobody else."""
    names = [f"i{number}" for number in range(others)]
    looks = Looks("a", *names)
    for _ in range(before):
        assert looks.look(**dict.fromkeys(["a", *names], calls)) == []
    looks.change("a", ejected_s=1.0)
    told = [[one.instance for one in looks.look(**dict.fromkeys(names, calls))] for _ in range(30)]
    assert [number for number, found in enumerate(told, 1) if found] in ([4], [5], [6])
    assert [name for found in told for name in found] == ["a"]


@given(st.floats(3.5, 100.0), st.floats(5.0, 40.0))
def test_slow_instance_is_told_at_its_third_slow_try(times: float, apart_s: float) -> None:
    """One that is asked now and then, and answers slowly each time: told at the third, for two may be chance."""
    looks = Looks("a", "b")
    for _ in range(20):
        looks.look(a=20, b=20)
    told = []
    for number in range(1, 4):
        looks.change("a", latency_s=0.010 * times)
        told += [number for _ in looks.look(a=1, b=40)]
        told += [number for _ in range(int(apart_s) + 1) for _ in looks.look(b=40)]
    assert told == [3]


def test_few_calls_are_no_evidence() -> None:
    """Of a call per second for two instances a healthy one has none in some seconds, too: nobody is called slow."""
    looks = Looks("a", "b")
    looks.look(a=1, b=1)
    looks.change("a", latency_s=0.5)
    assert [found for number in range(200) for found in looks.look(a=number % 20 == 0, b=1)] == []


@pytest.mark.parametrize(("first", "again", "told"), [(0, 1, True), (1, 0, False), (0, 0, False)])
def test_try_that_ejects_it_again_counts_twice(first: int, again: int, told: bool) -> None:
    """Slow once, and three overdue calls when it was tried again: told then; the first time may have been one pause."""
    looks = Looks("a", "b")
    for _ in range(20):
        looks.look(a=20, b=20)
    looks.change("a", latency_s=0.4, ejections=first)
    assert [found for calls in (1, *[0] * 20) for found in looks.look(a=calls, b=40)] == []
    looks.change("a", ejections=first + again)
    found = [found for calls in (3, *[0] * 20) for found in looks.look(a=calls, b=40)]
    assert [one.reason for one in found] == ["slow"] * told


def test_estimate_that_nobody_renewed_is_no_slow_try() -> None:
    """Quick answers pull a high estimate down bit by bit: what is left of it is not taken for slow answers."""
    looks = Looks("a", "b")
    for _ in range(20):
        looks.look(a=20, b=20)
    latency_s = 20.0
    for _ in range(16):
        looks.change("a", latency_s=latency_s)
        assert looks.look(a=2, b=40) == []
        latency_s = 0.010 + (latency_s - 0.010) * 0.607  # a second of the router's two
    assert not looks.watch.lasting


def test_full_queue_overloads_every_instance_in_use() -> None:
    """One event each; none for one that is ejected, which has its own; the numbers say how many were refused."""
    looks = Looks("a", "b", "c")
    looks.change("c", ejected_s=3.0)
    looks.look(a=10, b=10, c=10)
    looks.waiting = 64
    found = looks.look(a=10, b=10, c=10, refused=7)
    assert [(one.instance, one.reason) for one in found] == [("a", "queue"), ("b", "queue")]
    assert [(one.attributes["waiting"], one.attributes["refused"]) for one in found] == [(64, 7)] * 2
    assert [found for _ in range(59) for found in looks.look(a=10, b=10, c=10, refused=1)] == []
    reminders = looks.look(a=10, b=10, c=10, refused=1)
    assert [(one.attributes["lasted_s"], one.attributes["refused"]) for one in reminders] == [(60.0, 67)] * 2


def test_episode_ends_after_a_minute_without() -> None:
    """Refusals 50 s apart are one episode with a reminder; after a minute without any the next is told as new."""
    looks = Looks("a")
    told = [looks.look(seconds, refused=1) for seconds in (1.0, 50.0, 50.0, 61.0)]
    assert [[one.attributes["lasted_s"] for one in found] for found in told] == [[0.0], [], [100.0], [0.0]]


def test_refusals_end_the_moment_they_stop() -> None:
    """An instance is not overloaded for what was refused before the last look."""
    looks = Looks("a")
    assert looks.look(refused=3)
    assert [found for _ in range(200) for found in looks.look(a=1)] == []
    assert not looks.watch.lasting


def test_slow_start_is_not_told() -> None:
    """One that has just come back has few calls, and its first ones are slow: that does not count."""
    looks = Looks("a", "b")
    for _ in range(20):
        looks.look(a=20, b=20)
    looks.change("a", share=0.1, latency_s=1.0)
    told = []
    for _ in range(5):
        told += looks.look(a=1, b=40)
        for _ in range(6):
            told += looks.look(b=40)
    assert told == []


def test_ejection_that_routing_ignores_is_not_told() -> None:
    """With most of the fleet ejected all are used: those who have their calls are not turned away."""
    looks = Looks("a", "b", "c")
    looks.change("a", ejected_s=5.0)
    looks.change("b", ejected_s=5.0)
    assert [found for _ in range(30) for found in looks.look(a=9, b=9, c=9)] == []


def test_idle_fleet_is_not_told() -> None:
    """Nobody is turned away from where nobody asks: an ejection that lasts on without calls is no news."""
    looks = Looks("a", "b")
    looks.look(a=5, b=5)
    looks.change("a", ejected_s=5.0)
    assert [found for _ in range(300) for found in looks.look()] == []


def test_short_ejection_of_one_that_is_passed_over_is_not_told() -> None:
    """It had few calls before, for an old estimate: half a second out, and back with a slow start, is no news."""
    looks = Looks("a", "b")
    told = []
    for _ in range(6):
        looks.change("a", ejected_s=0.0, share=1.0)
        told += [found for _ in range(10) for found in looks.look(b=40)]
        looks.change("a", ejected_s=0.4)
        told += looks.look(a=3, b=40)
        looks.change("a", ejected_s=0.0, share=0.1)
        told += looks.look(b=40)
    assert told == []


def test_probes_are_not_calls() -> None:
    """Copies of calls, sent to an ejected instance to see whether it is back, do not make it one in use."""
    looks = Looks("a", "b")
    for _ in range(20):
        looks.look(a=3, b=3)
    looks.change("a", ejected_s=1.0)
    told = []
    for _ in range(10):
        looks.change("a", probes=looks.views["a"].probes + 1)
        told += looks.look(a=1, b=6)
    assert [one.reason for one in told] == ["silent"]
