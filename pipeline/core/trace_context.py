"""W3C Trace Context: what names a span on the wire, and what the engine knows of a span. Pure."""

import re
from collections.abc import Mapping
from typing import Literal, Protocol

Attributes = Mapping[str, str | int | float | bool]

# W3C Trace Context, section 3.2: version 255 is forbidden, and so are ids of zeros alone. Version 00 has 55 bytes; what
# later ones may add behind them nobody sends yet.
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def is_traceparent(text: bytes) -> bool:
    """Whether this names a span. What does not is to be ignored, as if it had not come."""
    return _TRACEPARENT.fullmatch(text) is not None


def trace_id_of(traceparent: bytes) -> str:
    """The trace that a valid `traceparent` belongs to: 32 hex digits."""
    return traceparent.split(b"-")[1].decode()


def messaging_attributes(
    operation: Literal["send", "process"], topic: str, partition: int, message_id: str
) -> dict[str, str | int]:
    """What the semantic conventions have every span say of the record that it is about."""
    return {
        "messaging.system": "kafka",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": topic,
        "messaging.destination.partition.id": str(partition),
        "messaging.message.id": message_id,
    }


class Span(Protocol):
    """A span that has begun. One that is never ended is not exported."""

    @property
    def traceparent(self) -> bytes:
        """Its name on the wire: whoever gets it makes children of it."""

    @property
    def is_recorded(self) -> bool:
        """Whether anybody will see it; one that was not sampled is only named."""

    def rename(self, name: str) -> None:
        """Gives it the name that is known only now."""

    def link(self, traceparent: bytes) -> None:
        """Points to a span that it leans on, of whatever trace."""

    def end(self, at: float, attributes: Attributes, *, error: str = "", message: str = "") -> None:
        """Ends it; nothing is done to it afterwards. Never blocks, never raises.

        Args:
            at: Unix seconds.
            attributes: besides those that it began with.
            error: a stable word where what it tells of failed (`error.type`).
            message: a sentence to that.
        """
