"""Records that are delivered again: their answer stands in the log, what belongs to it is published once more."""

import asyncio
import random
from typing import Any

import pytest

from pipeline.core.commit_note import CommitNote
from pipeline.core.lane import STARTS_MAX, SUSPECT_STARTS_MAX
from pipeline.core.ledger import Answered, read_answered
from schemas.errors import ErrorCode
from schemas.event import Event, RequestEnd
from schemas.result import decode_result
from tests.simulation.fleet import FAILING_ROW
from tests.simulation.topics import WrittenRecord
from tests.simulation.virtual_time import simulated
from tests.worker.lanes import new_lane
from tests.worker.test_intake import TOPIC, Bench, bench, body, some_record


async def deliver(made: Bench, records: list[tuple[Any, Any]], *, times: int = 1) -> None:
    """The records from offset 0, in a lane of a worker that knows what stands in the results."""
    results = made.log.of("inference.results", 2)
    made.lane = new_lane(2, 1 + times, CommitNote(results_from=0, generation=1), requests_end=len(records))
    for offset, record in enumerate(results):
        answered = read_answered(record.headers, offset, record.value)
        assert answered is not None
        made.lane.ledger.note(answered)
    made.next_offset = 0
    for value, headers in records:
        made.take(value, headers, timestamp=1_795_384_800_000)
    await asyncio.sleep(30)


def lines_of(records: list[WrittenRecord]) -> dict[str, Event]:
    """The events by id."""
    lines = [line for record in records for line in (record.value or b"").splitlines()]
    events = [(RequestEnd if b'"status"' in line else Event).model_validate_json(line) for line in lines]
    return {str(event.event_id): event for event in events}


def _copies(records: list[WrittenRecord]) -> list[tuple[Any, ...]]:
    return sorted((r.topic, r.partition or 0, r.key or b"", r.value or b"") for r in records)


@pytest.mark.parametrize("seed", range(12))
@simulated
async def test_everything_but_the_answer_is_published_again(seed: int) -> None:
    """Whatever the records: no second result, the same event ids with the same rows, the same copies and letters."""
    rng = random.Random(seed)
    made = await bench()
    records = [some_record(rng, number) for number in range(60)]
    await deliver(made, records)
    first_log, made.log.records[:] = (
        list(made.log.records),
        [record for record in made.log.records if record.topic == "inference.results"],
    )
    results = len(made.log.of("inference.results"))
    calls = made.system.calls
    await deliver(made, records, times=2)
    assert len(made.log.of("inference.results")) == results, "an answer was published twice"
    assert made.system.calls == calls, "an answered request ran again"
    assert made.intake.repeated == results
    for topic in ("inference.replies", "inference.dead-letter"):
        assert _copies(made.log.of(topic)) == _copies([record for record in first_log if record.topic == topic])
    before = lines_of([record for record in first_log if record.topic == "inference.events"])
    again = lines_of(made.log.of("inference.events"))
    assert before.keys() == again.keys()
    for event_id, event in before.items():
        times = {"occurred_at", "duration_us", "queue_us", "inference_us", "total_us", "expires_at"}
        excluded = times | {"requested_at", "completed_at", "requests_expires_at"}
        assert event.model_dump(exclude=excluded) == again[event_id].model_dump(exclude=excluded)
        for name in times & type(event).model_fields.keys() - {"occurred_at", "expires_at"}:
            assert getattr(again[event_id], name) == pytest.approx(getattr(event, name), abs=2000)
    assert all(dict(record.headers)["redelivered"] == b"1" for record in made.log.of("inference.events"))


@pytest.mark.parametrize(
    "changed",
    [{"request_timestamp_ms": 1}, {"request_id": "other"}, {"group": "another-group"}, {"request_offset": 5}],
)
@simulated
async def test_answer_of_another_record_is_none(changed: dict[str, Any]) -> None:
    """All four must match: after a topic was made anew, offsets and ids may be those of other records."""
    made = await bench()
    made.lane = new_lane(2, 2, requests_end=1)
    right = Answered("r-1", "", 0, 1_795_384_800_000, bytes(16), "group", 0, [], b"{}")
    made.lane.ledger.note(right._replace(**changed))
    made.take(body(5, id="r-1"), timestamp=1_795_384_800_000)
    await asyncio.sleep(1)
    assert [result.status for result in made.log.results()] == ["succeeded"]


