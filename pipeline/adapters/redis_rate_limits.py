"""How often each tenant may come, counted over all gateways in Redis, and by each for itself while Redis is away."""

import asyncio
import random

from redis.exceptions import RedisError

from pipeline.adapters.redis_connection import RedisGate, client_of, exchange_on, packed
from pipeline.config import RedisSettings
from pipeline.core.rate_limit import Rate, judge
from pipeline.ports import Clock

# A request waits no longer for its permission; a look costs 0.15 ms on one host.
_BUDGET_S = 0.1
# `core.rate_limit.judge` on the server: its clock is the one that all gateways share. ARGV: seconds of a step, burst.
_SCRIPT = b"""
local step, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local due = math.max(tonumber(redis.call('GET', KEYS[1])) or 0, now)
local wait = due - now - (burst - 1) * step
if wait > 1e-6 then
  return string.format('%.6f', wait)
end
redis.call('SET', KEYS[1], string.format('%.6f', due + step), 'PX', math.ceil((burst + 1) * step * 1000) + 1000)
return '0'
"""
# Tenants counted here while Redis is away; past so many the one that came first is forgotten.
_TENANTS_MAX = 10_000


class RateLimits:
    """Says whether a tenant's next request may pass.

    While Redis is away each gateway counts for itself: what passes is at most the limit times the gateways.

    Args:
        settings: where Redis is; None: there is none.
        prefix: of its keys.
        clock: this process's time.
        rng: the jitter of the pauses between tries.
    """

    def __init__(self, settings: RedisSettings | None, prefix: str, clock: Clock, rng: random.Random) -> None:
        self._client = client_of(settings) if settings is not None else None
        self._prefix = f"{prefix}rate:".encode()
        self._clock = clock
        meanwhile = "each gateway counts for itself"
        self._gate = RedisGate("rates are not counted in Redis", rng, clock, meanwhile=meanwhile)
        self._own: dict[str, float] = {}

    async def retry_after_s(self, tenant: str, rate: Rate) -> float:
        """0: the request may pass, and is counted; else after how many seconds the next one may."""
        now = self._clock.monotonic()
        if self._client is not None and self._gate.breaker.allows(now):
            self._gate.breaker.asking(now)
            try:
                found = await self._ask(tenant, rate)
            except (RedisError, OSError) as error:
                self._gate.failed(error)
            else:
                self._gate.answered()
                return found
        verdict = judge(rate, self._own.pop(tenant, None), self._clock.monotonic())
        self._own[tenant] = verdict.arrival
        if len(self._own) > _TENANTS_MAX:
            del self._own[next(iter(self._own))]
        return verdict.retry_after_s

    async def close(self) -> None:
        """Ends the connections. Idempotent."""
        if self._client is not None:
            await self._client.aclose()

    async def _ask(self, tenant: str, rate: Rate) -> float:
        assert self._client is not None, "the caller looked"
        name = self._prefix + tenant.encode("utf-8", "surrogatepass")
        step, burst = f"{1 / rate.per_s:.9f}".encode(), b"%d" % rate.burst
        async with asyncio.timeout(_BUDGET_S), exchange_on(self._client) as exchange:
            await exchange.send(packed(b"EVAL", _SCRIPT, b"1", name, step, burst))
            reply = await exchange.reply()
        if isinstance(reply, Exception):
            raise reply
        return float(reply)
