"""Which instance gets the next call: balance in health, avoidance in trouble, and the way back."""

import itertools
import math
import random
from collections import Counter

import pytest

from pipeline.core.routing import Router
from tests.simulation.load import Instance, run_load

NAMES = ["a", "b", "c", "d"]
SEEDS = range(4)
# Four instances with two slots of 10 ms take 800/s.
RATE_60 = 480.0


def router_of(*names: str, seed: int = 1) -> Router:
    """A router over these instances."""
    return Router(names or NAMES, random.Random(seed))


def fail(router: Router, name: str, now: float, times: int = 1, takes_s: float = 0.001) -> None:
    """Calls of one instance that get no answer."""
    for _ in range(times):
        router.end(name, router.begin(name, now), now + takes_s, answered=False)


def picks(router: Router, now: float, count: int = 400) -> Counter[str]:
    """Who is chosen, if nothing else changes."""
    return Counter(router.pick(now) for _ in range(count))


def test_fresh_fleet_is_shared_evenly() -> None:
    """Instances that nothing is known of are chosen alike."""
    chosen = picks(router_of(), 0.0, 4000)
    assert set(chosen) == set(NAMES)
    assert all(800 < count < 1200 for count in chosen.values())


def test_busy_instance_is_passed_over() -> None:
    """Of two alike the one with fewer calls in flight is asked."""
    router = router_of("a", "b")
    router.begin("a", 0.0)
    assert set(picks(router, 0.0)) == {"b"}


def test_silent_instance_is_avoided_before_it_times_out() -> None:
    """The age of the oldest open call counts as its latency."""
    router = router_of("a", "b")
    router.begin("a", 0.0)
    router.begin("b", 0.9)
    router.begin("b", 0.9)
    assert set(picks(router, 1.0)) == {"b"}


def test_three_strikes_eject_an_instance() -> None:
    """Two failures in a row leave an instance in; the third ejects it for a pause."""
    router = router_of()
    fail(router, "a", 1.0, times=2)
    assert not router.instances["a"].ejected
    fail(router, "a", 1.1)
    assert router.instances["a"].ejected
    assert "a" not in picks(router, 1.2)


def test_answer_forgives_earlier_strikes() -> None:
    """Only failures in a row count; a model's refusal is an answer too."""
    router = router_of()
    for _ in range(5):
        fail(router, "a", 1.0, times=2)
        router.end("a", router.begin("a", 1.0), 1.01, answered=True)
    assert not router.instances["a"].ejected


def test_copy_of_one_call_probes_an_ejected_instance() -> None:
    """After its pause an ejected instance is sent one copy of a call; until that one ends no other, and no request."""
    router = router_of("a", "b")
    fail(router, "a", 0.0, times=3)
    assert router.probe(0.3) is None
    assert router.probe(1.0) == "a"
    number = router.begin("a", 1.0)
    assert router.probe(1.0) is None
    assert set(picks(router, 1.0)) == {"b"}
    router.end("a", number, 1.01, answered=True)
    assert not router.instances["a"].ejected
    assert router.probe(9.0) is None


def test_share_grows_after_an_instance_is_back() -> None:
    """It starts with a tenth of its usual calls, and has all of them five seconds later."""
    router = router_of()
    fail(router, "a", 0.0, times=3)
    router.end("a", router.begin("a", 1.0), 1.005, answered=True)
    shares = [picks(router, now, 4000)["a"] / 4000 for now in (1.1, 3.5, 6.1, 30.0)]
    assert shares[0] < 0.05 < shares[1] < shares[2]
    assert shares[3] == pytest.approx(0.25, abs=0.04)


def test_overdue_call_counts_as_a_failure_until_it_is_answered() -> None:
    """Three overdue calls eject, without an end; an answer that comes all the same takes it back."""
    router = router_of()
    calls = [router.begin("a", 0.0) for _ in range(3)]
    for number in calls:
        router.overdue("a", number, 0.2)
        router.overdue("a", number, 0.3)
    assert router.instances["a"].ejected
    assert router.instances["a"].ejections == 1
    router.end("a", calls[0], 0.4, answered=True)
    assert not router.instances["a"].ejected


def test_quick_failure_does_not_make_an_instance_quick() -> None:
    """One that refuses or fails everything in no time keeps the estimate it had, and is not preferred for it."""
    router = router_of()
    for name in NAMES:
        router.end(name, router.begin(name, 0.0), 0.02, answered=True)
    for _ in range(50):
        router.end("a", router.begin("a", 1.0), 1.0001, answered=True, timed=False)
    router.end("b", router.begin("b", 1.0), 1.0001, answered=False)
    assert router.instances["a"].latency_s == router.instances["b"].latency_s == pytest.approx(0.02)


def test_time_this_process_stood_still_is_no_latency() -> None:
    """Open calls are not older by a pause of our own; what began during it is not younger than nothing."""
    router = router_of("a", "b")
    number = router.begin("a", 0.0)
    later = router.begin("b", 4.0)
    router.stood_still(5.0, 4.98)
    assert router.end("a", number, 5.0, answered=True) == pytest.approx(0.02)
    assert router.end("b", later, 5.0, answered=True) == pytest.approx(0.0)
    assert router.instances["a"].latency_s < 0.03


