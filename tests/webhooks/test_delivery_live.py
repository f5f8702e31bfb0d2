"""Callbacks over a real Kafka: to receivers of every kind, through crashes, and to the dead letters."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence

import orjson
import pytest
from aiokafka.admin import AIOKafkaAdminClient

from pipeline.adapters.kafka import client_options
from pipeline.adapters.topics import create_topics
from pipeline.client.dead_letters import DeadLetter
from pipeline.config import Settings
from pipeline.webhooks.main import WEBHOOKS_GROUP
from tests.live.stack import LiveStack
from tests.live.topics import TopicLog
from tests.live.waiting import until
from tests.webhooks.callbacks import (
    OLD_SECRET,
    SECRET,
    Requests,
    WebhooksChild,
    callback_record,
    delivering,
    live_settings,
    verified,
)
from tests.webhooks.receivers import Answer, RawReceiver, Receiver, die, dribble, flood, hang

pytestmark = [pytest.mark.live, pytest.mark.timeout(60)]

ATTEMPTS = 3


@pytest.fixture
async def settings(stack: LiveStack) -> Settings:
    """Quick retries, topics made."""
    made = live_settings(stack, max_in_flight_per_host=2)
    await create_topics(made)
    return made


@pytest.fixture
async def requests(settings: Settings) -> AsyncIterator[Requests]:
    """Writes callbacks."""
    async with Requests(settings) as writer:
        yield writer


async def all_names_here(host: str, port: int) -> Sequence[str]:
    """Every name is this machine's; `inside.example` is also somebody else's."""
    return ["127.0.0.1", "10.0.0.1"] if host == "inside.example" else ["127.0.0.1"]


async def letters_of(log: TopicLog, count: int) -> dict[str, DeadLetter]:
    """So many dead letters, by the id of their request."""
    records = await log.until(lambda found: len(found) >= count, 20, f"{count} dead letters")
    letters = [DeadLetter.of(record) for record in records]
    return {letter.request_id or "": letter for letter in letters}


async def test_result_is_delivered_signed(settings: Settings, requests: Requests) -> None:
    """The receiver gets the record's bytes, believes them with either secret of a rotation, and the log says so."""
    async with Receiver() as receiver, TopicLog(settings, "events") as events, delivering(settings):
        plain = await requests.ask(receiver.url("/a?b=c"))
        acmes = await requests.ask(receiver.url("/acme"), tenant="acme", text="bücher" * 400_000)
        await receiver.until_all([plain, acmes])
        lines = await events.until(lambda found: len(found) >= 2, 10, "two events")
    calls = {call.webhook_id: call for call in receiver.received}
    assert calls[plain].body == callback_record("", plain)[0]
    assert verified(calls[plain], SECRET, OLD_SECRET)["status"] == "succeeded"
    assert verified(calls[acmes], OLD_SECRET)["text"] == "bücher" * 400_000
    told = {event["request_id"]: event for event in map(orjson.loads, (record.value for record in lines))}
    assert {event["event_type"] for event in told.values()} == {"webhook.delivered"}
    assert (told[acmes]["tenant"], told[acmes]["model_name"]) == ("acme", "echo")
    assert told[plain]["attributes"] == {"attempt": 1}


async def test_failures_are_tried_again_then_buried(settings: Settings, requests: Requests) -> None:
    """Each kind of receiver gets its attempts, with one id; what was not delivered is a dead letter that says why."""
    answers: dict[str, list[Answer]] = {
        "/mends": [(500, {}), (503, {"Retry-After": "1"}), (204, {})],
        "/moved": [(302, {"Location": "/stolen"})],
        "/gone": [(410, {})],
        "/missing": [(404, {})],
    }
    async with (
        Receiver(answers=answers) as receiver, RawReceiver(die) as dying, RawReceiver(dribble) as dribbling,
        RawReceiver(flood(b"200 OK")) as flooding, TopicLog(settings, "dead-letter") as dead,
        TopicLog(settings, "events") as events, delivering(settings, all_names_here),
    ):  # fmt: skip
        ids = {path: await requests.ask(receiver.url(path)) for path in answers}
        ids |= {"dies": await requests.ask(dying.url()), "dribbles": await requests.ask(dribbling.url())}
        ids |= {"floods": await requests.ask(flooding.url())}
        ids |= {"inside": await requests.ask("https://inside.example/")}
        ids |= {"private": await requests.ask("https://192.168.0.1/")}
        ids |= {"unsigned": await requests.ask(receiver.url("/unsigned"), tenant="nobody")}
        letters = await letters_of(dead, 8)
        await receiver.until(lambda calls: [call.path for call in calls].count("/mends") == ATTEMPTS)
        delivered = {ids["/mends"], ids["floods"]}
        lines = await events.until(
            lambda found: delivered <= {told["request_id"] for told in map(orjson.loads, (r.value for r in found))
                                        if told["event_type"] == "webhook.delivered"}, 20, "deliveries told",
        )  # fmt: skip
    assert Counter(call.path for call in receiver.received) == {
        "/mends": ATTEMPTS, "/moved": ATTEMPTS, "/missing": ATTEMPTS, "/gone": 1,
    }  # fmt: skip
    assert set(receiver.ids("/mends")) == {ids["/mends"]}
    assert {name: letters[ids[name]].reason for name in ids if ids[name] in letters} == {
        "/moved": "WEBHOOK_FAILED", "/missing": "WEBHOOK_FAILED", "/gone": "WEBHOOK_GONE", "dies": "WEBHOOK_FAILED",
        "dribbles": "WEBHOOK_FAILED", "inside": "WEBHOOK_REFUSED", "private": "WEBHOOK_REFUSED",
        "unsigned": "WEBHOOK_REFUSED",
    }  # fmt: skip
    assert "no secret in PIPELINE_WEBHOOKS__SECRETS" in letters[ids["unsigned"]].error
    assert "10.0.0.1, which is not public" in letters[ids["inside"]].error
    assert letters[ids["/moved"]].value == callback_record("", ids["/moved"])[0]
    source = letters[ids["/moved"]].source
    assert source is not None
    assert source.topic.startswith(settings.topic("webhooks"))
    failed = [told for told in map(orjson.loads, (r.value for r in lines)) if told["request_id"] == ids["/missing"]]
    assert [told["attributes"]["is_last"] for told in failed] == [False, False, True]
    assert len({told["event_id"] for told in failed}) == ATTEMPTS


