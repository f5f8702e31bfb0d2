"""Calls to hosts and the lines before them: bounds, turns, and what is sent away."""

import asyncio
import random

import pytest

from pipeline.webhooks.in_flight import HostLines, InHand
from tests.simulation.virtual_time import settle, simulated, the_clock


def lines(**changes: int) -> HostLines:
    """Two calls in all, one to each host, lines of two, hosts of 25 bytes."""
    bounds = {"calls_max": 2, "per_host_max": 1, "count_max": 8, "bytes_max": 100} | changes
    return HostLines(bounds.pop("calls_max"), bounds.pop("per_host_max"), **bounds)


@simulated
async def test_slow_host_leaves_calls_to_others() -> None:
    """A host that has its calls has no more, whoever else waits; another one has its own at once."""
    hosts = lines()
    assert await hosts.enter("slow", 1)
    waiting = asyncio.create_task(hosts.enter("slow", 1))
    await settle()
    assert await hosts.enter("quick", 1, wait_s=0)
    assert (hosts.calls, hosts.hosts, waiting.done()) == (2, 2, False)
    hosts.leave("slow", 1)
    assert await waiting
    hosts.leave("slow", 1)
    hosts.leave("quick", 1)
    assert (hosts.calls, hosts.hosts) == (0, 0)


@simulated
async def test_line_is_left_when_it_takes_too_long() -> None:
    """Who waits for too long is sent away, and the next one keeps its place."""
    hosts = lines()
    assert await hosts.enter("a", 1)
    impatient = asyncio.create_task(hosts.enter("a", 1, wait_s=1.0))
    patient = asyncio.create_task(hosts.enter("a", 1, wait_s=9.0))
    await asyncio.sleep(2)
    assert impatient.result() is False
    hosts.leave("a", 1)
    assert await patient


@simulated
async def test_full_line_is_told_at_once() -> None:
    """A line has a quarter of what may be in hand, in number and in bytes; a single large one is let in."""
    hosts, began = lines(), the_clock().monotonic()
    assert await hosts.enter("a", 1000)
    assert not await hosts.enter("a", 1)
    hosts.leave("a", 1000)
    assert await hosts.enter("a", 1)
    waiting = [asyncio.create_task(hosts.enter("a", 1)) for _ in range(2)]
    await settle()
    assert not await hosts.enter("a", 1)
    assert the_clock().monotonic() == began
    hosts.close()
    assert [await one for one in waiting] == [False, False]
    assert not await hosts.enter("b", 1)
    hosts.leave("a", 1)
    assert (hosts.calls, hosts.hosts) == (0, 0)


@simulated
async def test_hosts_take_turns_where_calls_are_scarce() -> None:
    """A line of many lets the only one of another host pass after its next."""
    hosts = lines(calls_max=1, per_host_max=1, count_max=100)
    assert await hosts.enter("busy", 1)
    order: list[str] = []

    async def call(name: str) -> None:
        assert await hosts.enter(name, 1)
        order.append(name)
        hosts.leave(name, 1)

    await asyncio.gather(*(call(name) for name in ["busy"] * 3 + ["other"]), _leave_later(hosts))
    assert order[:2] in (["busy", "other"], ["other", "busy"])


async def _leave_later(hosts: HostLines) -> None:
    await settle()
    hosts.leave("busy", 1)


@pytest.mark.parametrize("seed", range(30))
def test_bounds_hold_whatever_happens(seed: int) -> None:
    """Calls, times, cancellations in any order: never more calls than allowed, and nothing is left over at the end."""

    @simulated
    async def scenario() -> None:
        rng = random.Random(seed)
        hosts = HostLines(3, 2, count_max=20, bytes_max=400)
        out = dict.fromkeys("abc", 0)

        async def one() -> None:
            name, size = rng.choice("abc"), rng.randint(0, 40)
            await asyncio.sleep(rng.random() * 3)
            if not await hosts.enter(name, size, wait_s=rng.choice([0.0, 0.5, 5.0])):
                return
            out[name] += 1
            assert out[name] <= 2
            assert sum(out.values()) <= 3
            assert hosts.calls >= sum(out.values())
            try:
                await asyncio.sleep(rng.choice([0.0, 0.1, 2.0]))
            finally:
                out[name] -= 1
                hosts.leave(name, size)

        tasks = [asyncio.create_task(one()) for _ in range(60)]
        for task in tasks[::3]:
            await asyncio.sleep(rng.random() * 0.2)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert [task.exception() for task in tasks if not task.cancelled()] == [None] * sum(
            not task.cancelled() for task in tasks
        )
        assert (hosts.calls, hosts.hosts) == (0, 0)

    scenario()


def test_records_in_hand_are_bounded() -> None:
    """Number and bytes have their bounds; one that is larger than all bytes is taken alone."""
    hand = InHand(2, 100)
    assert not hand.is_full(1000)
    hand.begin(60)
    assert not hand.is_full(40)
    assert hand.is_full(41)
    hand.begin(1)
    assert hand.is_full(0)
    hand.end(60)
    assert not hand.is_full(99)
