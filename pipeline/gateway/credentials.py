"""Which API key a request brings, and whether its tenant may come now."""

from collections.abc import Mapping
from typing import NamedTuple

from pipeline.adapters.redis_rate_limits import RateLimits
from pipeline.core.api_keys import opens, parse_key
from pipeline.core.rate_limit import rate_of
from schemas.api_key import ApiKeyRecord


class KeyRefused(Exception):  # noqa: N818 - a state, not a mistake
    """No key, or none that is known; the message says what was expected and never what was sent."""


class RateExceeded(Exception):  # noqa: N818 - a state, not a mistake
    """The tenant's rate is used up.

    Args:
        retry_after_s: when the next request may come.
    """

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"the rate of this API key's tenant is used up: try again in {retry_after_s:.3f} s")
        self.retry_after_s = retry_after_s


class Holder(NamedTuple):
    """Who holds a key: the tenant (None: requests without one), and the key's id for the log."""

    tenant: str | None
    key_id: str


class Credentials:
    """The keys there are: whoever follows their topic says so (`adapters.keys_topic.KeysFollower`).

    Args:
        limits: counts what passes.
    """

    def __init__(self, limits: RateLimits) -> None:
        self._records: dict[str, ApiKeyRecord] = {}
        self._limits = limits

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

    async def admit(self, key_id: str) -> None:
        """Counts one more request of a key's tenant.

        Raises:
            RateExceeded: it comes too soon.
        """
        record = self._records.get(key_id)
        if record is None or record.rate is None:
            return
        wait_s = await self._limits.retry_after_s(record.tenant, rate_of(record.rate, record.burst))
        if wait_s:
            raise RateExceeded(wait_s)