async def test_dead_receiver_delays_no_other(settings: Settings, requests: Requests) -> None:
    """While one host hangs, with ten times the calls it may have, the callbacks of others behind it arrive."""
    async with RawReceiver(hang) as hanging, Receiver() as receiver, delivering(settings, all_names_here):
        await requests.ask_many([f"http://slow.example:{hanging.port}/"] * 20)
        ids = await requests.ask_many([f"http://quick.example:{receiver.port}/{n}" for n in range(200)])
        await receiver.until_all(ids)
        # Two at a time, each for a second: most of them have not had their first attempt.
        assert 0 < hanging.connections < 20
    assert len(receiver.received) == 200


async def test_callbacks_survive_a_kill(settings: Settings, requests: Requests) -> None:
    """Killed after a commit, with calls out and retries waiting, every callback arrives, with the same id and bytes."""
    once_refused: list[Answer] = [(500, {}), (204, {})]
    held = [f"/held/{n}" for n in range(6)]
    paths = held + [f"/{n}" for n in range(300)]
    async with Receiver({f"/{n}": once_refused for n in range(0, 300, 3)}, held=frozenset(held)) as receiver:
        ids = await requests.ask_many([receiver.url(path) for path in paths])
        child = WebhooksChild(settings)
        try:
            await receiver.until_all(ids)
            await until(lambda: has_committed(settings), 10, "a commit")
        finally:
            child.kill()
        child = WebhooksChild(settings)
        try:
            # The group waits for the dead member's session before it goes on.
            await receiver.until(lambda calls: all(_is_delivered(receiver, path) for path in paths), 40)
        finally:
            code = await child.end()
    assert (code, child.log.count("Traceback")) == (0, 0)
    assert set(receiver.ids()) == set(ids)
    for call in receiver.received:
        assert call.body == callback_record("", call.webhook_id)[0]
        verified(call, SECRET, OLD_SECRET)


def _is_delivered(receiver: Receiver, path: str) -> bool:
    """Whether a call to a path was answered well: the first one of these was not."""
    return len(receiver.ids(path)) >= (2 if path in receiver.held or path in receiver.answers else 1)


async def has_committed(settings: Settings) -> bool:
    """Whether the group has committed any offset of these topics."""
    admin = AIOKafkaAdminClient(**client_options(settings.kafka))
    await admin.start()
    try:
        places = await admin.list_consumer_group_offsets(WEBHOOKS_GROUP)
    finally:
        await admin.close()
    return any(place.topic == settings.topic("webhooks") and data.offset >= 0 for place, data in places.items())


async def test_stop_commits_what_was_delivered(settings: Settings, requests: Requests) -> None:
    """A process that is stopped and started again delivers nothing twice."""
    async with Receiver() as receiver:
        for _ in range(2):
            async with delivering(settings):
                await receiver.until_all(await requests.ask_many([receiver.url()] * 10))
        async with delivering(settings):
            last = await requests.ask(receiver.url("/last"))
            await receiver.until_all([last])
    assert max(Counter(receiver.ids()).values()) == 1
    assert len(receiver.received) == 21


async def test_missing_topics_are_waited_for(stack: LiveStack) -> None:
    """Without its topics the process says which are missing, and begins when they are made."""
    settings = live_settings(stack)
    async with Receiver() as receiver, delivering(settings) as process:
        async with asyncio.timeout(10):
            while "topics are missing" not in process._not_ready().get("kafka", ""):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await create_topics(settings)
        async with Requests(settings) as requests:
            await receiver.until_all([await requests.ask(receiver.url())])
        assert process._not_ready() == {}
