"""The life of versions, as records tell it: what answers, what drains, what leaves, what is never tried again."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.version_life import (
    NOTICE,
    Found,
    changing,
    may_leave,
    next_record,
    next_step_at,
    promoted,
    with_canary,
    withdrawn,
    without_canary,
)
from pipeline.errors import PromotionError
from schemas.registry import ModelRecord, ModelSignature, TensorSpec

NOW = datetime(2026, 1, 2, tzinfo=UTC)
DRAIN = timedelta(seconds=30)
SIGNATURE = ModelSignature(
    inputs=(TensorSpec(name="x", datatype="FP32", dims=(2,)),),
    outputs=(TensorSpec(name="y", datatype="FP32", dims=(2,)),),
    max_batch_size=8,
)


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def found(
    good: str, selected: str = "", rejected: dict[str, tuple[str, str]] | None = None, promotes: bool = True
) -> Found:
    """Versions by digit: `found("12", "2")`; the fingerprint of version 1 is f1."""
    contents = {number: f"f{number}" for number in good}
    return Found(contents, set(selected or good), rejected or {}, SIGNATURE if good else None, promotes)


def step(before: ModelRecord | None, what: Found, seconds: float = 0.0) -> ModelRecord:
    record = next_record("m", what, before, at(seconds), DRAIN)
    assert record is not None
    return ModelRecord.model_validate_json(record.model_dump_json())


def states(record: ModelRecord) -> dict[str, str]:
    return {number: version.state for number, version in record.versions.items()}


def test_first_announcement_counts_at_once() -> None:
    """A model nobody served before is answered from now on, by its highest version."""
    contents = {"9": "a", "10": "b"}
    record = next_record("m", Found(contents, set(contents), {}, SIGNATURE), None, NOW, DRAIN)
    assert record is not None
    assert (record.default_version, record.previous_version, record.effective_at) == ("10", None, NOW)
    assert list(record.versions) == ["9", "10"]
    assert set(states(record).values()) == {"ready"}


def test_promotion_counts_two_seconds_later() -> None:
    """A higher version takes over with notice, and the one before it stays ready."""
    second = step(step(None, found("1")), found("12", "2"), 10)
    assert (second.default_version, second.previous_version, second.effective_at) == ("2", "1", at(12))
    assert states(second) == {"1": "ready", "2": "ready"}


def test_nothing_new_is_the_same_record() -> None:
    """A pass that finds what is announced has nothing to publish, whatever the time."""
    for what in (found("12"), found("12", "12", {"3": ("bad", "why")}), found("", "1", {"1": ("bad", "why")})):
        first = step(None, what)
        assert step(first, what, 3600) == first


def test_new_content_keeps_the_default() -> None:
    """New content under the same number changes the fingerprint alone."""
    first = step(None, found("1"))
    second = step(first, Found({"1": "other"}, {"1"}, {}, SIGNATURE), 10)
    assert (second.versions["1"].fingerprint, second.versions["1"].since) == ("other", at(10))
    assert (second.default_version, second.effective_at) == ("1", NOW)


def test_failed_choice_leaves_the_live_version() -> None:
    """When no version of the owner's choice is good, what answered goes on answering, and the reason is told."""
    second = step(step(None, found("1")), found("1", "2", {"2": ("bad", "no weights")}), 10)
    assert (second.default_version, second.effective_at) == ("1", NOW)
    assert states(second) == {"1": "ready", "2": "rejected"}
    assert second.versions["2"].reason == "no weights"


def test_rejected_content_beside_an_older_good_one_is_remembered() -> None:
    """A version whose newer content was rejected serves on as it was, and says what was rejected and why."""
    second = step(step(None, found("1")), found("1", "1", {"1": ("newer", "answers wrongly")}), 10)
    version = second.versions["1"]
    assert (version.state, version.fingerprint, version.since) == ("ready", "f1", NOW)
    assert (version.rejected_fingerprint, version.reason) == ("newer", "answers wrongly")


def test_version_before_the_previous_drains_then_leaves() -> None:
    """It is served for the drain time, then told as unloaded, and taken away once every worker knows."""
    third = step(step(step(None, found("1")), found("12", "2"), 10), found("123", "3"), 20)
    assert states(third) == {"1": "draining", "2": "ready", "3": "ready"}
    assert next_step_at(third, DRAIN) == at(50)
    assert step(third, found("123", "3"), 49) == third
    told = step(third, found("123", "3"), 50)
    assert states(told)["1"] == "unloaded"
    assert next_step_at(told, DRAIN) == at(52)
    assert not may_leave(told.versions["1"], at(51.9))
    assert may_leave(told.versions["1"], at(52))
    assert step(told, found("123", "3"), 51) == told
    left = step(told, found("23", "3"), 52)
    assert states(left) == {"2": "ready", "3": "ready"}
    assert next_step_at(left, DRAIN) is None


