"""A record that ends every worker that runs it: found, buried, and all others answered."""

from pathlib import Path

import orjson
import pytest

from tests.live.asking import Asking, echo_request, fresh_id
from tests.live.load import place_of, places
from tests.live.processes import ProcessGroup, ServiceProcess
from tests.live.stack import LiveStack
from tests.live.topics import header, prepare_topics
from tests.live.waiting import until
from tests.models.folders import PROJECT

PARTITIONS = 4
# Three starts with everything at once, three with the record alone, and the one that buries it.
STARTS = 7
# A bug of the kind that no exception handler sees. Python runs this file at its start, before the worker's own code.
BUG = """
import os

import pipeline.worker.request_reader as reading

decode_request = reading.decode_request


def decode_or_die(value, headers):
    if value is not None and b'"poison-' in value:
        os._exit(9)
    return decode_request(value, headers)


reading.decode_request = decode_or_die
"""


@pytest.mark.timeout(150)
async def test_record_that_ends_workers_is_buried(stack: LiveStack, processes: ProcessGroup, tmp_path: Path) -> None:
    """After three starts records run alone; after three more the culprit is INTERNAL and a dead letter, alone."""
    # Under its own name a restarted worker has its partitions back at once; else each start waits for a session.
    settings = stack.make_settings(kafka={"session_timeout_s": 60}, worker={"instance_id": "only"})
    await prepare_topics(settings, stack.models.values())
    (tmp_path / "sitecustomize.py").write_text(BUG)
    variables = {"PYTHONPATH": f"{tmp_path}:{PROJECT}"}
    async with Asking(settings) as asking:
        requests = [(partition, echo_request()) for partition in range(PARTITIONS) for _ in range(6)]
        requests.insert(3, (0, echo_request(id=fresh_id("poison"))))
        sent = [await asking.send(orjson.dumps(request), partition=number) for number, request in requests]
        culprit = sent[3]
        workers: list[ServiceProcess] = []

        async def ended_or_done() -> bool:
            return workers[-1].exit_code is not None or places(asking.results.records) >= set(sent)

        while not places(asking.results.records) >= set(sent):
            workers.append(processes.spawn("worker", settings, variables))
            await until(ended_or_done, 40, f"start {len(workers)} ends, or everything is answered")
        assert len(workers) == STARTS
        assert {worker.exit_code for worker in workers} == {9, None}
        letters = await asking.dead_letters.until(len, 10, "the dead letter")
        results = asking.results.records
    answered = {place_of(record): orjson.loads(record.value) for record in results}
    assert len(results) == len(sent)
    assert answered.pop(culprit)["error"]["code"] == "INTERNAL"
    assert {answer["status"] for answer in answered.values()} == {"succeeded"}
    (letter,) = letters
    assert (header(letter, "reason"), header(letter, "source-offset")) == ("CRASHED_WORKER", str(culprit.offset))
    assert letter.value == orjson.dumps(requests[3][1])
