"""A worker tells of overloaded instances, whatever Kafka does meanwhile; time is virtual."""

import asyncio
import logging
from dataclasses import replace

import orjson
import pytest
from aiokafka.errors import KafkaConnectionError, KafkaError

from pipeline.core.fleet_lines import FleetLines
from pipeline.core.fleet_queue import ModelLine
from pipeline.core.overload_watch import REMIND_S
from pipeline.core.routing import InstanceView
from pipeline.dispatcher.dispatch import FleetView
from pipeline.metrics import EngineMetrics
from pipeline.worker.fleet_events import LOOK_S, PUBLISH_TIMEOUT_S, FleetEvents
from schemas.event import Event
from tests.simulation.virtual_time import UNIX_START, FakeClock, simulated, the_clock

QUICK = InstanceView("triton-0", 0.010, 1, 0.002, 0.0, 1.0, 10, 0, 0, 0)


class FakeTopic:
    """An events topic that takes lines, refuses them, or never answers.

    Attributes:
        lines: what it has.
        tries: how often it was asked.
    """

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.tries = 0
        self.failure: BaseException | None = None
        self.hangs = False
        self.takes_before_it_fails = False

    async def publish(self, lines: list[bytes]) -> None:
        """See `EventTopic.publish`."""
        self.tries += 1
        if self.takes_before_it_fails:
            self.lines += lines
        if self.hangs:
            await asyncio.Event().wait()
        if self.failure is not None:
            raise self.failure
        self.lines += lines

    @property
    def events(self) -> list[Event]:
        """What it has, as the sink would read it."""
        return [Event.model_validate(orjson.loads(line)) for line in self.lines]


class Watched:
    """Two instances whose queue refuses what a test says."""

    def __init__(self, clock: FakeClock) -> None:
        self.topic = FakeTopic()
        self.metrics = EngineMetrics()
        self.bugs: list[BaseException] = []
        self.instances = [QUICK, replace(QUICK, name="triton-1")]
        lines = FleetLines("w-1", 7.0)
        self.events = FleetEvents(lines, self.topic, self.view, self.metrics, clock, self.bugs.append)

    def view(self) -> FleetView:
        return FleetView(self.instances, [ModelLine("m", 40, 640, 0.1, 2), ModelLine("n", 2, 32, 0.1, 2)])

    def refuse(self, count: int = 1) -> None:
        self.metrics.fleet_shed["m", "overloaded"] += count


@simulated
async def test_full_queue_is_told_of_each_instance() -> None:
    """A second after the first refusal each instance has its line: which, when, by whom, why, how long it is kept."""
    watched = Watched(the_clock())
    await watched.events.start()
    watched.metrics.fleet_shed["m", "unwanted"] += 5
    await asyncio.sleep(10.5)
    assert watched.topic.lines == []
    watched.refuse(3)
    await asyncio.sleep(LOOK_S)
    await watched.events.stop()
    events = watched.topic.events
    assert [(one.event_type, one.instance, one.worker) for one in events] == [
        ("instance.overloaded", "triton-0", "w-1"),
        ("instance.overloaded", "triton-1", "w-1"),
    ]
    for event in events:
        assert (event.attributes["reason"], event.attributes["waiting"], event.attributes["refused"]) == (
            "queue",
            42,
            3,
        )
        assert event.occurred_at.timestamp() == pytest.approx(UNIX_START + 11)
        assert (event.expires_at - event.occurred_at).total_seconds() == pytest.approx(7 * 86400, abs=1)
    assert len({event.event_id for event in events}) == 2


@simulated
async def test_reminder_is_another_event() -> None:
    """What lasts is told once a minute, each time with an id of its own."""
    watched = Watched(the_clock())
    await watched.events.start()
    for _ in range(150):
        watched.refuse()
        await asyncio.sleep(1)
    await watched.events.stop()
    first = [event for event in watched.topic.events if event.instance == "triton-0"]
    assert [event.attributes["lasted_s"] for event in first] == [0.0, 60.0, 120.0]
    assert len({event.event_id for event in first}) == 3


