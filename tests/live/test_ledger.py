"""The results topic is the ledger: whatever happens to workers and topics, no request is answered twice."""

import asyncio
import signal
from collections import Counter
from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from pipeline.adapters.kafka import client_options
from pipeline.adapters.topics import create_topics, partition_counts
from pipeline.config import Settings
from tests.live.asking import Asking, Sent, all_committed, binary_record, echo_request, event_lines
from tests.live.load import place_of, places
from tests.live.processes import ProcessGroup, ServiceProcess
from tests.live.stack import LiveStack
from tests.live.topics import TopicLog, header, prepare_topics
from tests.live.waiting import until

# The broker's least: a dead worker's partitions wait this long.
SESSION_S = 6
PARTITIONS = 4
NAN = b"\x00\x00\xc0\x7f"


async def repeated(worker: ServiceProcess) -> int:
    """How many requests this worker found answered."""
    _, metrics = await worker.get("/metrics")
    return int(
        float(
            next(
                line.split()[-1] for line in metrics.splitlines() if line.startswith("pipeline_answers_repeated_total ")
            )
        )
    )


async def commit_by_hand(settings: Settings, places: Mapping[int, tuple[int, str]]) -> None:
    """Commits offsets with metadata, by partition, as any admin may while the group is empty."""
    topic = settings.topic("requests")
    commits = {TopicPartition(topic, number): place for number, place in places.items()}
    consumer = AIOKafkaConsumer(
        **client_options(settings.kafka), group_id=settings.worker.group, enable_auto_commit=False
    )
    consumer.assign(list(commits))
    async with consumer:
        await consumer.commit(commits)


def counts(records: list[ConsumerRecord]) -> Counter[Sent]:
    """How many results each request has."""
    return Counter(map(place_of, records))


async def send_all_kinds(asking: Asking) -> list[Sent]:
    """One request of each kind on every partition: values in JSON and binary, failures, copies, dead letters."""
    sent = []
    for partition in range(PARTITIONS):
        binary = binary_record(echo_request(parameters={"binary_data_output": True}), [NAN])
        kinds: list[tuple[bytes, Any]] = [
            (orjson.dumps(echo_request()), ()),
            (orjson.dumps(echo_request(tenant="acme", reply_to={"partition": 1})), ()),
            (orjson.dumps({name: value for name, value in echo_request().items() if name != "id"}), ()),
            (orjson.dumps(echo_request(enable_cache=False)), ()),
            (orjson.dumps(echo_request(parameters={"fail": "on purpose"})), ()),
            (orjson.dumps(echo_request(model_name="nobody")), ()),
            (orjson.dumps(echo_request(unknown="member")), ()),
            (b"not json", [("ce_id", f"named-{partition}".encode())]),
            binary,
        ]
        sent += [await asking.send(value, headers=headers, partition=partition) for value, headers in kinds]
    return sent


@pytest.mark.timeout(120)
async def test_answers_of_a_killed_worker_are_not_given_again(stack: LiveStack, processes: ProcessGroup) -> None:
    """SIGKILL when much is answered and nothing committed: the next owner writes what belongs to it, no answer."""
    settings = stack.make_settings(kafka={"session_timeout_s": SESSION_S})
    await prepare_topics(settings, stack.models.values())
    first = await processes.start("worker", settings)
    async with (
        Asking(settings) as asking,
        TopicLog(settings, "events") as events,
        TopicLog(settings, "replies") as replies,
    ):
        # One flight for all partitions, at one Triton: nothing behind it is committed while it runs.
        slow = [echo_request(-1.0, parameters={"delay_ms": 3000}) for _ in range(PARTITIONS)]
        slow_places = {await asking.send(orjson.dumps(one), partition=number) for number, one in enumerate(slow)}
        await until_in_flight(first, PARTITIONS)
        quick = set(await send_all_kinds(asking))
        await asking.results.until(lambda records: quick <= places(records), 20, "all quick answers")
        first.send(signal.SIGKILL)
        assert await first.wait_exit() == -signal.SIGKILL
        second = await processes.start("worker", settings)
        await all_committed(settings)
        # A slow one may have been answered by the first worker too, where a quick one had waited behind it.
        assert len(quick) <= await repeated(second) <= len(quick | slow_places)
        second.send(signal.SIGTERM)
        assert await second.wait_exit() == 0
        results, letters = asking.results.records, asking.dead_letters.records
    assert counts(results) == dict.fromkeys(quick | slow_places, 1)
    check_events(results, events.records)
    wanted = {record.value for record in results if header(record, "tenant") == "acme"}
    assert {record.value for record in replies.records} == wanted
    assert {header(record, "ce_id") for record in letters} == {f"named-{number}" for number in range(PARTITIONS)}


