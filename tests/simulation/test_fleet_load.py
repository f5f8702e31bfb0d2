"""One troubled instance of four, simulated with the product's own decisions, beside round robin.

`python -m tests.simulation.routing_table 1 2 3` prints the table of docs/benchmarks.md.
"""

from functools import cache

import pytest

from tests.simulation.load import LoadReport
from tests.simulation.routing_table import FAULTS, MEASURED_S, NAMES, OURS, ROUND_ROBIN, Policy, faulted_load

SEEDS = (1, 2)
TROUBLES = [fault for fault in FAULTS if fault != "none"]


@cache
def report(policy: Policy, load: float, fault: str, seed: int) -> LoadReport:
    """Each is simulated once for all tests."""
    return faulted_load(policy, load, fault, seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("load", MEASURED_S)
def test_healthy_fleet_is_shared_evenly(load: float, seed: int) -> None:
    """No instance of a healthy fleet gets more than 35 % of the calls, and p99 is that of round robin."""
    ours, plain = report(OURS, load, "none", seed), report(ROUND_ROBIN, load, "none", seed)
    assert ours.failed == 0
    assert max(ours.share(name) for name in NAMES) <= 0.35
    assert ours.p99() <= 1.15 * plain.p99()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fault", TROUBLES)
@pytest.mark.parametrize("load", MEASURED_S)
def test_troubled_instance_costs_at_most_twice_the_healthy_p99(load: float, fault: str, seed: int) -> None:
    """Slow, silent, refusing or restarted: nothing fails, p99 at most doubles, and nearly nobody is sent there."""
    ours, healthy = report(OURS, load, fault, seed), report(OURS, load, "none", seed)
    assert ours.failed == 0
    assert ours.p99() <= 2 * healthy.p99()
    if fault != "restarted":
        assert ours.share("a") <= 0.015
    assert ours.attempts <= 1.05 * ours.requests  # retries and probes


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("load", "fault"), [(load, fault) for load in MEASURED_S for fault in ("10x slow", "silent")])
def test_troubled_instance_costs_a_quarter_of_round_robin(load: float, fault: str, seed: int) -> None:
    """Where round robin waits for the slow or silent one, ours takes at most a quarter of its p99."""
    ours, plain = report(OURS, load, fault, seed), report(ROUND_ROBIN, load, fault, seed)
    assert 4 * ours.p99() <= plain.p99()
