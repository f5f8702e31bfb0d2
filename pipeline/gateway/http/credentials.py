"""Which API key a request brings, and whether its tenant may come now."""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

from pipeline.adapters.redis_rate_limits import RateLimits
from pipeline.core.api_keys import opens, parse_key
from pipeline.core.rate_limit import Allowance, Rate, policy_of, rate_of
from schemas.api_key import ApiKeyRecord

# Tenants counted by name. Keys are few; a thousand names are 2,000 lines of metrics, 200 kB at each scrape.
TENANTS_NAMED_MAX = 1000
# All tenants past so many together; one that is called so is among them.
OTHER_TENANTS = "other"

Outcome = Literal["allowed", "refused"]


class KeyRefused(Exception):  # noqa: N818 - a state, not a mistake
    """No key, or none that is known; the message says what was expected and never what was sent."""


class RateExceeded(Exception):  # noqa: N818 - a state, not a mistake
    """The tenant's rate is used up.

    Args:
        retry_after_s: when the next request may come.
        quota: of the tenant.
    """

    def __init__(self, retry_after_s: float, quota: "Quota") -> None:
        super().__init__(f"the rate of this API key's tenant is used up: try again in {retry_after_s:.3f} s")
        self.retry_after_s = retry_after_s
        self.quota = quota


class Quota(NamedTuple):
    """What a tenant may, and what it has left of it."""

    rate: Rate
    allowance: Allowance

    def headers(self) -> list[tuple[bytes, bytes]]:
        """`RateLimit-Policy` and `RateLimit`, as draft-ietf-httpapi-ratelimit-headers-10 has them.

        `t` is when more than `r` requests may come: of a refused one, its `Retry-After`.
        """
        policy = policy_of(self.rate)
        more_in_s = max(math.ceil(self.allowance.more_in_s), 1)
        return [
            (b"ratelimit-policy", b'"tenant";q=%d;w=%d' % policy),
            (b"ratelimit", b'"tenant";r=%d;t=%d' % (self.allowance.remaining, more_in_s)),
        ]


class Holder(NamedTuple):
    """Who holds a key: the tenant (None: requests without one), and the key's id for the log."""

    tenant: str | None
    key_id: str


class Credentials:
    """The keys there are: whoever follows their topic says so (`adapters.keys_topic.KeysFollower`).

    Args:
        limits: counts what passes.

    Attributes:
        limits: the same.
        admitted: requests that hand in work, by tenant ("": requests without one) and outcome.
    """

    def __init__(self, limits: RateLimits) -> None:
        self._records: dict[str, ApiKeyRecord] = {}
        self.limits = limits
        self.admitted: dict[str, dict[Outcome, int]] = {}

    def __len__(self) -> int:
        return len(self._records)

    def take(self, record: ApiKeyRecord) -> None:
        """A key is there, or is another one now."""
        self._records[record.id] = record

    def drop(self, key_id: str) -> None:
        """A key was revoked."""
        self._records.pop(key_id, None)

    def holder(self, headers: Mapping[str, str]) -> Holder:
        """Whose the key in a request's headers is: `Authorization: Bearer …` or `X-API-Key`.

        Raises:
            KeyRefused: there is none, or none that is known.
        """
        scheme, _, text = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            text = headers.get("x-api-key", "")
        if not text:
            raise KeyRefused("an API key is needed: Authorization: Bearer ipk_…, or X-API-Key")
        key = parse_key(text.strip())
        record = None if key is None else self._records.get(key.id)
        if key is None or record is None or not opens(key, record):
            raise KeyRefused("this API key is not known, or was revoked")
        return Holder(record.tenant or None, record.id)

    async def admit(self, key_id: str) -> Quota | None:
        """Counts one more request of a key's tenant.

        Returns:
            What is left of its rate; None for a key without one.

        Raises:
            RateExceeded: it comes too soon.
        """
        record = self._records.get(key_id)
        if record is None:
            return None  # revoked since it was looked at
        if record.rate is None:
            self._count(record.tenant, "allowed")
            return None
        rate = rate_of(record.rate, record.burst)
        permission = await self.limits.ask(record.tenant, rate)
        quota = Quota(rate, permission.allowance)
        self._count(record.tenant, "refused" if permission.retry_after_s else "allowed")
        if permission.retry_after_s:
            raise RateExceeded(permission.retry_after_s, quota)
        return quota

    def _count(self, tenant: str, outcome: Outcome) -> None:
        if tenant not in self.admitted and len(self.admitted) >= TENANTS_NAMED_MAX:
            tenant = OTHER_TENANTS
        self.admitted.setdefault(tenant, {"allowed": 0, "refused": 0})[outcome] += 1
