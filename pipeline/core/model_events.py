"""What a model's record tells as events: one line each, for the events topic. Pure.

The lines follow from the record alone, with the same ids every time: a watcher that died between a record and its
events is followed by one that writes them again, and the log keeps one of each.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from pipeline.core.fleet_lines import FleetLines, line_id
from schemas.registry import ModelRecord

_OF_STATE = {"ready": "model.loaded", "rejected": "model.rejected", "unloaded": "model.unloaded"}


class ModelEvents(FleetLines):
    """Writes the lines of records, and those of instances besides."""

    def of(self, record: ModelRecord, since: datetime) -> dict[str, bytes]:
        """Event id -> line, each ended by a line feed, of all that the record tells of the time since then."""
        lines: dict[str, bytes] = {}
        for event_type, version, at, mark, attributes in _told(record):
            if at < since:
                continue
            event_id = line_id(record.model_name, version, event_type, mark)
            lines[event_id] = self._line(
                event_id, event_type, at, model_name=record.model_name, model_version=version, attributes=attributes
            )
        return lines


def _told(record: ModelRecord) -> Iterator[tuple[str, str, datetime, str, dict[str, Any]]]:
    """Event type, version, time, what tells it from the next of its type, attributes."""
    for number, version in record.versions.items():
        if version.since is None:
            continue
        content = version.rejected_fingerprint or version.fingerprint
        yield "model.discovered", number, version.since, content, {"fingerprint": content}
        if (event_type := _OF_STATE.get(version.state)) is not None:
            attributes = {"fingerprint": version.fingerprint}
            if version.state == "rejected":
                attributes["reason"] = version.reason or ""
            yield event_type, number, version.since, f"{version.fingerprint}:{version.since.isoformat()}", attributes
        if version.state != "rejected" and version.reason is not None:
            attributes = {"fingerprint": content, "reason": version.reason}
            yield "model.rejected", number, version.since, f"{content}:{version.reason}", attributes
    if record.default_version is not None:
        attributes = {"previous": record.previous_version or ""}
        yield "model.promoted", record.default_version, record.effective_at, record.effective_at.isoformat(), attributes
    if (canary := record.canary) is not None:
        at = canary.effective_at
        yield "model.promoted", canary.version, at, f"canary:{at.isoformat()}", {"share": canary.share}
