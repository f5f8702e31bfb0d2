"""The table of docs/benchmarks.md: `python -m tests.simulation.routing_table 1 2 3` (seeds)."""

import math
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pipeline.core.attempts import Attempts
from pipeline.core.routing import Router
from tests.simulation.load import (
    ATTEMPT_TIMEOUT_S,
    HedgedAttempts,
    Instance,
    LeastInFlight,
    LoadReport,
    PlainAttempts,
    RoundRobin,
    run_load,
)

NAMES = ("a", "b", "c", "d")
CLIENTS = 8
# Four instances with two slots of 10 ms take 800/s.
CAPACITY = 800.0
# The fault begins after 5 s, and what happens at that moment counts.
FAULT_AT_S = 5.0
MEASURED_S = {0.05: 60.0, 0.6: 15.0}


def _restarted(now: float) -> float | None:
    """Five seconds down, two seconds cold, then as before."""
    if FAULT_AT_S <= now < FAULT_AT_S + 5:
        return None
    return 4.0 if FAULT_AT_S + 5 <= now < FAULT_AT_S + 7 else 1.0


def _from_then_on(slowness: float | None) -> Callable[[float], float | None]:
    return lambda now: slowness if now >= FAULT_AT_S else 1.0


FAULTS: dict[str, Callable[[float], float | None]] = {
    "none": lambda now: 1.0,
    "10x slow": _from_then_on(10.0),
    "silent": _from_then_on(math.inf),
    "refuses": _from_then_on(None),
    "restarted": _restarted,
}


class Policy(NamedTuple):
    """A way to choose, and a way to try again."""

    router: type[Router]
    attempts: Callable[[], Attempts]


OURS = Policy(Router, lambda: Attempts(ATTEMPT_TIMEOUT_S))
ROUND_ROBIN = Policy(RoundRobin, PlainAttempts)
POLICIES = {
    "round robin": ROUND_ROBIN,
    "least in flight": Policy(LeastInFlight, PlainAttempts),
    "ours": OURS,
    "ours, hedged": Policy(Router, HedgedAttempts),
}


def faulted_load(policy: Policy, load: float, fault: str, seed: int) -> LoadReport:
    """One instance of four has this fault."""
    fleet = {name: Instance() for name in NAMES}
    fleet["a"].slowness = FAULTS[fault]
    return run_load(
        fleet, rate=CAPACITY * load, seconds=FAULT_AT_S + MEASURED_S[load], seed=seed, clients=CLIENTS,
        measured_from=FAULT_AT_S, router=policy.router, attempts=policy.attempts,
    )  # fmt: skip


def _row(load: float, fault: str, seeds: Sequence[int]) -> str:
    cells = [f"{load:g}", fault]
    for policy in POLICIES.values():
        reports = [faulted_load(policy, load, fault, seed) for seed in seeds]
        p99, p999 = (max(report.quantile(part) for report in reports) * 1e3 for part in (0.99, 0.999))
        share = max(report.share(name) for report in reports for name in NAMES)
        failed = sum(report.failed for report in reports)
        cells.append(f"{p99:.0f} / {p999:.0f} / {share:.0%} / {failed}")
    return "| " + " | ".join(cells) + " |"


def main(seeds: Sequence[int]) -> None:
    """Prints the table; of several seeds the worst one counts."""
    write = sys.stdout.write
    write("| load | fault | " + " | ".join(POLICIES) + " |\n" + "|--" * (2 + len(POLICIES)) + "|\n")
    for load in MEASURED_S:
        for fault in FAULTS:
            write(_row(load, fault, seeds) + "\n")


if __name__ == "__main__":
    main([int(seed) for seed in sys.argv[1:]] or [1, 2, 3])
