"""An id that was used before: no second answer, also from a worker that only read of the first."""

import signal
from typing import Any

import orjson
import pytest

from tests.live.asking import Asking, Sent, all_committed, echo_request, event_lines, fresh_id
from tests.live.load import places
from tests.live.processes import ProcessGroup
from tests.live.stack import LiveStack
from tests.live.topics import TopicLog, header, prepare_topics

PARTITION = 2
OWN_HEADERS = [("trace", b"\x00\xff"), ("ce_id", b"of-no-importance")]


@pytest.mark.timeout(90)
async def test_repeated_ids_have_one_answer(stack: LiveStack, processes: ProcessGroup) -> None:
    """Same content: an event. Other content: an event and a dead letter. Both also after another worker's start."""
    settings = stack.make_settings()
    await prepare_topics(settings, stack.models.values())
    worker = await processes.start("worker", settings)
    async with Asking(settings) as asking, TopicLog(settings, "events") as events:

        async def send(request: dict[str, Any]) -> Sent:
            return await asking.send(orjson.dumps(request), headers=OWN_HEADERS, partition=PARTITION)

        slow = echo_request(1.0, parameters={"delay_ms": 1500})
        slow_place = await send(slow)
        # Its first still runs; other times and addresses are not its content.
        same = [await send(slow), await send({**slow, "requested_at": "2026-01-01T00:00:00Z", "source_ip": "::2"})]
        others = [{**slow, "inputs": echo_request(2.0)["inputs"]}, {**slow, "unknown": "member"}]
        other = [await send(request) for request in others]
        invalid = echo_request(id=fresh_id("invalid"), model_name="nobody")
        answered = [slow_place, await send({**slow, "tenant": "acme"}), await send({**slow, "tenant": "globex"})]
        answered.append(await send(invalid))
        same.append(await send(invalid))
        malformed = {"id": fresh_id("malformed"), "model_name": "echo", "inputs": "none"}
        answered.append(await send(malformed))
        same.append(await send(malformed))
        await asking.results.until(lambda records: set(answered) <= places(records), 20, "all first answers")
        worker.send(signal.SIGTERM)
        assert await worker.wait_exit() == 0

        same += [await send(request) for request in (slow, {**slow, "tenant": "acme"}, invalid, malformed)]
        others.append({**slow, "tenant": "acme", "model_version": "1"})
        other.append(await send(others[-1]))
        answered.append(await send(echo_request(1.0, parameters={"delay_ms": 1500})))
        again = await processes.start("worker", settings)
        await all_committed(settings)
        again.send(signal.SIGTERM)
        assert await again.wait_exit() == 0
        results, letters = asking.results.records, asking.dead_letters.records
        lines = [orjson.loads(line.text) for line in event_lines(events.records)]
    assert sorted(int(header(record, "request-offset") or -1) for record in results) == sorted(
        place.offset for place in answered
    )
    content = {
        (line["attributes"]["content"], line["attributes"]["first"].rpartition(":")[2], line["event_id"])
        for line in lines
        if line["event_type"] == "request.duplicate"
    }
    assert [kind for kind, _, _ in sorted(content)] == ["other"] * len(other) + ["same"] * len(same)
    assert {int(header(letter, "source-offset") or -1): letter.value for letter in letters} == {
        place.offset: orjson.dumps(request) for place, request in zip(other, others, strict=True)
    }
    for letter in letters:
        assert header(letter, "reason") == "DUPLICATE_ID"
        assert letter.headers[: len(OWN_HEADERS)] == tuple(OWN_HEADERS)
