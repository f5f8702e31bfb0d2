"""Events that belong to no request, as lines for the events topic: their columns, ids and expiry. Pure."""

from datetime import datetime
from typing import Any

import orjson
import uuid_utils

from pipeline.core.exchange import utc_second_text, utc_text
from schemas.event import EVENT_NAMESPACE, EventType

_NAMESPACE = uuid_utils.UUID(str(EVENT_NAMESPACE))


class FleetLines:
    """Writes the lines of one process.

    Args:
        writer: the process's name, in the column `worker`.
        events_days: how long rows live, in days.
    """

    def __init__(self, writer: str, events_days: float) -> None:
        self._writer = writer
        self._events_s = events_days * 86400

    def instance(self, event_type: EventType, name: str, at: datetime, attributes: dict[str, Any]) -> bytes:
        """The line of what befell an instance, as this process saw it, ended by a line feed."""
        event_id = line_id(self._writer, name, event_type, at.isoformat())
        return self._line(event_id, event_type, at, instance=name, attributes=attributes)

    def _line(self, event_id: str, event_type: str, at: datetime, **columns: Any) -> bytes:
        seconds = at.timestamp()
        event = {
            "event_id": event_id,
            "event_type": event_type,
            "occurred_at": utc_text(seconds),
            "worker": self._writer,
            "expires_at": utc_second_text(int(seconds + self._events_s)),
            **columns,
        }
        return orjson.dumps(event) + b"\n"


def line_id(*parts: str) -> str:
    """The event id that these parts have, whoever writes the line and however often."""
    return str(uuid_utils.uuid5(_NAMESPACE, ":".join(parts)))
