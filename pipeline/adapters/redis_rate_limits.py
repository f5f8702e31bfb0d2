"""How often each tenant may come, counted over all gateways in Redis, and by each for itself while Redis is away."""

import asyncio
import random
from typing import Literal, NamedTuple

from redis.exceptions import RedisError

from pipeline.adapters.redis_connection import RedisGate, client_of, exchange_on, packed
from pipeline.config import RedisSettings
from pipeline.core.circuit_breaker import Circuit
from pipeline.core.rate_limit import Allowance, Rate, allowance_of, judge
from pipeline.ports import Clock

# A request waits no longer for its permission; a look costs 0.15 ms on one host.
_BUDGET_S = 0.1
# `core.rate_limit.judge` on the server: its clock is the one that all gateways share. ARGV: seconds of a step, burst.
# It answers how long to wait, and how far the arrival time is ahead, both in seconds.
_SCRIPT = b"""
local step, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local due = math.max(tonumber(redis.call('GET', KEYS[1])) or 0, now)
local wait = due - now - (burst - 1) * step
if wait > 1e-6 then
  return string.format('%.6f %.6f', wait, due - now)
end
redis.call('SET', KEYS[1], string.format('%.6f', due + step), 'PX', math.ceil((burst + 1) * step * 1000) + 1000)
return string.format('0 %.6f', due + step - now)
"""
# Tenants counted here while Redis is away; past so many the one that came first is forgotten.
_TENANTS_MAX = 10_000


# Who counted: Redis, for all gateways; this gateway, for itself.
CountedBy = Literal["redis", "gateway"]


class Permission(NamedTuple):
    """What becomes of one request.

    Attributes:
        retry_after_s: 0: it may pass, and is counted; else after how many seconds the next one may.
        allowance: what is left after it.
        counted_by: who says so.
    """

    retry_after_s: float
    allowance: Allowance
    counted_by: CountedBy


class RateLimits:
    """Says whether a tenant's next request may pass.

    While Redis is away each gateway counts for itself: what passes is at most the limit times the gateways.

    Args:
        settings: where Redis is; None: there is none.
        prefix: of its keys.
        clock: this process's time.
        rng: the jitter of the pauses between tries.

    Attributes:
        are_shared: Redis counts for all gateways; False where there is none, and while it is away.
        counts: requests judged, by who counted them.
    """

    def __init__(self, settings: RedisSettings | None, prefix: str, clock: Clock, rng: random.Random) -> None:
        self._client = client_of(settings) if settings is not None else None
        self._prefix = f"{prefix}rate:".encode()
        self._clock = clock
        meanwhile = "each gateway counts for itself"
        self._gate = RedisGate("rates are not counted in Redis", rng, clock, meanwhile=meanwhile)
        self._own: dict[str, float] = {}
        self.counts: dict[CountedBy, int] = {"redis": 0, "gateway": 0}

    @property
    def are_shared(self) -> bool:
        """Whether what passes at one gateway counts at the others."""
        return self._client is not None and self._gate.breaker.state is Circuit.CLOSED

    async def ask(self, tenant: str, rate: Rate) -> Permission:
        """Whether a tenant's next request may pass; it is counted if it may."""
        now = self._clock.monotonic()
        if self._client is not None and self._gate.breaker.allows(now):
            self._gate.breaker.asking(now)
            try:
                wait_s, ahead_s = await self._ask(tenant, rate)
            except (RedisError, OSError) as error:
                self._gate.failed(error)
            else:
                self._gate.answered()
                return self._permission(rate, wait_s, ahead_s, "redis")
        now = self._clock.monotonic()
        verdict = judge(rate, self._own.pop(tenant, None), now)
        self._own[tenant] = verdict.arrival
        if len(self._own) > _TENANTS_MAX:
            del self._own[next(iter(self._own))]
        return self._permission(rate, verdict.retry_after_s, verdict.arrival - now, "gateway")

    async def close(self) -> None:
        """Ends the connections. Idempotent."""
        if self._client is not None:
            await self._client.aclose()

    def _permission(self, rate: Rate, wait_s: float, ahead_s: float, counted_by: CountedBy) -> Permission:
        self.counts[counted_by] += 1
        return Permission(wait_s, allowance_of(rate, ahead_s), counted_by)

    async def _ask(self, tenant: str, rate: Rate) -> tuple[float, float]:
        """How long to wait, and how far the arrival time is ahead, seconds."""
        assert self._client is not None, "the caller looked"
        name = self._prefix + tenant.encode("utf-8", "surrogatepass")
        step, burst = f"{1 / rate.per_s:.9f}".encode(), b"%d" % rate.burst
        async with asyncio.timeout(_BUDGET_S), exchange_on(self._client) as exchange:
            await exchange.send(packed(b"EVAL", _SCRIPT, b"1", name, step, burst))
            reply = await exchange.reply()
        if isinstance(reply, Exception):
            raise reply
        wait_s, ahead_s = map(float, reply.split())
        return wait_s, ahead_s
