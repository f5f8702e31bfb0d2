"""Latencies of two ways in turn, phase after phase, so that the host's noise meets both alike."""

from collections.abc import Awaitable, Callable, Mapping
from statistics import quantiles

# At the beginning of a phase, connections and code that rested wake up; that is neither way's latency.
_SKIPPED_S = 0.5


def skipped(count: int, rate: float) -> int:
    """How many of a phase's requests do not count, at so many per second."""
    return min(int(_SKIPPED_S * rate), count // 2)


async def in_turn(
    ways: Mapping[str, Callable[[], Awaitable[list[float]]]], pairs: int, tell: Callable[[str], None]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """The p50 and the p99 of every phase, milliseconds, by the way's name.

    Args:
        ways: each runs one phase and returns its latencies.
        pairs: phases of each.
        tell: is given one line for each phase.
    """
    p50: dict[str, list[float]] = {name: [] for name in ways}
    p99: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(pairs):
        for name, run in ways.items():
            cuts = quantiles(await run(), n=100)
            p50[name].append(cuts[49])
            p99[name].append(cuts[98])
            tell(f"{name}: p50 {cuts[49]:.2f} ms, p99 {cuts[98]:.2f} ms")
    return p50, p99
