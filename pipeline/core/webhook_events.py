"""What attempts to deliver a callback tell as events, one line each. Pure.

Ids follow from the request's place in the log and the attempt: a process that died between an attempt's events and its
commit is followed by one that writes them again, and the log keeps one of each.
"""

from datetime import UTC, datetime
from typing import Any

from pipeline.core.fleet_lines import FleetLines, line_id


class WebhookEvents(FleetLines):
    """Writes the lines of attempts."""

    def delivered(self, source: str, columns: dict[str, Any], at: float, duration_s: float, attempt: int) -> bytes:
        """The line of a callback that its receiver has.

        Args:
            source: the request's topic:partition:offset.
            columns: request_id, tenant, model_name.
            at: when the attempt ended, Unix seconds.
            duration_s: how long it took.
            attempt: how many there were before it.
        """
        event_id = line_id(source, "webhook.delivered")
        attributes = {"attempt": attempt + 1}
        return self._attempt(event_id, "webhook.delivered", columns, at, duration_s, attributes)

    def failed(
        self,
        source: str,
        columns: dict[str, Any],
        at: float,
        duration_s: float,
        attempt: int,
        error: str,
        due_at: float | None,
    ) -> bytes:
        """The line of an attempt that failed; `due_at` is the next one's time, None where there is none."""
        event_id = line_id(source, "webhook.failed", str(attempt))
        attributes: dict[str, Any] = {"attempt": attempt + 1, "error": error, "is_last": due_at is None}
        if due_at is not None:
            attributes["next_at"] = datetime.fromtimestamp(due_at, UTC).isoformat()
        return self._attempt(event_id, "webhook.failed", columns, at, duration_s, attributes)

    def _attempt(
        self, event_id: str, event_type: str, columns: dict[str, Any], at: float, duration_s: float,
        attributes: dict[str, Any],
    ) -> bytes:  # fmt: skip
        moment = datetime.fromtimestamp(at, UTC)
        duration_us = round(max(duration_s, 0.0) * 1e6)
        return self._line(event_id, event_type, moment, duration_us=duration_us, attributes=attributes, **columns)
