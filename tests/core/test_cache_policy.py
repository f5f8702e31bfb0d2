"""cache_control: what its words let the cache do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.cache_policy import DEFAULT, CachePolicy, parse_cache_control
from schemas.errors import ErrorCode, WireError
from tests.schemas.records import FAST

NO_CACHE = CachePolicy(read=False, join=False)
NO_STORE = CachePolicy(store=False)
ONLY_IF_CACHED = CachePolicy(only_stored=True, join=False)


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        (None, CachePolicy(read=True, store=True, join=True, only_stored=False, max_age_s=None)),
        ("", DEFAULT),
        (" , ,", DEFAULT),
        ("public, stale-while-revalidate=5", DEFAULT),
        ("no-cache", NO_CACHE),
        ("No-Cache", NO_CACHE),
        ('no-cache="x"', NO_CACHE),
        ("no-store", NO_STORE),
        ("only-if-cached", ONLY_IF_CACHED),
        ("max-age=60", CachePolicy(max_age_s=60.0)),
        ('max-age="60"', CachePolicy(max_age_s=60.0)),
        ("max-age=0", CachePolicy(max_age_s=0.0)),
        ("max-age=60, max-age=5", CachePolicy(max_age_s=5.0)),
        ("no-cache, no-store", CachePolicy(read=False, store=False, join=False)),
        ("only-if-cached,max-age=1", CachePolicy(only_stored=True, join=False, max_age_s=1.0)),
        ("no-cache,only-if-cached", CachePolicy(read=False, join=False, only_stored=True)),
        (f"max-age={'9' * 200}", CachePolicy(max_age_s=float("9" * 200))),
    ],
)
def test_words_give_contract_policies(text: str | None, policy: CachePolicy) -> None:
    """Each word of the contract means what RFC 9111 says, unknown words mean nothing."""
    assert parse_cache_control(text) == policy


@pytest.mark.parametrize("argument", ["", "=", "=-1", "=1.5", "=1s", "=x", "=٣", '="', "=1 0", "=0x10"])
def test_max_age_needs_whole_seconds(argument: str) -> None:
    """A max-age that is no number of seconds is INVALID_REQUEST naming the field."""
    with pytest.raises(WireError) as caught:
        parse_cache_control(f"no-store, max-age{argument}")
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert caught.value.message.startswith("cache_control: max-age needs whole seconds, got ")


@FAST
@given(st.lists(st.sampled_from(["no-cache", "no-store", "only-if-cached", "max-age=7", "other=1"]), max_size=5))
def test_words_add_up_in_any_order(words: list[str]) -> None:
    """Words restrict independently: their order and their repetition do not matter."""
    expected = CachePolicy(
        read="no-cache" not in words,
        store="no-store" not in words,
        join="no-cache" not in words and "only-if-cached" not in words,
        only_stored="only-if-cached" in words,
        max_age_s=7.0 if "max-age=7" in words else None,
    )
    assert parse_cache_control(",".join(words)) == expected == parse_cache_control(" , ".join(reversed(words)).upper())


@FAST
@given(st.text(max_size=40))
def test_any_text_is_policy_or_refusal(text: str) -> None:
    """Whatever text arrives, it is a policy or INVALID_REQUEST."""
    try:
        assert isinstance(parse_cache_control(text), CachePolicy)
    except WireError as error:
        assert error.code is ErrorCode.INVALID_REQUEST  # noqa: PT017 - either outcome is legal
