"""Rates over several gateways, on the real Redis and without it."""

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from pipeline.adapters.redis_rate_limits import RateLimits
from pipeline.adapters.system import SystemClock
from pipeline.config import RedisSettings
from pipeline.core.rate_limit import Rate
from tests.live.stack import LiveStack

pytestmark = [pytest.mark.live, pytest.mark.timeout(60)]

SLOW = Rate(0.01, 5)


def limits(url: str | None, prefix: str) -> RateLimits:
    """One gateway's."""
    settings = RedisSettings(url=url) if url is not None else None
    return RateLimits(settings, prefix, SystemClock(), random.Random(1))


@pytest.fixture
async def gateways(stack: LiveStack) -> AsyncIterator[list[RateLimits]]:
    """Two that share a Redis."""
    prefix = f"{random.randbytes(8).hex()}."
    both = [limits(stack.redis_url, prefix) for _ in range(2)]
    yield both
    for one in both:
        await one.close()


async def test_gateways_share_a_tenants_burst(gateways: list[RateLimits]) -> None:
    """What passes at one is counted at the other, at once too, and no tenant is another's."""
    asked = [gateways[number % 2].ask("acme", SLOW) for number in range(40)]
    permissions = await asyncio.gather(*asked)
    waits = [permission.retry_after_s for permission in permissions]
    assert sum(wait == 0 for wait in waits) == SLOW.burst
    assert all(99 < wait <= 100 for wait in waits if wait)
    assert {permission.counted_by for permission in permissions} == {"redis"}
    assert (await gateways[0].ask("other", SLOW)).retry_after_s == 0
    assert sum(gateway.counts["redis"] for gateway in gateways) == 41
    assert all(gateway.are_shared for gateway in gateways)


async def test_what_is_left_is_told_by_redis_as_by_ourselves(gateways: list[RateLimits]) -> None:
    """Each permission says how many more may come at once, and when one more than these; a refusal, when the next."""
    alone = limits(None, "x.")
    told = [(await gateways[number % 2].ask("acme", SLOW), await alone.ask("acme", SLOW)) for number in range(7)]
    for number, both in enumerate(told):
        for permission in both:
            assert permission.allowance.remaining == max(SLOW.burst - 1 - number, 0)
            assert 99 < permission.allowance.more_in_s <= 100.001
            if permission.retry_after_s:
                assert abs(permission.allowance.more_in_s - permission.retry_after_s) < 0.001
    assert [permission.counted_by for permission in told[0]] == ["redis", "gateway"]


async def test_gateway_without_redis_counts_for_itself() -> None:
    """Where there is none, and where none answers, a gateway lets a burst through and no more."""
    for url in (None, "redis://127.0.0.1:1"):
        alone = limits(url, "x.")
        waits = [(await alone.ask("acme", SLOW)).retry_after_s for _ in range(9)]
        assert [wait == 0 for wait in waits] == [True] * SLOW.burst + [False] * 4
        assert (alone.counts, alone.are_shared) == ({"redis": 0, "gateway": 9}, False)
        await alone.close()