def test_draining_version_that_is_chosen_again_is_ready() -> None:
    """An owner who names it again, or an operator, keeps a version from being unloaded."""
    third = step(step(step(None, found("1")), found("12", "2"), 10), found("123", "3"), 20)
    assert states(step(third, found("123", "13"), 30))["1"] == "ready"
    again = promoted(third, "1", at(30))
    assert (again.default_version, again.previous_version, states(again)["1"]) == ("1", "3", "ready")
    assert states(step(again, found("123", "3"), 90)) == {"1": "ready", "2": "draining", "3": "ready"}


def test_rollback_holds_what_it_turned_away_from_and_nothing_newer() -> None:
    """The version before answers with notice; the one turned away from stays away, the next one takes over."""
    second = step(step(None, found("1")), found("12"), 10)
    back = promoted(second, "1", at(20))
    assert (back.default_version, back.previous_version, back.held) == ("1", "2", ("2",))
    assert back.effective_at == at(20) + NOTICE
    assert step(back, found("12"), 30) == back
    newer = step(back, found("123"), 40)
    assert (newer.default_version, newer.held) == ("3", ("2",))


def test_promotion_done_twice_changes_nothing() -> None:
    """A command that two watchers obey counts once."""
    back = promoted(step(step(None, found("1")), found("12"), 10), "1", at(20))
    assert promoted(back, "1", at(25)) == back


@pytest.mark.parametrize("number", ["2", "9"])
def test_what_is_not_served_cannot_be_promoted(number: str) -> None:
    """The error says what it is instead, why, and what there is."""
    record = step(None, found("1", "1", {"2": ("bad", "no weights")}))
    with pytest.raises(PromotionError, match=r"version \d (is rejected \(no weights\)|is not there); served: 1"):
        promoted(record, number, NOW)
    with pytest.raises(PromotionError, match="served: 1"):
        with_canary(record, number, 0.1, NOW)


def test_model_promoted_by_hand_gets_no_default_by_itself() -> None:
    """Its new versions are served and held until somebody promotes them; its first one answers at once."""
    first = step(None, found("1", promotes=False))
    assert first.default_version == "1"
    second = step(first, found("12", promotes=False), 10)
    assert (second.default_version, second.held) == ("1", ("2",))
    chosen = promoted(second, "2", at(20))
    assert step(chosen, found("12", promotes=False), 30).default_version == "2"


def test_canary_lasts_until_it_ends_or_its_version_goes() -> None:
    """Passes leave it alone; promoting ends it; a version that is gone cannot be tried."""
    record = with_canary(step(step(None, found("1")), found("12", promotes=False), 10), "2", 0.1, at(20))
    assert record.canary is not None
    assert (record.canary.share, record.canary.effective_at, record.default_version) == (0.1, at(22), "1")
    assert step(record, found("12"), 30).canary == record.canary
    assert step(record, found("12"), 30).default_version == "1"
    assert promoted(record, "2", at(40)).canary is None
    assert without_canary(record).canary is None
    assert step(record, found("1", "1"), 40).canary is None
    with pytest.raises(PromotionError, match="is the default"):
        with_canary(record, "1", 0.1, NOW)


def test_removed_model_drains_whole_then_goes() -> None:
    """Its versions answer for the drain time, are told as unloaded, and then there is no record any more."""
    record = step(None, found("12", "12", {"3": ("bad", "why")}))
    first = withdrawn(record, at(10), DRAIN)
    assert first is not None
    assert states(first) == {"1": "draining", "2": "draining"}
    assert first.default_version == "2"
    assert withdrawn(first, at(39), DRAIN) == first
    told = withdrawn(first, at(40), DRAIN)
    assert told is not None
    assert set(states(told).values()) == {"unloaded"}
    assert withdrawn(told, at(41), DRAIN) == told
    assert withdrawn(told, at(42), DRAIN) is None


def test_removed_model_that_comes_back_is_served_on() -> None:
    """A folder that was moved away and back within the drain time costs nothing."""
    first = withdrawn(step(None, found("1")), at(10), DRAIN)
    again = step(first, found("1"), 20)
    assert (states(again), again.default_version, again.effective_at) == ({"1": "ready"}, "1", NOW)


def test_changing_marks_these_versions_alone() -> None:
    """While content is replaced nothing else of the record differs, and the next record says no more of it."""
    record = step(None, found("12"))
    marked = changing(record, {"1"})
    assert {number: version.changing for number, version in marked.versions.items()} == {"1": True, "2": False}
    assert changing(marked, ()) == record
    assert step(marked, found("12"), 10) == record


def test_version_that_its_owner_removed_is_kept_for_no_rollback() -> None:
    """A default whose folder is taken away drains and leaves, although it was the one before; a trial of it ends."""
    second = step(step(None, found("1")), found("12"), 10)
    contents = {"1": "f1", "2": "f2"}
    gone = step(second, Found(contents, {"1"}, {}, SIGNATURE, removed={"2"}), 20)
    assert (gone.default_version, gone.previous_version) == ("1", None)
    assert states(gone) == {"1": "ready", "2": "draining"}
    assert states(step(gone, Found(contents, {"1"}, {}, SIGNATURE, removed={"2"}), 50))["2"] == "unloaded"
    tried = with_canary(promoted(second, "1", at(20)), "2", 0.1, at(20))
    ended = step(tried, Found(contents, {"1"}, {}, SIGNATURE, removed={"2"}), 30)
    assert (ended.canary, states(ended)) == (None, {"1": "ready", "2": "draining"})