@pytest.mark.parametrize("trouble", ["refuses", "connection", "silent"])
@simulated
async def test_event_is_told_when_kafka_is_back(trouble: str, caplog: pytest.LogCaptureFixture) -> None:
    """While it lasts the line is tried again, the same bytes; that Kafka is away is logged once, and harms nobody."""
    caplog.set_level(logging.WARNING, "pipeline.worker.fleet_events")
    watched = Watched(the_clock())
    watched.topic.hangs = trouble == "silent"
    failures = {"refuses": KafkaError("no"), "connection": KafkaConnectionError("away"), "silent": None}
    watched.topic.failure = failures[trouble]
    await watched.events.start()
    for _ in range(100):
        watched.refuse()
        await asyncio.sleep(1)
    assert watched.topic.lines == []
    assert watched.topic.tries > 100 / (LOOK_S + PUBLISH_TIMEOUT_S) - 2
    assert [record for record in caplog.messages if "cannot be published" in record] == [
        f"that triton-0, triton-1 is overloaded cannot be published while that lasts: "
        f"{failures[trouble] or 'TimeoutError'}"
    ]
    watched.topic.failure, watched.topic.hangs = None, False
    await asyncio.sleep(PUBLISH_TIMEOUT_S + LOOK_S)
    await watched.events.stop()
    events = watched.topic.events
    assert [event.instance for event in events] == ["triton-0", "triton-1"]
    assert [event.attributes["lasted_s"] for event in events] == [0.0, 0.0]
    assert events[0].occurred_at.timestamp() < UNIX_START + 2
    assert watched.bugs == []


@simulated
async def test_episode_that_ended_meanwhile_is_not_told() -> None:
    """What was over before Kafka was back is no news."""
    watched = Watched(the_clock())
    watched.topic.failure = KafkaConnectionError("away")
    await watched.events.start()
    watched.refuse()
    await asyncio.sleep(REMIND_S + 5)
    tries = watched.topic.tries
    watched.topic.failure = None
    await asyncio.sleep(30)
    await watched.events.stop()
    assert (watched.topic.lines, watched.topic.tries) == ([], tries)


@simulated
async def test_line_that_arrived_and_is_repeated_is_the_same() -> None:
    """A line whose confirmation was lost is written again with the same id, so that the log keeps one."""
    watched = Watched(the_clock())
    watched.topic.failure, watched.topic.takes_before_it_fails = KafkaError("lost"), True
    await watched.events.start()
    watched.refuse()
    await asyncio.sleep(5.5)
    await watched.events.stop()
    assert len(watched.topic.lines) >= 10
    assert len(set(watched.topic.lines)) == 2


@simulated
async def test_second_outage_is_logged_again(caplog: pytest.LogCaptureFixture) -> None:
    """Once for each outage, not once for ever."""
    caplog.set_level(logging.WARNING, "pipeline.worker.fleet_events")
    watched = Watched(the_clock())
    await watched.events.start()
    for failure in (KafkaError("one"), KafkaError("two"), None, KafkaError("three")):
        watched.topic.failure = failure
        watched.refuse()
        await asyncio.sleep(REMIND_S + LOOK_S + 0.5)
    await watched.events.stop()
    assert [record.rpartition(": ")[2] for record in caplog.messages if "cannot be" in record] == [
        "one",
        "two",
        "three",
    ]


@simulated
async def test_bug_is_reported() -> None:
    """A bug that ends the looking is told to whoever wants to know; nothing goes on in silence."""
    watched = Watched(the_clock())
    watched.instances = None  # type: ignore[assignment]
    await watched.events.start()
    await asyncio.sleep(2)
    assert [type(bug) for bug in watched.bugs] == [TypeError]
    await watched.events.stop()


@simulated
async def test_stop_comes_at_once_while_kafka_is_silent() -> None:
    """The end of a worker does not wait for a line; a second stop does nothing."""
    watched = Watched(the_clock())
    watched.topic.hangs = True
    await watched.events.start()
    watched.refuse()
    await asyncio.sleep(1.5)
    began = the_clock().monotonic()
    await watched.events.stop()
    await watched.events.stop()
    assert (the_clock().monotonic(), watched.topic.tries, watched.bugs) == (began, 1, [])
