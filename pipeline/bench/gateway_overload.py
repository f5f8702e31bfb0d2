"""`gateway.overload_p99` and `gateway.overload_goodput`: twice as many requests as the gateway can answer.

What it can answer is found in the same rounds: callers who ask again as soon as they are answered, before and after.
Then requests come at a fixed rate whatever becomes of them, at a part of that and at twice as much. Those refused are
no failure, where they say when to come again; any other answer is one.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles

from pipeline.bench.effort import Effort
from pipeline.bench.figure import Bar, Figure, paired
from pipeline.bench.gateway_rig import protocol_body, running_gateway
from pipeline.bench.http_load import HttpLoop, due_times
from pipeline.bench.http_pool import HttpPool
from pipeline.bench.rig import Rig
from pipeline.bench.workload import images

# Flat: whoever is taken on at twice the capacity waits no more than three times as long as at four fifths of it, where
# queues are short already. Without a bound on what is taken on it would wait for seconds, and longer each second.
_FLAT = Bar("ratio_at_most", 3.0)
_MOST = Bar("ratio_at_least", 0.7)
# More callers only make the queue longer: the gateway's core is busy with 16.
_CALLERS = 64
_PART, _TIMES = 0.8, 2.0
_REFUSED = frozenset({429, 503})


@dataclass
class Outcomes:
    """What became of one phase's requests.

    Attributes:
        accepted_ms: of each answered well, from due to its last byte.
        refused_ms: of each refused.
        others: answers of any other kind, and broken connections.
        silent: refusals that do not say when to come again.
        seconds: from the first that was due to the last answer.
    """

    seconds: float = 0.0
    accepted_ms: list[float] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    silent: int = 0

    @property
    def rate(self) -> float:
        """Answered well, per second."""
        return len(self.accepted_ms) / self.seconds

    @property
    def refused_share(self) -> float:
        """Of all requests."""
        return len(self.refused_ms) / max(len(self.accepted_ms) + len(self.refused_ms) + self.others.total(), 1)

    def percentile(self, number: int) -> float:
        """Of what was answered well, milliseconds."""
        return quantiles(self.accepted_ms, n=100)[number - 1]


class Callers:
    """Asks one address, at a rate or by turns.

    Args:
        pool: the address.
        bodies: sent in turn.
    """

    def __init__(self, pool: HttpPool, bodies: Sequence[bytes]) -> None:
        self._pool = pool
        self._bodies = bodies

    async def by_turns(self, callers: int, seconds: float) -> Outcomes:
        """Each caller asks again once it is answered: what can be done at most."""
        outcomes, began = Outcomes(), time.perf_counter()
        ends_at = began + seconds

        async def ask(number: int) -> None:
            while (now := time.perf_counter()) < ends_at:
                await self._ask(number, now, outcomes)
                number += callers

        await asyncio.gather(*(ask(number) for number in range(callers)))
        outcomes.seconds = time.perf_counter() - began
        return outcomes

    async def at_rate(self, rate: float, seconds: float) -> Outcomes:
        """Requests come whatever becomes of those before them."""
        outcomes, began = Outcomes(), time.perf_counter()
        tasks = [
            asyncio.create_task(self._ask(number, due, outcomes))
            async for number, due in due_times(began, rate, int(rate * seconds))
        ]
        await asyncio.gather(*tasks)
        outcomes.seconds = time.perf_counter() - began
        return outcomes

    async def _ask(self, number: int, due: float, outcomes: Outcomes) -> None:
        try:
            answer = await self._pool.post(self._bodies[number % len(self._bodies)])
        except OSError as error:  # also TimeoutError
            outcomes.others[type(error).__name__] += 1
            return
        taken_ms = (time.perf_counter() - due) * 1e3
        if answer.status == 200:
            outcomes.accepted_ms.append(taken_ms)
        elif answer.status in _REFUSED:
            outcomes.refused_ms.append(taken_ms)
            outcomes.silent += b"\r\nretry-after:" not in answer.head.lower()
        else:
            outcomes.others[str(answer.status)] += 1


@dataclass
class Round:
    """One round.

    Attributes:
        capacity: answers per second by turns, before and after together.
        part: at a part of it; twice: at twice of it.
    """

    capacity: float
    part: Outcomes
    twice: Outcomes


async def measure(rig: Rig, effort: Effort) -> list[Figure]:
    """Both figures, from the same rounds.

    Raises:
        RuntimeError: a request was neither answered well nor refused with a word when to come again.
    """
    bodies = [protocol_body(image) for image in images(effort.gateway_distinct)]
    async with running_gateway(rig, await rig.topics("overload"), "overload") as url:
        with HttpPool(url) as pool:
            loop = HttpLoop(pool)
            await loop.first_answer(bodies[0])
            await loop.run(bodies, effort.gateway_rate / 4, 0)  # from now on there are only hits
            callers = Callers(pool, bodies)
            await callers.by_turns(_CALLERS, effort.overload_seconds / 2)
            rounds = [await _round(rig, effort, callers) for _ in range(effort.overload_rounds)]
    return _figures(rounds, effort)


async def _round(rig: Rig, effort: Effort, callers: Callers) -> Round:
    seconds = effort.overload_seconds
    before = await callers.by_turns(_CALLERS, seconds)
    part = await callers.at_rate(_PART * before.rate, seconds)
    twice = await callers.at_rate(_TIMES * before.rate, seconds)
    after = await callers.by_turns(_CALLERS, seconds)
    found = Round((before.rate + after.rate) / 2, part, twice)
    for name, one in (("by turns", before), (f"{_PART:g}x", part), (f"{_TIMES:g}x", twice), ("by turns", after)):
        rig.tell(
            f"gateway.overload: {name}: {one.rate:,.0f}/s, p50 {one.percentile(50):.1f} ms, p99 "
            f"{one.percentile(99):.1f} ms, refused {one.refused_share:.0%}"
        )
        if one.others or one.silent:
            raise RuntimeError(
                f"the gateway, asked {name}: {dict(one.others)}, {one.silent} refusals without Retry-After"
            )
    return found


def _figures(rounds: Sequence[Round], effort: Effort) -> list[Figure]:
    phase = f"{effort.overload_seconds:g} s each phase"
    notes = {
        "capacity_per_s": median(one.capacity for one in rounds),
        "refused_percent": 100 * median(one.twice.refused_share for one in rounds),
        "refusal_p50_ms": median(_median(one.twice.refused_ms) for one in rounds),
        "accepted_p50_ms": median(one.twice.percentile(50) for one in rounds),
        "part_p50_ms": median(one.part.percentile(50) for one in rounds),
        "part_refused_percent": 100 * median(one.part.refused_share for one in rounds),
    }
    return [
        paired(
            "gateway.overload_p99", "ms", [one.twice.percentile(99) for one in rounds],
            [one.part.percentile(99) for one in rounds], _FLAT,
            how=f"p99 of what was taken on at {_TIMES:g} times the capacity, {phase}, from due to the last byte",
            yardstick_how=f"the same at {_PART:g} of the capacity", notes=notes,
        ),
        paired(
            "gateway.overload_goodput", "requests/s", [one.twice.rate for one in rounds],
            [one.capacity for one in rounds], _MOST,
            how=f"answered well at {_TIMES:g} times the capacity, {phase}",
            yardstick_how=f"the capacity, before and after: {_CALLERS} callers, an answer followed by the next request",
        ),
    ]  # fmt: skip


def _median(numbers: Sequence[float]) -> float:
    return median(numbers) if numbers else 0.0
