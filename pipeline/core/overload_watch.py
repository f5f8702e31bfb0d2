"""When an instance begins to be overloaded, told by what routing made of it. Pure: it is given numbers and the time.

An instance counts as overloaded while this worker turns away from it, or for want of room at it turns requests away:

- `silent`: it is ejected, and has had nearly none of its share of the calls for some seconds.
- `slow`: likewise, because its latency is far above that of those in use, and was again each time it was tried.
- `queue`: the queue before the fleet is full, requests were refused: every instance in use is overloaded.

One slow answer makes the router pass an instance over for 14 s and more, so being passed over alone is no news: every
healthy fleet has it. Nor is an ejection of half a second, or the small share of one that has just come back. Where
routing ignores an ejection, since most of the fleet is ejected, the calls show it: it is not passed over.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal, NamedTuple

from pipeline.core.routing import InstanceView

Reason = Literal["slow", "silent", "queue"]

# One event for an instance in a minute, however long or often it is overloaded, and none of it for a minute is the end
# of the episode: a day of it is 1,440 lines, as many as 0.004 requests per second write.
REMIND_S = 60.0
# Calls count by e^(-age / 3 s). An instance that gets none any more has a quarter of its share left after 4.2 s, so
# that a pause of a second (a garbage collection, one ejection and the slow start after it) is not told.
_RECENT_S = 3.0
# Out for so long, too: one that had few calls before is ejected for half a second as easily as any.
_OUT_S = 4.0
# Simulated, an instance in trouble has 1.5 % of the calls at most where 25 % are fair (`test_fleet_load.py`).
_PASSED_OVER = 0.25
# As the router has it: what takes longer than three times the best is slow.
_SLOW_TIMES = 3.0
# By chance a healthy instance has less than a quarter of three calls in 2 % of the looks, and then it is not slow.
_CALLS_MIN = 3.0
# Slow when it was passed over first, when it was tried again, and once more: of a model with one call in a hundred ten
# times as long, two slow tries in a row come several times an hour, three never came in five simulated hours. The
# router tries again after 14 s and 28 s, later where there are few calls; a try that ejects it again counts twice.
_SLOW_TRIES = 3
# The router's estimate keeps e^(-t / 2 s) of what it was: what is above that 5 s later is another slow answer's.
_FORGET_S = 2.0
_TRY_APART_S = 5.0


class FleetReading(NamedTuple):
    """The fleet at one moment.

    Attributes:
        instances: as the router sees them; always the same ones.
        waiting: requests in the queue before the fleet.
        refused: requests that found it full, since this process began.
    """

    instances: Sequence[InstanceView]
    waiting: int
    refused: int


class Overload(NamedTuple):
    """What is to be told of one instance.

    Attributes:
        attributes: why, in numbers: see docs/routing.md.
    """

    instance: str
    reason: Reason
    attributes: dict[str, Any]


@dataclass(slots=True)
class _Watched:
    """One instance between two looks."""

    asked: int
    ended: int
    recent: float = 0.0
    out_since: float = math.inf
    slow_tries: int = 0
    slow_at: float = -math.inf
    slow_s: float = 0.0
    ejections: int = 0
    began_at: float = -math.inf
    overloaded_at: float = -math.inf
    told_at: float = -math.inf
    refused_before: int = 0


class _Fleet(NamedTuple):
    """What one look is judged by.

    Attributes:
        fair: the recent calls that each instance would have, were they shared evenly.
        best_s: the lowest latency of those in use; infinite where none is.
        median_s: likewise, their median.
        refused_now: requests refused since the last look.
    """

    reading: FleetReading
    fair: float
    best_s: float
    median_s: float
    refused_now: int


class OverloadWatch:
    """Tells when an instance begins to be overloaded, and once a minute that it still is.

    It wants a look every second or so; calls between two looks count as of the later one.
    """

    def __init__(self) -> None:
        self._watched: dict[str, _Watched] = {}
        self._looked_at = -math.inf
        self._refused = 0

    def look(self, reading: FleetReading, now: float) -> list[Overload]:
        """What begins, or has lasted for another minute.

        Args:
            reading: the fleet now.
            now: monotonic seconds.
        """
        fleet = self._counted(reading, now)
        self._looked_at = now
        overloads: list[Overload] = []
        for view in reading.instances:
            watched = self._watched[view.name]
            is_passed_over = watched.recent < _PASSED_OVER * fleet.fair
            _note_ejection(watched, view, is_passed_over, now)
            _note_try(watched, view, fleet.best_s, now)
            reason = _reason(watched, view, fleet, is_passed_over, now)
            if reason is not None and _is_due(watched, reading.refused - fleet.refused_now, now):
                overloads.append(Overload(view.name, reason, _attributes(watched, view, fleet, reason, now)))
        self._refused = reading.refused
        return overloads

    @property
    def lasting(self) -> set[str]:
        """The instances whose episode is not over."""
        watched = self._watched.items()
        return {name for name, one in watched if self._looked_at - one.overloaded_at < REMIND_S}

    def _counted(self, reading: FleetReading, now: float) -> _Fleet:
        kept = math.exp(-max(now - self._looked_at, 0.0) / _RECENT_S)
        for view in reading.instances:
            asked = view.calls - view.probes  # a probe is nobody's call
            watched = self._watched.get(view.name)
            if watched is None:
                watched = self._watched[view.name] = _Watched(asked, view.calls - view.in_flight)
            watched.recent = watched.recent * kept + asked - watched.asked
            watched.asked = asked
        fair = sum([self._watched[view.name].recent for view in reading.instances]) / max(len(reading.instances), 1)
        in_use = [
            view.latency_s
            for view in reading.instances
            if not view.ejected_s and self._watched[view.name].recent >= _PASSED_OVER * fair
        ]
        best_s, median_s = (min(in_use), median(in_use)) if in_use else (math.inf, math.inf)
        return _Fleet(reading, fair, best_s, median_s, reading.refused - self._refused)


def _note_ejection(watched: _Watched, view: InstanceView, is_passed_over: bool, now: float) -> None:
    """Since when it is out; while a probe is on its way the view does not call it ejected, and it is not back."""
    if view.ejected_s:
        watched.out_since = min(watched.out_since, now)
    elif view.share < 1.0 or not is_passed_over:
        watched.out_since = math.inf


def _note_try(watched: _Watched, view: InstanceView, best_s: float, now: float) -> None:
    """Counts how often it was slow again when it was tried again."""
    ended = view.calls - view.in_flight
    if ended == watched.ended:
        return
    watched.ended = ended
    if view.latency_s < _SLOW_TIMES * best_s:
        watched.slow_tries, watched.slow_at, watched.slow_s = 0, -math.inf, 0.0
    elif (apart_s := now - watched.slow_at) >= _TRY_APART_S:
        left_s = watched.slow_s * math.exp(-apart_s / _FORGET_S)
        if view.latency_s >= _SLOW_TIMES * best_s + left_s:
            # Three overdue calls in a row are no chance, unless they were those of one pause: the first does not count.
            was_overdue = watched.slow_tries > 0 and view.ejections > watched.ejections
            watched.slow_tries += 2 if was_overdue else 1
            watched.slow_at, watched.slow_s, watched.ejections = now, view.latency_s, view.ejections


def _reason(watched: _Watched, view: InstanceView, fleet: _Fleet, is_passed_over: bool, now: float) -> Reason | None:
    if watched.out_since < math.inf:
        return "silent" if is_passed_over and now - watched.out_since >= _OUT_S else None
    is_slow = watched.slow_tries >= _SLOW_TRIES and view.share >= 1.0
    if is_slow and is_passed_over and fleet.fair >= _CALLS_MIN:
        return "slow"
    return "queue" if fleet.refused_now > 0 else None


def _is_due(watched: _Watched, refused_before: int, now: float) -> bool:
    """Notes that it is overloaded; whether that is to be told."""
    if now - watched.overloaded_at >= REMIND_S:
        watched.began_at, watched.refused_before = now, refused_before
    watched.overloaded_at = now
    if now - watched.told_at < REMIND_S:
        return False
    watched.told_at = now
    return True


def _attributes(watched: _Watched, view: InstanceView, fleet: _Fleet, reason: Reason, now: float) -> dict[str, Any]:
    instances = len(fleet.reading.instances)
    attributes: dict[str, Any] = {
        "reason": reason,
        "lasted_s": round(now - watched.began_at, 1),
        "latency_ms": round(view.latency_s * 1e3, 3),
        "in_flight": view.in_flight,
        "oldest_ms": round(view.oldest_s * 1e3, 3),
        "calls_share": round(watched.recent / (fleet.fair * instances), 4) if fleet.fair else 0.0,
        "fair_share": round(1 / instances, 4),
        "ejected_s": round(view.ejected_s, 1),
        "ejections": view.ejections,
        "waiting": fleet.reading.waiting,
        "refused": fleet.reading.refused - watched.refused_before,
    }
    if fleet.best_s < math.inf:
        attributes["best_latency_ms"] = round(fleet.best_s * 1e3, 3)
        attributes["median_latency_ms"] = round(fleet.median_s * 1e3, 3)
    return attributes
