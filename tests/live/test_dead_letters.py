"""Dead letters from end to end: buried, found by the command line, sent again, answered."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import orjson
import pytest
from aiokafka import AIOKafkaProducer, ConsumerRecord
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from typer.testing import CliRunner

from pipeline.adapters.kafka import client_options
from pipeline.adapters.topics import create_topics
from pipeline.cli.main import app
from pipeline.client.dead_letters import DeadLetter, DeadLetterNotFound, DeadLetterTopic, Place
from pipeline.config import Settings
from pipeline.errors import TopicError
from pipeline.worker.preflight import wait_for_topics
from tests.client.dead_letter_records import burial_headers
from tests.live.asking import Asking, binary_record, echo_request, fresh_id
from tests.live.processes import ProcessGroup, environment
from tests.live.topics import Headers, TopicLog, header
from tests.sink.event_records import event
from tests.sink.event_records import record as event_record

PARTITION = 3


@dataclass(frozen=True)
class CommandLine:
    """`pipeline dead-letter` with the settings of a test."""

    settings: Settings

    def run(self, *arguments: str, text: str | None = None) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        command = ("dead-letter", *arguments)
        result = CliRunner(env=environment(self.settings)).invoke(app, command, input=text)
        return result.exit_code, result.stdout, result.stderr

    async def start(self, *arguments: str, text: str | None = None) -> tuple[int, str, str]:
        """Likewise beside a running event loop: the commands have their own."""
        return await asyncio.to_thread(self.run, *arguments, text=text)

    async def listed(self, *arguments: str) -> list[dict[str, object]]:
        """What `list --json` shows."""
        code, out, _ = await self.start("list", "--json", *arguments)
        assert code == 0
        return [json.loads(line) for line in out.splitlines()]


async def bury(settings: Settings, letters: Sequence[tuple[bytes | None, Headers, int]]) -> list[Place]:
    """Puts letters into the dead-letter topic, a millisecond apart: value, headers, partition."""
    places = []
    first_ms = int(time.time() * 1000) - 60_000
    async with AIOKafkaProducer(**client_options(settings.kafka)) as producer:
        for number, (value, headers, partition) in enumerate(letters):
            at = await producer.send_and_wait(
                settings.topic("dead-letter"), value, b"k", partition, first_ms + number, list(headers)
            )
            places.append(Place(at.partition, at.offset))
    return places


async def test_request_with_a_missing_header_is_mended(asking: Asking) -> None:
    """A binary record without its header is buried, found, refused as it is, and answered once the header is given."""
    request = echo_request()
    value, headers = binary_record(request, [b"\x00\x00\x28\x42"])
    sent = await asking.send(value, key=b"its key", headers=[("ce_id", b"named-before")], partition=PARTITION)
    assert (await asking.answer(sent)).error == "INVALID_REQUEST"
    command = CommandLine(asking.settings)
    where = ("--partition", str(PARTITION), "--offset", str(sent.offset))
    (found,) = await command.listed(*where)
    assert (found["reason"], found["key"], found["size"]) == ("NOT_JSON", "its key", len(value))
    assert found["source"] == {
        "topic": asking.settings.topic("requests"), "partition": PARTITION, "offset": sent.offset
    }  # fmt: skip
    assert found["id"] == request["id"]

    code, out, err = await command.start("retry", str(found["place"]), "--json")
    assert (code, "dead letter again" in out) == (1, True)
    mending = f"{headers[0][0]}={headers[0][1].decode()}"
    code, out, err = await command.start("retry", str(found["place"]), "--json", "--header", mending)
    assert code == 0, err
    outcome = json.loads(out)
    assert (outcome["retry_of"], outcome["partition"]) == (request["id"], PARTITION)
    assert outcome["id"] not in {request["id"], "named-before"}
    place = type(sent)(outcome["partition"], outcome["offset"])
    answered = await asking.answer(place)
    assert answered.status == "succeeded", answered.message
    assert answered.result.id == outcome["id"]
    assert answered.record.key == b"its key"
    assert answered.result.output("fp32_echo").raw == b"\x00\x00\x28\x42"


async def test_buried_duplicate_is_answered_under_its_new_id(asking: Asking) -> None:
    """A record whose id had another content is a request like any other once it has an id of its own."""
    request = echo_request()
    source = burial_headers(reason="DUPLICATE_ID", topic=asking.settings.topic("requests"))
    await bury(asking.settings, [(orjson.dumps(request), source, 0)])
    command = CommandLine(asking.settings)
    code, out, _ = await command.start("retry", "--id", str(request["id"]), "--yes", "--json")
    assert code == 0
    outcome = json.loads(out)

    def belongs(record: ConsumerRecord) -> bool:
        return header(record, "ce_id") == str(outcome["id"])

    record = await asking.results.first(belongs, 15.0, "the answer to the retry")
    assert record.partition == outcome["partition"] == 2
    assert json.loads(record.value)["status"] == "succeeded"


@pytest.fixture
async def empty(bootstrap_servers: str, settings: Settings) -> Settings:
    """Topics without a worker and without a record."""
    await create_topics(settings)
    return settings


async def test_letters_are_listed_in_the_order_of_their_times(empty: Settings) -> None:
    """Partitions are read together; filters, limit and count are as asked; letters that come later do not matter."""
    values = [f"no json {number}".encode() for number in range(7)]
    headers = burial_headers(topic=empty.topic("requests"))
    await bury(empty, [(value, headers, number % 2) for number, value in enumerate(values)])
    command = CommandLine(empty)
    assert [one["value"] for one in await command.listed()] == [value.decode() for value in values]
    assert len(await command.listed("--limit", "3")) == 3
    assert await command.listed("--reason", "TOMBSTONE") == []
    assert len(await command.listed("--since", "1h")) == 7
    assert await command.listed("--since", "0s") == []
    code, out, err = await command.start("list", "--partition", "2")
    assert (code, out.count("NOT_JSON"), err) == (0, 7, "7 dead letters\n")


async def test_nothing_is_sent_without_a_yes(empty: Settings) -> None:
    """A dry run and a "no" leave the topics as they are; an empty selection asks nothing and is no failure."""
    request = orjson.dumps(echo_request())
    await bury(empty, [(request, burial_headers(topic=empty.topic("requests")), 0)])
    command = CommandLine(empty)
    code, _, err = await command.start("retry", "--all", "--dry-run")
    assert (code, "would be sent again" in err) == (0, True)
    code, _, err = await command.start("retry", "--all", text="n\n")
    assert (code, "Send 1 dead letter again?" in err) == (1, True)
    assert (await command.start("retry", "--reason", "NOBODY"))[0] == 0
    async with TopicLog(empty, "requests") as requests:
        code, _, _ = await command.start("retry", "--all", text="y\n")
        assert code == 0
        records = await requests.until(len, 10.0, "the retry")
    assert len(records) == 1
    assert (records[0].partition, records[0].key, header(records[0], "reason")) == (2, b"k", None)


async def test_letters_that_cannot_be_sent_are_told(empty: Settings) -> None:
    """One bad letter does not keep the others; the exit code says that one was meant and not sent."""
    requests = empty.topic("requests")
    await bury(
        empty,
        [
            (b"no json", burial_headers(topic=requests), 0),
            (orjson.dumps(echo_request()), burial_headers(topic=requests), 0),
            (None, burial_headers(topic=requests, reason="TOMBSTONE"), 0),
        ],
    )
    command = CommandLine(empty)
    code, out, err = await command.start("retry", "--all", "--yes")
    assert (code, len(out.splitlines())) == (1, 1)
    assert "0:0: not sent: it would be a dead letter again" in err
    assert "0:2: not sent: it has no value" in err
    assert "1 dead letter sent again, 2 not" in err
    code, out, _ = await command.start("retry", "0:0", "--force", "--json")
    assert (code, json.loads(out)["partition"]) == (0, 2)


async def test_event_line_goes_back_to_its_partition(empty: Settings) -> None:
    """The sink finds the line in the one partition where its row may be repeated, flagged as redelivered."""
    line = event_record(event(fresh_id())).rstrip()
    headers = [*burial_headers(topic=empty.topic("events"), reason="POISON_ROW")]
    headers[-2] = ("source-partition", b"1")
    (place,) = await bury(empty, [(line, headers, 0)])
    async with TopicLog(empty, "events") as events:
        code, _, err = await CommandLine(empty).start("retry", str(place))
        assert code == 0, err
        (record,) = await events.until(len, 10.0, "the retry")
    assert (record.partition, record.value) == (1, line)
    assert header(record, "redelivered") == "1"


async def test_places_that_hold_nothing_are_named(empty: Settings) -> None:
    """A place outside the log is an error that says what is there; the log is not read from its start for it."""
    await bury(empty, [(b"x", (), 0)])
    async with DeadLetterTopic(client_options(empty.kafka), empty.topic("dead-letter")) as topic:
        for place, held in ((Place(0, 1), "offsets 0 to 0"), (Place(1, 0), "nothing"), (Place(9, 0), "nothing")):
            with pytest.raises(DeadLetterNotFound, match=f"no dead letter at {place}.*{held}"):
                [one async for one in topic.at([place])]
        found: list[DeadLetter] = [one async for one in topic.at([Place(0, 0)])]
    assert [one.value for one in found] == [b"x"]
    code, out, err = await CommandLine(empty).start("retry", "0:1")
    assert (code, out, err.count("\n")) == (1, "", 1)


async def test_missing_topic_is_named(settings: Settings) -> None:
    """Where no topics were made yet, the command that makes them is named."""
    code, _, err = await CommandLine(settings).start("list")
    assert code == 1
    assert "dead-letter does not exist: make it with `pipeline topics create`" in err


async def test_worker_refuses_a_ledger_that_forgets(empty: Settings, processes: ProcessGroup) -> None:
    """A real worker ends with one line for each difference; after `topics create --alter` the same topics are taken."""
    names = [empty.topic(name) for name in ("requests", "results")]
    changed = {names[0]: {"message.timestamp.type": "CreateTime"}, names[1]: {"retention.bytes": "1000000"}}
    admin = AIOKafkaAdminClient(**client_options(empty.kafka))
    await admin.start()
    try:
        kind = ConfigResourceType.TOPIC
        await admin.alter_configs([ConfigResource(kind, name, configs) for name, configs in changed.items()])
    finally:
        await admin.close()
    worker = await processes.start("worker", empty, ready=False)
    assert await worker.wait_exit(40.0) == 1
    lines = [line for line in worker.log.splitlines() if line.startswith("pipeline: ")]
    assert [line.split(" is ")[0] for line in lines] == [
        # What is not set on a topic is the broker's default: 7 days for both, too few for results.
        f"pipeline: {names[0]}: message.timestamp.type",
        f"pipeline: {names[1]}: retention.bytes",
        f"pipeline: {names[1]}: retention.ms",
    ]
    with pytest.raises(TopicError):
        await wait_for_topics(empty)
    assert (await create_topics(empty, alter=True)).differences == ()
    assert (await wait_for_topics(empty))[names[0]] == 4
