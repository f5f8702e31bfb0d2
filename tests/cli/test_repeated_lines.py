"""Lines that a library repeats: once in a while, with how often they were left out."""

import logging

from pipeline.cli.repeated_lines import PAUSE_S, RepeatedLines


def a_record(text: str, *arguments: object, name: str = "aiokafka") -> logging.LogRecord:
    """A line of a library."""
    return logging.LogRecord(name, logging.ERROR, __file__, 1, text, arguments, None)


def test_repeated_line_is_told_once_in_a_while() -> None:
    """The same text with other arguments is the same line; after the pause it says how many there were."""
    now = [0.0]
    lines = RepeatedLines("aiokafka", lambda: now[0])
    told = [lines.filter(a_record("no answer from %s", node)) for node in range(5)]
    assert told == [True, False, False, False, False]
    now[0] = PAUSE_S
    again = a_record("no answer from %s", 7)
    assert lines.filter(again)
    assert again.getMessage() == "no answer from 7 (and 4 times more since the last such line)"


def test_other_lines_are_not_kept_back() -> None:
    """Another text, or another part of the library, is another line."""
    lines = RepeatedLines("aiokafka", lambda: 0.0)
    assert lines.filter(a_record("one"))
    assert lines.filter(a_record("two"))
    assert lines.filter(a_record("one", name="aiokafka.conn"))
    assert all(lines.filter(a_record("ours", name="pipeline.worker")) for _ in range(3))


def test_memory_is_bounded() -> None:
    """A library that writes ever new texts is told every time, and not remembered without end."""
    lines = RepeatedLines("aiokafka", lambda: 0.0)
    assert all(lines.filter(a_record(f"line {number}")) for number in range(10_000))
    assert len(lines._seen) <= 256
