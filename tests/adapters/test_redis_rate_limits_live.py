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
    asked = [gateways[number % 2].retry_after_s("acme", SLOW) for number in range(40)]
    waits = await asyncio.gather(*asked)
    assert sum(wait == 0 for wait in waits) == SLOW.burst
    assert all(99 < wait <= 100 for wait in waits if wait)
    assert await gateways[0].retry_after_s("other", SLOW) == 0


async def test_gateway_without_redis_counts_for_itself() -> None:
    """Where there is none, and where none answers, a gateway lets a burst through and no more."""
    for url in (None, "redis://127.0.0.1:1"):
        alone = limits(url, "x.")
        waits = [await alone.retry_after_s("acme", SLOW) for _ in range(9)]
        assert [wait == 0 for wait in waits] == [True] * SLOW.burst + [False] * 4
        await alone.close()