BACK = timedelta(hours=-1)
"""An operator, or NTP after a start with a wrong clock, sets the clock back by an hour."""


def draining(seconds: float = 20) -> ModelRecord:
    """Version 1 drains since then, 2 was the default before 3."""
    third = step(step(step(None, found("1")), found("12", "2"), 10), found("123", "3"), seconds)
    assert states(third)["1"] == "draining"
    return third


def test_clock_that_is_set_back_makes_no_drain_longer_than_two() -> None:
    """A version that drains, or is told as unloaded, waits anew by the clock as it is now, not for an hour more."""
    back = BACK.total_seconds()
    again = step(draining(), found("123", "3"), 30 + back)
    assert (states(again)["1"], again.versions["1"].since) == ("draining", at(30 + back))
    assert next_step_at(again, DRAIN) == at(60 + back)
    told = step(again, found("123", "3"), 60 + back)
    assert states(told)["1"] == "unloaded"
    twice = step(told, found("123", "3"), 61 + 2 * back)
    assert not may_leave(told.versions["1"], at(61 + 2 * back))
    assert may_leave(twice.versions["1"], at(63 + 2 * back))


def test_removed_model_leaves_although_the_clock_was_set_back() -> None:
    """The drain of a whole model begins anew, too, and then it is gone."""
    first = withdrawn(step(None, found("12")), at(0), DRAIN)
    assert first is not None
    again = withdrawn(first, at(1) + BACK, DRAIN)
    assert again is not None
    assert {version.since for version in again.versions.values()} == {at(1) + BACK}
    told = withdrawn(again, at(31) + BACK, DRAIN)
    assert told is not None
    assert withdrawn(told, at(33) + BACK, DRAIN) is None


def test_clock_that_is_set_back_puts_no_promotion_off() -> None:
    """A promotion, or a trial, that was to count in two seconds counts two seconds after the next pass."""
    second = step(step(None, found("1")), found("12"), 10)
    assert second.effective_at == at(12)
    again = step(second, found("12"), 11 + BACK.total_seconds())
    assert (again.default_version, again.previous_version) == ("2", "1")
    assert again.effective_at == at(11) + BACK + NOTICE
    trial = step(with_canary(again, "1", 0.5, at(20)), found("12"), 21 + BACK.total_seconds())
    assert trial.canary is not None
    assert (trial.canary.share, trial.canary.effective_at) == (0.5, at(21) + BACK + NOTICE)


def test_clocks_of_two_watchers_may_differ() -> None:
    """Up to three seconds between two hosts' clocks change no record: neither corrects what the other announced."""
    third = promoted(draining(20), "2", at(20))
    assert third.effective_at == at(22)
    assert step(third, found("123", "3"), 17) == third
    assert step(draining(20), found("123", "3"), 17) == draining(20)


def test_clock_that_is_set_forward_ends_one_wait_early_and_no_two() -> None:
    """A drain cannot be known to be shorter; what follows it, the notice before the servers let go, is waited for."""
    told = step(draining(20), found("123", "3"), 3621)
    assert states(told)["1"] == "unloaded"
    assert not may_leave(told.versions["1"], at(3622))
    assert may_leave(told.versions["1"], at(3623))


NUMBERS = st.sets(st.sampled_from("12345"), min_size=1)


@given(
    st.lists(
        st.tuples(
            NUMBERS,
            NUMBERS,
            st.floats(0, 40) | st.sampled_from([-3600.0, 3600.0]),
            st.sampled_from(["", "promote", "canary"]),
        ),
        max_size=12,
    )
)
def test_whatever_happens_the_default_is_served(steps: list[tuple[set[str], set[str], float, str]]) -> None:
    """After any history, clocks that are set among it, the default and the previous version are good and ready."""
    record: ModelRecord | None = None
    now = NOW
    for good, selected, pause_s, order in steps:
        now += timedelta(seconds=pause_s)
        record = next_record("m", found("".join(good), "".join(selected)), record, now, DRAIN)
        assert record is not None
        ready = [number for number, version in record.versions.items() if version.state in {"ready", "draining"}]
        if order and ready:
            number = min(ready)
            if order == "promote":
                record = promoted(record, number, now)
            elif number != record.default_version:
                record = with_canary(record, number, 0.5, now)
        assert record.default_version in good
        for answering in {record.default_version, record.previous_version} - {None}:
            assert record.versions[str(answering)].state == "ready"
        assert record.canary is None or record.versions[record.canary.version].state == "ready"
        soon = now + timedelta(seconds=5)
        waiting = [version for version in record.versions.values() if version.state in {"draining", "unloaded"}]
        assert all(version.since is not None and version.since <= soon for version in waiting)
        assert record.effective_at <= soon
        assert record.canary is None or record.canary.effective_at <= soon
