"""The lines that processes write: one for each event, whoever's words are in it, and whose request it is about."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from io import StringIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli.context import log_to_stderr
from pipeline.cli.log_format import JsonFormat, TextFormat, escaped
from pipeline.config import LogSettings
from pipeline.gateway.delivery.current_request import RequestNames

FORGED = "r-1\n2026-01-01 00:00:00,000 ERROR pipeline: forged \x1b[31m\r\x85\u2028\u202e\ud800"
# Any text, and most of all what ends lines.
TEXTS = st.text(st.one_of(st.characters(), st.sampled_from("\n\r\x00\x0b\x0c\x1b\x7f\x85\u2028\u2029\u202e\ud800")))


def line_of(form: logging.Formatter, message: str, *arguments: object, **options: Any) -> str:
    """What is written of an event."""
    record = logging.LogRecord("pipeline.x", logging.WARNING, "x.py", 1, message, arguments, options.pop("error", None))
    record.__dict__.update(options)
    return form.format(record)


def raised(message: str) -> Any:
    """An error, as logging has it."""

    def fail() -> None:
        raise ValueError(message)

    try:
        fail()
    except ValueError:
        return sys.exc_info()


def test_text_is_one_line_with_its_request() -> None:
    """Time, level, logger, message, and in brackets what is known of the request."""
    line = line_of(TextFormat(), "lost: %s", "Kafka", request_id="r-1", tenant="acme", model="digits", trace_id=None)
    assert line.endswith(" WARNING pipeline.x: lost: Kafka [request_id=r-1 tenant=acme model=digits]")
    datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").astimezone()
    assert line_of(TextFormat(), "lost").endswith("pipeline.x: lost")


@given(TEXTS, TEXTS)
def test_no_text_begins_a_line(message: str, request_id: str) -> None:
    """Whatever is in an id or a message, a text line has no end but its own, nothing that a terminal obeys."""
    line = line_of(TextFormat(), "%s", message, request_id=request_id)
    assert line.splitlines() == [line]
    assert line.isprintable() or not any(character < " " or "\x7f" <= character < "\xa0" for character in line)
    line.encode()


def test_forged_line_is_seen_as_text() -> None:
    """What would have been a line of its own is readable where it belongs; a field with spaces has its quotes."""
    line = line_of(TextFormat(), "request %s", FORGED, request_id="a b] [tenant=root")
    assert r"request r-1\n2026-01-01 00:00:00,000 ERROR pipeline: forged \x1b[31m\r\x85\u2028\u202e\ud800" in line
    assert line.endswith('[request_id="a b] [tenant=root"]')
    assert escaped("äß 漢字 ok") == "äß 漢字 ok"


def test_traceback_is_indented() -> None:
    """An error's own words cannot pass for an event either: every line behind the first is indented."""
    first, *others = line_of(TextFormat(), "failed", error=raised(FORGED), stack_info="Stack:\nx").split("\n")
    assert first.endswith("pipeline.x: failed")
    assert others[0] == "    Traceback (most recent call last):"
    assert all(other.startswith("    ") for other in others)
    assert any("forged" in other for other in others)


@given(TEXTS, TEXTS)
def test_json_is_one_object_whatever_it_says(message: str, request_id: str) -> None:
    """One line of ASCII that any reader takes back to what was logged."""
    line = line_of(JsonFormat(), "%s", message, request_id=request_id)
    assert line.isascii()
    assert line.splitlines() == [line]
    found = json.loads(line)
    assert (found["message"], found["request_id"]) == (message, request_id)


def test_json_has_all_that_is_known() -> None:
    """Time in UTC as RFC 3339 has it, level, logger, the request, HTTP's members, the error as text."""
    found = json.loads(
        line_of(JsonFormat(), "no %d", 7, error=raised("x\ny"), tenant="acme", route="/v1", status=500, other="o")
    )
    at = datetime.fromisoformat(found.pop("time"))
    assert at.utcoffset() is not None
    exception = found.pop("exception")
    assert exception.startswith("Traceback")
    assert exception.endswith("ValueError: x\ny")
    assert found == {
        "level": "WARNING", "logger": "pipeline.x", "message": "no 7", "tenant": "acme", "route": "/v1", "status": 500,
    }  # fmt: skip


@pytest.mark.parametrize("form", [TextFormat, JsonFormat])
def test_request_at_hand_is_named(form: Any) -> None:
    """A line that names no request is about the one that its writer works on; its own word counts more."""
    names = RequestNames()
    names.request_id, names.model_name, names.trace_id = "r-7", "digits", "a" * 32
    line = line_of(form(lambda: names), "lost", model="sentences")
    assert "r-7" in line
    assert "a" * 32 in line
    assert "sentences" in line
    assert "digits" not in line


@contextmanager
def logged(settings: LogSettings) -> Iterator[StringIO]:
    """What a process with these settings writes; afterwards logging is as it was."""
    root, hook = logging.getLogger(), sys.excepthook
    loggers = [root, logging.getLogger("aiokafka"), logging.getLogger("watchfiles")]
    handlers, levels = list(root.handlers), [logger.level for logger in loggers]
    root.handlers[:] = []
    stream = StringIO()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            log_to_stderr(settings)
            yield stream
    finally:
        root.handlers[:] = handlers
        sys.excepthook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def test_servers_inside_write_the_same_lines() -> None:
    """uvicorn's, Faust's and mode's lines, and what ends the process by mistake, are objects like ours."""
    with logged(LogSettings(format="json", level="WARNING")) as stream:
        for name in ("uvicorn.error", "faust.app", "mode.worker", "asyncio"):
            logging.getLogger(name).error("a line of %s", name)
            logging.getLogger(name).info("not told")
        sys.excepthook(*raised("forged\nline"))
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["logger"] for line in lines] == ["uvicorn.error", "faust.app", "mode.worker", "asyncio", "pipeline"]
    assert (lines[4]["level"], lines[4]["message"]) == ("CRITICAL", "ended by a mistake")
    assert "forged\nline" in lines[4]["exception"]


def test_lost_connection_is_told_once() -> None:
    """The Kafka client repeats itself many times a second; the log does not."""
    with logged(LogSettings()) as stream:
        for _ in range(20):
            logging.getLogger("aiokafka.client").error("Unable connect to %s", "x")
    assert stream.getvalue().count("\n") == 1
