"""API keys at the gateway: who is let in, as whom, and how often."""

import random
from datetime import UTC, datetime

import pytest

from pipeline.adapters.redis_rate_limits import RateLimits
from pipeline.adapters.system import SystemClock
from pipeline.core.api_keys import ApiKey, make_key, record_of
from pipeline.gateway.http.credentials import OTHER_TENANTS, TENANTS_NAMED_MAX, Credentials, KeyRefused, RateExceeded

NOW = datetime(2026, 11, 27, tzinfo=UTC)
KEY = make_key(bytes(range(40)))


@pytest.fixture
def credentials() -> Credentials:
    """With one key, of the tenant acme, with a burst of two."""
    made = Credentials(RateLimits(None, "x.", SystemClock(), random.Random(1)))
    made.take(record_of(KEY, tenant="acme", label="", rate=0.01, burst=2, now=NOW))
    return made


@pytest.mark.parametrize(
    "headers",
    [{"authorization": f"Bearer {KEY}"}, {"authorization": f"bearer  {KEY}"}, {"x-api-key": str(KEY)},
     {"authorization": "Basic abc", "x-api-key": str(KEY)}],
)  # fmt: skip
def test_key_says_whose_a_request_is(credentials: Credentials, headers: dict[str, str]) -> None:
    """Either header brings the tenant, and the key's id for the log."""
    holder = credentials.holder(headers)
    assert (holder.tenant, holder.key_id) == ("acme", KEY.id)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, "is needed"),
        ({"authorization": "Bearer "}, "is needed"),
        ({"authorization": f"Basic {KEY}"}, "is needed"),
        ({"authorization": "Bearer secret"}, "not known"),
        ({"authorization": f"Bearer {ApiKey(KEY.id, 'a' * 43)}"}, "not known"),
        ({"x-api-key": f"{make_key(bytes(40))}"}, "not known"),
    ],
)
def test_others_are_refused_without_a_hint(credentials: Credentials, headers: dict[str, str], expected: str) -> None:
    """A wrong secret, an unknown id and no key at all are refused, and the message repeats nothing of it."""
    with pytest.raises(KeyRefused, match=expected) as caught:
        credentials.holder(headers)
    assert "a" * 43 not in str(caught.value)
    assert KEY.secret not in str(caught.value)


def test_revoked_key_is_refused(credentials: Credentials) -> None:
    """From the moment on that its record is gone."""
    credentials.drop(KEY.id)
    credentials.drop(KEY.id)
    with pytest.raises(KeyRefused, match="revoked"):
        credentials.holder({"x-api-key": str(KEY)})


async def test_rate_of_the_tenant_is_kept(credentials: Credentials) -> None:
    """After its burst a tenant is told when to come again; a key without a rate is never held up."""
    holder = credentials.holder({"x-api-key": str(KEY)})
    await credentials.admit(holder.key_id)
    await credentials.admit(holder.key_id)
    with pytest.raises(RateExceeded) as caught:
        await credentials.admit(holder.key_id)
    assert 99 < caught.value.retry_after_s <= 100
    free = make_key(bytes(40))
    credentials.take(record_of(free, tenant="", label="", rate=None, burst=None, now=NOW))
    holder = credentials.holder({"x-api-key": str(free)})
    assert holder.tenant is None
    for _ in range(5):
        await credentials.admit(holder.key_id)


async def test_requests_are_counted_by_tenant(credentials: Credentials) -> None:
    """Allowed and refused ones, by the tenant of the key, with a rate or without; what is no key's is nobody's."""
    free = make_key(bytes(40))
    credentials.take(record_of(free, tenant="", label="", rate=None, burst=None, now=NOW))
    for _ in range(3):
        await credentials.admit(free.id)
    await credentials.admit("f" * 16)
    for _ in range(2):
        await credentials.admit(KEY.id)
    with pytest.raises(RateExceeded):
        await credentials.admit(KEY.id)
    assert credentials.admitted == {"": {"allowed": 3, "refused": 0}, "acme": {"allowed": 2, "refused": 1}}


async def test_tenants_past_the_limit_are_counted_together(credentials: Credentials) -> None:
    """However many keys there are, the names in the metrics are bounded, and no request is lost from the counts."""
    for number in range(TENANTS_NAMED_MAX + 20):
        key = make_key(number.to_bytes(40, "big"))
        credentials.take(record_of(key, tenant=f"t-{number}", label="", rate=None, burst=None, now=NOW))
        await credentials.admit(key.id)
    assert len(credentials.admitted) == TENANTS_NAMED_MAX + 1
    assert credentials.admitted[OTHER_TENANTS]["allowed"] == 20
    assert sum(outcomes["allowed"] for outcomes in credentials.admitted.values()) == TENANTS_NAMED_MAX + 20
