"""A worker tells which instances it finds overloaded, as events. Nothing waits for it, requests least of all."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Protocol

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from pipeline.adapters.event_topic import EventTopic
from pipeline.adapters.kafka import client_options
from pipeline.adapters.system import SystemClock
from pipeline.config import Settings
from pipeline.core.fleet_lines import FleetLines
from pipeline.core.overload_watch import FleetReading, Overload, OverloadWatch
from pipeline.dispatcher.dispatch import FleetView
from pipeline.metrics import EngineMetrics
from pipeline.ports import Clock

logger = logging.getLogger(__name__)

# A look takes 12 us with four instances, 70 with 32: less than a request, once a second.
LOOK_S = 1.0
# A Kafka that does not take a line in this time is away; the line is tried again at a later look.
PUBLISH_TIMEOUT_S = 5.0


class LineTopic(Protocol):
    """Where lines go: `pipeline.adapters.event_topic.EventTopic`."""

    async def publish(self, lines: list[bytes]) -> None:
        """See `EventTopic.publish`."""


class FleetEvents:
    """Looks at one worker's fleet for as long as it runs, and publishes `instance.overloaded`.

    Args:
        lines: writes the events.
        topic: takes them.
        view: the fleet as the worker sees it.
        metrics: what its dispatcher counts.
        clock: time.
        on_bug: is told of a bug that ended the looking. A Kafka that is away is none.
    """

    def __init__(
        self,
        lines: FleetLines,
        topic: LineTopic,
        view: Callable[[], FleetView],
        metrics: EngineMetrics,
        clock: Clock,
        on_bug: Callable[[BaseException], None],
    ) -> None:
        self._lines = lines
        self._topic = topic
        self._view = view
        self._metrics = metrics
        self._clock = clock
        self._on_bug = on_bug
        self._watch = OverloadWatch()
        # By instance; what waits for Kafka is written once, so that a repeated line has the same id.
        self._unsent: dict[str, bytes] = {}
        self._is_away = False
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts looking; returns at once."""
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_forever(), name="look at the fleet")
            self._looking.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Stops looking; what is not sent by now is lost. Idempotent."""
        task, self._looking = self._looking, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _look_forever(self) -> None:
        while True:
            self._look()
            if self._unsent:
                await self._publish()
            else:
                self._is_away = False  # the next outage is another one
            await asyncio.sleep(LOOK_S)

    def _look(self) -> None:
        view = self._view()
        shed = self._metrics.fleet_shed.items()
        refused = sum([count for (_, reason), count in shed if reason == "overloaded"])
        reading = FleetReading(view.instances, sum([line.waiting for line in view.models]), refused)
        for overload in self._watch.look(reading, self._clock.monotonic()):
            logger.warning("%s is overloaded: %s", overload.instance, _told(overload))
            at = datetime.fromtimestamp(self._clock.now(), UTC)
            line = self._lines.instance("instance.overloaded", overload.instance, at, overload.attributes)
            # A reminder adds nothing to a beginning that nobody has heard of yet.
            self._unsent.setdefault(overload.instance, line)
        # What is over by the time that Kafka is back is no news.
        lasting = self._watch.lasting
        self._unsent = {name: line for name, line in self._unsent.items() if name in lasting}

    async def _publish(self) -> None:
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                await self._topic.publish(list(self._unsent.values()))
        except (KafkaError, OSError) as error:  # a TimeoutError is an OSError
            if not self._is_away:
                names = ", ".join(self._unsent)
                reason = str(error) or type(error).__name__
                logger.warning("that %s is overloaded cannot be published while that lasts: %s", names, reason)
            self._is_away = True
            return
        self._unsent.clear()
        self._is_away = False

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (bug := task.exception()) is not None:
            self._on_bug(bug)


@asynccontextmanager
async def overloads_told(
    settings: Settings,
    worker: str,
    view: Callable[[], FleetView],
    metrics: EngineMetrics,
    on_bug: Callable[[BaseException], None],
) -> AsyncIterator[FleetEvents]:
    """Tells of overloaded instances while its block runs.

    The producer is its own, so that results and the events of requests never wait for it. It is not idempotent: such a
    one tries for ever, and would keep every line of an outage; a line that arrives twice is kept once by its id.

    Args:
        settings: where Kafka is, and how long events are kept.
        worker: this worker's name.
        view: the fleet as the worker sees it.
        metrics: what its dispatcher counts.
        on_bug: is told of a bug.

    Raises:
        KafkaError: Kafka is not there at the start.
    """
    producer = AIOKafkaProducer(
        **client_options(settings.kafka), acks="all", request_timeout_ms=int(PUBLISH_TIMEOUT_S * 1e3)
    )
    async with producer:
        lines = FleetLines(worker, settings.retention.events_days)
        topic = EventTopic(producer, settings.topic("events"))
        events = FleetEvents(lines, topic, view, metrics, SystemClock(), on_bug)
        await events.start()
        try:
            yield events
        finally:
            await events.stop()


def _told(overload: Overload) -> str:
    return ", ".join(f"{name} {value}" for name, value in overload.attributes.items())