async def until_in_flight(worker: ServiceProcess, count: int) -> None:
    """Returns when so many requests are taken and not answered."""

    async def taken() -> bool:
        return bool((await worker.state()).get("in_flight") == count)

    await until(taken, 20, f"{count} requests are in flight")


def check_events(results: list[ConsumerRecord], records: list[ConsumerRecord]) -> None:
    """Every answer has its events, and whatever is there twice says so."""
    lines = event_lines(records)
    known = {(line.request_id, line.event_type) for line in lines}
    ids = {header(record, "ce_id") for record in results}
    assert {(request_id, kind) for request_id in ids for kind in ("request.received", "result.published")} <= known
    seen: set[str] = set()
    for line in lines:
        assert line.redelivered or line.event_id not in seen, f"repeated, and its header does not say so: {line}"
        seen.add(line.event_id)
    assert len(seen) == len(known), "an event has two ids, or two events have one"


@pytest.mark.timeout(120)
async def test_paused_workers_answers_are_not_published(stack: LiveStack, processes: ProcessGroup) -> None:
    """SIGSTOP beyond the session with answers on their way: after SIGCONT nothing of the old generation appears."""
    settings = stack.make_settings(kafka={"session_timeout_s": SESSION_S})
    await prepare_topics(settings, stack.models.values())
    paused, other = await asyncio.gather(*(processes.start("worker", settings) for _ in range(2)))
    owned, _ = await asyncio.gather(
        *(worker.wait_partitions(lambda found: len(found) == 2) for worker in (paused, other))
    )
    async with Asking(settings) as asking, TopicLog(settings, "events") as events:
        sent = [
            await asking.send(orjson.dumps(echo_request(parameters={"delay_ms": 500})), partition=number)
            for number in owned
            for _ in range(10)
        ]
        await until_in_flight(paused, len(sent))
        paused.send(signal.SIGSTOP)
        before = places(asking.results.records)
        await other.wait_partitions(lambda found: len(found) == PARTITIONS)
        await asking.results.until(lambda records: set(sent) <= places(records), 30, "all answers")
        generation = max(line.generation for line in event_lines(events.records))
        last = len(events.records)
        paused.send(signal.SIGCONT)
        await paused.wait_partitions(lambda found: len(found) == 2)
        later = [await asking.ask(echo_request(), partition=number) for number in range(PARTITIONS)]
        await all_committed(settings)
        results = asking.results.records
        late_lines = event_lines(events.records[last:])
    assert len(before) < len(sent), "nothing was on its way when the worker was paused"
    assert all(answer.status == "succeeded" for answer in later)
    assert {place: count for place, count in counts(results).items() if count > 1} == {}
    assert min(line.generation for line in late_lines) >= generation, "a replaced worker wrote events"
    check_events(results, events.records)


def foreign_headers(request_id: bytes, offset: int, timestamp_ms: int, group: str) -> list[tuple[str, bytes]]:
    """What makes a record of the results topic look like the answer to a request."""
    return [
        ("ce_id", request_id),
        ("request-offset", b"%d" % offset),
        ("request-timestamp", b"%d" % timestamp_ms),
        ("request-digest", b"no digest"),
        ("worker-group", group.encode()),
    ]


@pytest.mark.timeout(120)
async def test_commits_by_hand_and_foreign_results_answer_nothing_twice(
    stack: LiveStack, processes: ProcessGroup
) -> None:
    """Offsets set back or past the end, notes that are none, strange records in results: told, and put up with."""
    settings = stack.make_settings()
    await prepare_topics(settings, stack.models.values())
    group = settings.worker.group
    first = await processes.start("worker", settings)
    async with (
        Asking(settings) as asking,
        AIOKafkaProducer(**client_options(settings.kafka)) as producer,
        TopicLog(settings, "events") as events,
        TopicLog(settings, "requests") as requests,
    ):
        sent = await send_all_kinds(asking)
        await asking.results.until(lambda records: set(sent) <= places(records), 20, "all answers")
        first.send(signal.SIGTERM)
        assert await first.wait_exit() == 0
        each = len(sent) // PARTITIONS
        pending = [await asking.send(orjson.dumps(echo_request()), partition=number) for number in range(PARTITIONS)]
        records = await requests.until(lambda found: len(found) == len(sent) + PARTITIONS, 10, "the requests")
        for record in (record for record in records if Sent(record.partition, record.offset) in pending):
            own = orjson.loads(record.value)["id"].encode()
            for headers in (
                [],
                foreign_headers(own, record.offset, record.timestamp, group),
                foreign_headers(own, record.offset, 10**30, group),
                foreign_headers(own, 10**30, record.timestamp, group),
                foreign_headers(own, -1, record.timestamp, group),
                foreign_headers(own, record.offset, record.timestamp, "another"),
                foreign_headers(b"\xff\xfe", record.offset, record.timestamp, group),
            ):
                await producer.send_and_wait(
                    settings.topic("results"), b"hello", partition=record.partition, headers=headers
                )
        huge = '{"results":' + "9" * 4000 + "}"
        by_hand = {0: (0, ""), 1: (2, '{"results":-5}'), 2: (0, huge), 3: (1000, "[]")}
        await commit_by_hand(settings, by_hand)
        second = await processes.start("worker", settings)
        await all_committed(settings)
        assert await repeated(second) == 3 * each + each - 2
        results = [record for record in asking.results.records if record.value != b"hello"]
    assert counts(results) == dict.fromkeys([*sent, *pending], 1)
    check_events(results, events.records)
    name = settings.topic("requests")
    assert f"{name}-1: the commit 2 was not made by a worker" in second.log
    assert f"{name}-3: the commit 1000 is past the end {each + 1}" in second.log
    assert second.log.count("has a result's headers and is none") == PARTITIONS


