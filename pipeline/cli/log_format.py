"""One line per event, as text for people or as JSON for programs; nothing that was logged can begin a line of its own.

    2026-11-27 22:54:14,123 INFO pipeline.gateway.access: POST /v1/inferences 202 3.1 ms [request_id=r-1 tenant=acme]
    {"time": "2026-11-27T22:54:14.123Z", "level": "INFO", "logger": "pipeline.gateway.access", "message": …}

Ids, model names and paths are their senders' words. Whatever a terminal or a reader of lines would take for more than
text is written as its escape.
"""

import json
import logging
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol


class LoggedRequest(Protocol):
    """The request that is being worked on, as far as it is known."""

    request_id: str | None
    tenant: str | None
    model_name: str | None
    trace_id: str | None


# The request that whoever writes a line works on; None where it works on none.
Context = Callable[[], LoggedRequest | None]

# A line's own word (`extra={"request_id": …}`), and where the request at hand has it.
_OF_REQUEST = {"request_id": "request_id", "tenant": "tenant", "model": "model_name", "trace_id": "trace_id"}
# What lines of HTTP say besides in JSON; a person reads it in the message.
_OF_HTTP = ("method", "route", "path", "status", "code", "duration_ms", "source_ip")
# C0 and C1 with the ends of lines and a terminal's escapes, Unicode's ends of lines, marks that turn the direction of
# a line, and halves of surrogate pairs, which no stream takes.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# Marks of a field's end inside of a field.
_QUOTED = re.compile(r'[\s"=\[\]\\]')


def nobody() -> LoggedRequest | None:
    """The context of a process that works on many requests at once: lines name theirs."""
    return None


class TextFormat(logging.Formatter):
    """A line of text; a traceback follows it, every line of it indented, so that none passes for an event.

    Args:
        context: the request at hand.
    """

    def __init__(self, context: Context = nobody) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._context = context

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line without what follows it."""
        fields = _fields_of_request(record, self._context).items()
        named = " ".join(f"{name}={_quoted(str(value))}" for name, value in fields)
        return escaped(super().formatMessage(record) + (f" [{named}]" if named else ""))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """A traceback."""
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802 - logging's name
        """Where the line was written, where that was asked for."""
        return _indented(super().formatStack(stack_info))


class JsonFormat(logging.Formatter):
    """An object on a line: `time` (RFC 3339, UTC), `level`, `logger`, `message`, and what is known of the request.

    Args:
        context: the request at hand.
    """

    def __init__(self, context: Context = nobody) -> None:
        super().__init__()
        self._context = context

    def format(self, record: logging.LogRecord) -> str:
        """The object."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": at.removesuffix("+00:00") + "Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields_of_request(record, self._context),
        }
        line |= {name: value for name in _OF_HTTP if (value := getattr(record, name, None)) is not None}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        # ASCII: whatever encoding the stream has, what arrives is JSON.
        return json.dumps(line, default=str)


def escaped(text: str) -> str:
    r"""The text on one line: a line feed is the two characters \n, others are their \x1b or \u2028."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if _QUOTED.search(value) else value


def _indented(text: str) -> str:
    return "\n".join(f"    {escaped(line)}" for line in text.split("\n"))


def _fields_of_request(record: logging.LogRecord, context: Context) -> dict[str, Any]:
    at_hand = context()
    found = {}
    for name, attribute in _OF_REQUEST.items():
        value = getattr(record, name, None)
        if value is None and at_hand is not None:
            value = getattr(at_hand, attribute)
        if value is not None:
            found[name] = value
    return found
