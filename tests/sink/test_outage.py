"""The plan beside a commit, and the pauses between tries."""

import logging
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sink.commit_plan import plan_metadata, planned_end_of
from pipeline.sink.outage import Outage, retry_pause_s


@given(st.integers(0, 2**62), st.integers(1, 2**40))
def test_plan_round_trip(offset: int, size: int) -> None:
    """A planned end is read back, and fits Kafka's 4,096 bytes."""
    metadata = plan_metadata(offset + size)
    assert planned_end_of(offset, metadata) == offset + size
    assert len(metadata) < 100


@pytest.mark.parametrize("metadata", ["", "x", "[]", "{}", '{"planned_end":"7"}', '{"planned_end":3}'])
def test_foreign_metadata_is_no_plan(metadata: str) -> None:
    """What others wrote beside the offset, or an end that lies behind it, plans nothing."""
    assert planned_end_of(3, metadata) is None


def test_pauses_grow_to_half_a_minute() -> None:
    """Pauses double from a quarter second to at most 30 s, with jitter of up to a half."""
    rng = random.Random(7)
    pauses = [retry_pause_s(attempt, rng) for attempt in range(1, 40)]
    assert 0.125 <= pauses[0] <= 0.25
    assert all(15 <= pause <= 30 for pause in pauses[10:])


def test_outage_is_told_once_each_way(caplog: pytest.LogCaptureFixture) -> None:
    """However many tries fail, the log has one line for the beginning and one for the end."""
    clock = [0.0]
    outage = Outage("ClickHouse", lambda: clock[0])
    with caplog.at_level(logging.INFO):
        for cause in ("down", "still down"):
            outage.met(cause)
        clock[0] = 9.0
        assert outage.reason == "no answer for 9 s: still down"
        for _ in range(2):
            outage.over()
    assert [record.message.split(";")[0] for record in caplog.records] == [
        "ClickHouse cannot be used",
        "ClickHouse can be used again after 9.0 s",
    ]
    assert outage.reason is None