async def delete_topics(settings: Settings, *names: str) -> None:
    """Deletes topics; returns when they are gone."""
    topics = [settings.topic(name) for name in names]
    admin = AIOKafkaAdminClient(**client_options(settings.kafka))
    await admin.start()
    try:
        await admin.delete_topics(topics)

        async def gone() -> bool:
            return not set(topics) & set(await partition_counts(admin))

        await until(gone, 20, f"{topics} are gone")
    finally:
        await admin.close()


async def answered_once_each(settings: Settings, worker: ServiceProcess, processes: ProcessGroup) -> ServiceProcess:
    """Sends a request to each partition; each gets one answer, of this worker or of one that is started in its place.

    Returns the worker that runs then.
    """
    async with Asking(settings) as asking:
        sent = [await asking.send(orjson.dumps(echo_request()), partition=number) for number in range(PARTITIONS)]

        async def answered_or_ended() -> bool:
            return worker.exit_code is not None or set(sent) <= places(asking.results.records)

        await until(answered_or_ended, 40, "answers, or the worker's end")
        if worker.exit_code is not None:
            assert worker.exit_code == 1
            worker = await processes.start("worker", settings)
        assert [(await asking.answer(place)).status for place in sent] == ["succeeded"] * PARTITIONS
        assert set(counts(asking.results.records).values()) == {1}
    return worker


@pytest.mark.timeout(120)
async def test_topics_that_are_made_anew_are_served(stack: LiveStack, processes: ProcessGroup) -> None:
    """Results and requests deleted and made again, under a worker and without one: what comes then is answered."""
    settings = stack.make_settings()
    await prepare_topics(settings, stack.models.values())
    worker = await processes.start("worker", settings)
    await answered_once_each(settings, worker, processes)
    await delete_topics(settings, "results")
    await create_topics(settings)
    assert await answered_once_each(settings, worker, processes) is worker
    # The commits go with their topic: a worker that had something to commit ends, and its supervisor starts another.
    await delete_topics(settings, "requests")
    await create_topics(settings)
    worker = await answered_once_each(settings, worker, processes)
    worker.send(signal.SIGTERM)
    assert await worker.wait_exit() == 0
    await delete_topics(settings, "requests", "results")
    await create_topics(settings)
    await answered_once_each(settings, await processes.start("worker", settings), processes)


@pytest.mark.timeout(90)
async def test_group_without_commits_begins_only_at_the_begin(stack: LiveStack, processes: ProcessGroup) -> None:
    """Of a whole log a new group answers everything; of a shortened one it refuses in one line that says the cure."""
    settings = stack.make_settings()
    await prepare_topics(settings, stack.models.values())
    fresh, late = (
        settings.model_copy(update={"worker": settings.worker.model_copy(update={"group": f"{name}-group"})})
        for name in (f"{settings.worker.group}-fresh", f"{settings.worker.group}-late")
    )
    async with Asking(settings) as asking:
        sent = [await asking.send(orjson.dumps(echo_request()), partition=number) for number in range(PARTITIONS)]
        worker = await processes.start("worker", fresh)
        assert [(await asking.answer(place)).status for place in sent] == ["succeeded"] * PARTITIONS
        worker.send(signal.SIGTERM)
        assert await worker.wait_exit() == 0
    place = TopicPartition(settings.topic("requests"), 3)
    admin = AIOKafkaAdminClient(**client_options(settings.kafka))
    await admin.start()
    try:
        await admin.delete_records({place: RecordsToDelete(before_offset=1)})
    finally:
        await admin.close()
    refusing = await processes.start("worker", late, ready=False)
    assert await refusing.wait_exit(40) == 1
    (line,) = (line for line in refusing.log.splitlines() if " ends: " in line)
    assert f"group {late.worker.group} has no commit for {place.topic}-3, whose log begins at 1" in line
    assert f"kafka-consumer-groups --group {late.worker.group} --topic {place.topic}:3 --reset-offsets" in line