@pytest.mark.parametrize(
    "value",
    [
        b"hello",
        b'{"id":"r-1","model_name":"adder","status":"succeeded","completed_at":"2026-11-22T22:00:00Z",'
        b'"outputs":[{"name":"y","datatype":"INT32","shape":[1,1],"data":["no number"]}]}',
    ],
)
@simulated
async def test_what_only_looks_like_a_result_answers_nothing(value: bytes) -> None:
    """A foreign record with a result's headers and another body must neither answer nor end the worker."""
    made = await bench()
    made.lane = new_lane(2, 2, requests_end=1)
    made.lane.ledger.note(Answered("r-1", "", 0, 1_795_384_800_000, bytes(16), "group", 0, [], value))
    made.take(body(5, id="r-1"), timestamp=1_795_384_800_000)
    await asyncio.sleep(1)
    assert [result.status for result in made.log.results()] == ["succeeded"]


@simulated
async def test_id_that_was_used_gets_no_second_answer() -> None:
    """The same content: an event. Other content: an event and a dead letter. Another tenant: another request."""
    made = await bench()
    made.take(body(5, id="r-1"))
    made.take(body(5, id="r-1"))
    made.take(body(6, id="r-1"), [("own", b"1")])
    made.take(body(6, id="r-1", tenant="acme"))
    made.take({"id": "r-1", "model_name": 3})
    await asyncio.sleep(1)
    assert sorted(dict(record.headers)["request-offset"] for record in made.log.of("inference.results")) == [b"0", b"3"]
    duplicates = [event for event in made.log.event_lines() if event.event_type == "request.duplicate"]
    assert [event.attributes for event in duplicates] == [
        {"first": f"{TOPIC}:2:0", "content": content} for content in ("same", "other", "other")
    ]
    letters = made.log.of("inference.dead-letter")
    assert [dict(letter.headers)["reason"] for letter in letters] == [b"DUPLICATE_ID"] * 2
    assert [dict(letter.headers)["source-offset"] for letter in letters] == [b"2", b"4"]
    assert dict(letters[0].headers)["own"] == b"1"
    assert (made.confirmed, made.intake.duplicates, made.intake.dead_letters) == (5, 3, 2)


@simulated
async def test_duplicate_of_a_request_that_still_runs_waits_for_nobody() -> None:
    """The first need not be answered yet."""
    made = await bench()
    made.system.servers[0].latency_s = lambda _: 10.0
    made.take(body(5, id="r-1"))
    made.take(body(5, id="r-1"))
    await asyncio.sleep(1)
    assert made.confirmed == 1
    await asyncio.sleep(20)
    assert len(made.log.results()) == 1


@simulated
async def test_culprit_is_not_run_again() -> None:
    """A record that ended workers while it ran alone is answered INTERNAL, and goes to the dead letters."""
    made = await bench()
    note = CommitNote(
        results_from=0, generation=1, starts=STARTS_MAX + SUSPECT_STARTS_MAX, isolate_until=2, suspect=0,
        suspect_starts=SUSPECT_STARTS_MAX,
    )  # fmt: skip
    made.lane = new_lane(2, 2, note, requests_end=2)
    made.take(body(FAILING_ROW, id="r-1"))
    made.take(body(5, id="r-2"))
    await asyncio.sleep(1)
    by_id = {result.id: result for result in made.log.results()}
    error = by_id["r-1"].error
    assert error is not None
    assert error.code is ErrorCode.INTERNAL
    assert by_id["r-2"].status == "succeeded"
    (letter,) = made.log.of("inference.dead-letter")
    assert dict(letter.headers)["reason"] == b"CRASHED_WORKER"
    assert decode_result(made.record_of(0).value or b"").id == "r-1"


@simulated
async def test_overloaded_is_an_answer_like_others() -> None:
    """A request that found no room for too long is answered OVERLOADED, which may be tried again; nothing is run."""
    made = await bench()
    made.take(body(5, id="r-1"), overloaded=True)
    await asyncio.sleep(1)
    (result,) = made.log.results()
    assert result.error is not None
    assert (result.error.code, result.error.retryable) == (ErrorCode.OVERLOADED, True)
    assert made.system.calls == 0