def test_view_tells_who_gets_what() -> None:
    """A status page sees the estimate, what is out and for how long, ejections and probes."""
    router = router_of("a", "b")
    fail(router, "a", 0.0, times=3)
    router.begin("b", 0.1)
    assert router.probe(1.0) == "a"
    a, b = router.views(0.35)
    assert (a.name, a.calls, a.unanswered, a.ejections, a.probes) == ("a", 3, 3, 1, 1)
    assert 0 < a.ejected_s < 0.6
    assert (b.in_flight, b.ejected_s, b.share) == (1, 0.0, 1.0)
    assert b.oldest_s == pytest.approx(0.25)


def test_pause_grows_to_its_limit() -> None:
    """Every failed probe lengthens the pause, up to 15 s and a fifth."""
    router = router_of()
    now, pauses = 0.0, []
    fail(router, "a", now, times=3)
    for _ in range(10):
        pauses.append(router.instances["a"].ejected_until - now)
        now = router.instances["a"].ejected_until + 0.01
        fail(router, "a", now)
    assert 0.35 <= pauses[0] <= 0.65
    assert all(later > earlier * 1.2 for earlier, later in itertools.pairwise(pauses[:5]))
    assert 11.9 <= pauses[-1] <= 18.1


def test_ejection_of_most_is_ignored() -> None:
    """With more than half ejected all are used: it is this process that looks at them through a pause."""
    router = router_of()
    for name in "abc":
        fail(router, name, 0.0, times=3)
    assert set(picks(router, 0.1)) == set(NAMES)
    router = router_of()
    for name in "ab":
        fail(router, name, 0.0, times=3)
    assert set(picks(router, 0.1)) == {"c", "d"}


def test_tried_instance_comes_last() -> None:
    """A retry goes elsewhere as long as there is an elsewhere, even an ejected one."""
    router = router_of("a", "b")
    fail(router, "b", 0.0, times=3)
    assert {router.pick(0.1, ["a"]) for _ in range(20)} == {"b"}
    assert router.pick(0.1, ["a", "b"]) in {"a", "b"}
    assert router_of("a").pick(0.0, ["a"]) == "a"


def test_abandoned_call_says_little() -> None:
    """A call that we gave up leaves the strikes as they were, and the latency, unless it took longer already."""
    router = router_of()
    load = router.instances["a"]
    before = load.latency_s
    router.abandon("a", router.begin("a", 0.0), 0.001)
    assert (load.latency_s, load.strikes, load.open_calls) == (before, 0, {})
    router.abandon("a", router.begin("a", 1.0), 1.5)
    assert (load.latency_s, load.strikes, load.open_calls) == (0.5, 0, {})


def test_old_latency_is_forgotten_with_time() -> None:
    """An instance that was slow once is asked again, though nobody measured it meanwhile."""
    router = router_of("a", "b")
    router.end("a", router.begin("a", 4.9), 5.0, answered=True)
    router.end("b", router.begin("b", 4.99), 5.0, answered=True)
    assert set(picks(router, 5.1)) == {"b"}
    for tick in range(51, 600):
        router.end("b", router.begin("b", tick / 10), tick / 10 + 0.01, answered=True)
    assert set(picks(router, 60.0)) == {"a", "b"}


def test_unmeasured_instance_is_tried() -> None:
    """However fast the instances that were asked are, one that nobody asked yet gets calls too."""
    router = router_of("a", "b")
    asked: Counter[str] = Counter()
    for tick in range(600):
        name = router.pick(tick / 10)
        asked[name] += 1
        router.end(name, router.begin(name, tick / 10), tick / 10 + 0.0005, answered=True)
    assert min(asked["a"], asked["b"]) > 200


def test_calls_lost_together_are_one_ejection() -> None:
    """A connection that breaks under many calls ejects its instance once, for the first short pause."""
    router = router_of()
    calls = [router.begin("a", 0.0) for _ in range(20)]
    for number in calls:
        router.end("a", number, 1.0, answered=False)
    assert router.instances["a"].ejected_until <= 1.0 + 0.6


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rate", [40.0, RATE_60])
def test_healthy_fleet_is_balanced(seed: int, rate: float) -> None:
    """No instance of a healthy fleet gets much more or less than its share, at low and at high load."""
    report = run_load({name: Instance() for name in NAMES}, rate=rate, seconds=20, seed=seed)
    assert report.failed == 0
    assert all(0.15 < report.share(name) < 0.35 for name in NAMES), report.calls


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("slowness", [10.0, math.inf, None])
def test_recovered_instance_gets_its_share_again(seed: int, slowness: float | None) -> None:
    """Trouble of ten seconds is forgotten twenty seconds after it ended."""
    fleet = {name: Instance() for name in NAMES}
    fleet["a"].slowness = lambda now: slowness if now < 10 else 1.0
    report = run_load(fleet, rate=RATE_60 / 2, seconds=60, seed=seed)
    later = {name: sum(at > 30 for at in times) for name, times in report.called_at.items()}
    assert later["a"] > 0.15 * sum(later.values()), later


@pytest.mark.parametrize("seed", SEEDS)
def test_pause_of_the_client_ejects_nobody_for_long(seed: int) -> None:
    """When every instance seems dead at once, all are asked again as soon as they answer."""
    fleet = {name: Instance() for name in NAMES}
    for instance in fleet.values():
        instance.slowness = lambda now: None if 5 < now < 8 else 1.0
    report = run_load(fleet, rate=RATE_60 / 2, seconds=30, seed=seed)
    assert report.failed == 0
    later = {name: sum(at > 12 for at in times) for name, times in report.called_at.items()}
    assert all(count > 0.15 * sum(later.values()) for count in later.values()), later
