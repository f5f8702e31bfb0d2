"""A model's record as events: every step once, with the same id whoever tells it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from pipeline.core.fleet_lines import FleetLines
from pipeline.core.model_events import ModelEvents
from pipeline.core.version_life import promoted, with_canary
from schemas.event import Event
from schemas.registry import ModelRecord, ModelVersion, VersionState

NOW = datetime(2026, 1, 2, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=1)


def version(state: VersionState, seconds: float = 0.0, **changes: Any) -> ModelVersion:
    return ModelVersion(fingerprint="f", state=state, since=NOW + timedelta(seconds=seconds), **changes)


def record(**versions: ModelVersion) -> ModelRecord:
    """Versions by name, `v1=...`; the first is the default."""
    numbers = {name[1:]: found for name, found in versions.items()}
    return ModelRecord(model_name="m", versions=numbers, default_version=min(numbers), effective_at=NOW)


def told(found: ModelRecord, since: datetime = LONG_AGO, watcher: str = "w") -> dict[str, Event]:
    lines = ModelEvents(watcher, 7.0).of(found, since)
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines.values())
    events = {name: Event.model_validate(orjson.loads(line)) for name, line in lines.items()}
    assert all(str(event.event_id) == name for name, event in events.items())
    return events


def kinds(events: dict[str, Event]) -> list[tuple[str, str]]:
    return sorted((event.event_type, event.model_version) for event in events.values())


def test_each_state_is_told() -> None:
    """What is ready was loaded, what is rejected and what is unloaded says so; the default was promoted."""
    events = told(record(v1=version("ready"), v2=version("rejected", reason="no weights"), v3=version("unloaded")))
    assert kinds(events) == [
        ("model.discovered", "1"), ("model.discovered", "2"), ("model.discovered", "3"), ("model.loaded", "1"),
        ("model.promoted", "1"), ("model.rejected", "2"), ("model.unloaded", "3"),
    ]  # fmt: skip
    rejected = next(event for event in events.values() if event.event_type == "model.rejected")
    assert rejected.attributes == {"fingerprint": "f", "reason": "no weights"}
    assert (rejected.model_name, rejected.worker, rejected.occurred_at) == ("m", "w", NOW)
    assert rejected.expires_at == NOW + timedelta(days=7)


def test_same_record_has_the_same_ids_whoever_tells_it() -> None:
    """A watcher that tells again what another one told adds nothing to the log."""
    found = record(v1=version("ready"), v2=version("rejected", reason="why"))
    assert told(found).keys() == told(found, watcher="other").keys()


def test_later_step_is_another_event() -> None:
    """Loaded again after it was unloaded, or promoted again: each time counts."""
    first = record(v1=version("ready"), v2=version("ready"))
    again = record(v1=version("ready", seconds=60), v2=version("ready"))
    assert len(told(again).keys() - told(first).keys()) == 1
    back = promoted(first, "2", NOW + timedelta(seconds=60))
    new = [event for name, event in told(back).items() if name not in told(first)]
    assert [(event.event_type, event.model_version, event.attributes) for event in new] == [
        ("model.promoted", "2", {"previous": "1"})
    ]


def test_newer_content_that_was_rejected_is_told_beside_what_serves() -> None:
    """A version whose newer content failed was loaded once and rejected once, with both fingerprints."""
    events = told(record(v1=version("ready", reason="answers wrongly", rejected_fingerprint="newer")))
    contents = {event.event_type: event.attributes.get("fingerprint") for event in events.values()}
    assert (contents["model.loaded"], contents["model.rejected"]) == ("f", "newer")


def test_trial_is_a_promotion_with_its_share() -> None:
    """A version on trial is told with its share; draining alone is no event."""
    events = told(with_canary(record(v1=version("ready"), v2=version("draining")), "2", 0.1, NOW))
    shares = [event.attributes for event in events.values() if event.event_type == "model.promoted"]
    assert {"share": 0.1} in shares


def test_only_what_happened_since_is_told() -> None:
    """A start tells the last day again, not the whole past."""
    found = record(v1=version("ready"), v2=version("ready", seconds=7200))
    assert kinds(told(found, since=NOW + timedelta(seconds=3600))) == [("model.discovered", "2"), ("model.loaded", "2")]


def test_instance_is_told_by_its_name() -> None:
    """A server that came or went has a line of its own each time."""
    events = ModelEvents("w", 7.0)
    lines = [
        events.instance("instance.down", "triton-0", NOW + timedelta(seconds=n), {"address": "a:1"}) for n in (0, 1)
    ]
    down = [Event.model_validate(orjson.loads(line)) for line in lines]
    assert [event.instance for event in down] == ["triton-0", "triton-0"]
    assert down[0].event_id != down[1].event_id
    assert down[0].attributes == {"address": "a:1"}


def test_overload_is_told_by_each_worker() -> None:
    """Two workers that find the same instance overloaded at the same time write two events, each the same whenever."""
    lines = [FleetLines(name, 7.0).instance("instance.overloaded", "triton-0", NOW, {"refused": 3}) for name in "vwv"]
    first, second, _ = [Event.model_validate(orjson.loads(line)) for line in lines]
    assert lines[0] == lines[2]
    assert first.event_id != second.event_id
    assert (second.event_type, second.instance, second.worker) == ("instance.overloaded", "triton-0", "w")
    assert (second.occurred_at, second.expires_at) == (NOW, NOW + timedelta(days=7))
