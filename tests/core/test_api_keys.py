"""API keys: what is kept opens for the very key, and says nothing of it."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.api_keys import ApiKey, make_key, opens, parse_key, record_of
from schemas.api_key import ApiKeyRecord

NOW = datetime(2026, 11, 27, tzinfo=UTC)
RANDOM = st.binary(min_size=40, max_size=40)


def kept(key: ApiKey) -> ApiKeyRecord:
    """What is kept of a key."""
    return record_of(key, tenant="acme", label="", rate=None, burst=None, now=NOW)


@given(RANDOM)
def test_key_is_read_back_and_opens_its_record(random: bytes) -> None:
    """The text that an owner has is the key, and the secret is in nothing that is kept or shown."""
    key = make_key(random)
    record = kept(key)
    assert parse_key(str(key)) == key
    assert opens(key, record)
    assert key.secret not in record.model_dump_json()
    assert key.secret not in repr(key)


@given(RANDOM, RANDOM)
def test_other_keys_open_nothing(one: bytes, other: bytes) -> None:
    """Neither another secret under the same id nor another id with the same secret is taken."""
    key, stranger = make_key(one), make_key(other)
    if one[8:] != other[8:]:
        assert not opens(ApiKey(key.id, stranger.secret), kept(key))
    if one[:8] != other[:8]:
        assert not opens(ApiKey(stranger.id, key.secret), kept(key))


@pytest.mark.parametrize(
    "text",
    ["", "ipk_", "ipk_0011223344556677_", "pk_0011223344556677_" + "a" * 43, "ipk_001122334455667_" + "a" * 43,
     "ipk_00112233445566GG_" + "a" * 43, "ipk_0011223344556677_" + "a" * 42, "ipk_0011223344556677_" + "a" * 44,
     "ipk_0011223344556677_" + "é" * 43, " ipk_0011223344556677_" + "a" * 43,
     "ipk_0011223344556677_" + "a" * 43 + "\n"],
)  # fmt: skip
def test_what_is_no_key_is_none(text: str) -> None:
    """Only the very form is a key."""
    assert parse_key(text) is None


def test_key_needs_its_random_bytes() -> None:
    """A key is never made of fewer."""
    with pytest.raises(ValueError, match="40 random bytes, not 39"):
        make_key(bytes(39))
