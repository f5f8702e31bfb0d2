"""The pauses between tries, and what the log says of an outage."""

import logging
import random

import pytest

from pipeline.outage import Outage, retry_pause_s


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
