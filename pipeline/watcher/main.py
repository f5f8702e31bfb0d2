"""The watcher process: passes over the repository when something changed, an operator's commands, events.

Any number of watchers may run: each pass holds the serving folder's lock, begins with what is published and served, and
changes nothing where nothing is to do. Without one, everything that serves goes on serving.
"""

import asyncio
import logging
import os
import signal
import socket
import time
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import uvloop
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from prometheus_client import CollectorRegistry, Counter, Gauge

from pipeline.adapters.control_topic import ControlFollower
from pipeline.adapters.event_topic import EventTopic
from pipeline.adapters.kafka import cancel_until_ended, client_options
from pipeline.adapters.status_http import StatusServer
from pipeline.adapters.triton import instance_names
from pipeline.adapters.triton_channel import channel_credentials
from pipeline.config import Settings
from pipeline.core.model_events import ModelEvents
from pipeline.core.version_life import next_step_at, promoted, with_canary, without_canary
from pipeline.errors import PipelineError, PromotionError, SettingsError
from pipeline.watcher.fleet.strategy import chosen_update
from pipeline.watcher.fleet.triton_control import TritonControl
from pipeline.watcher.report import RegistrationReport
from pipeline.watcher.repository.changes import Look, RepositoryChanges, look_at
from pipeline.watcher.repository.scan import check_repository
from pipeline.watcher.repository.version_scan import QuietTime
from pipeline.watcher.repository_pass import Places, RepositoryPass, register_models, utc_now
from pipeline.watcher.trial_watch import TrialWatch
from schemas.control import ControlCommand, ControlReply, ModelPromoteCommand, ModelPromoteReply
from schemas.registry import ModelRecord

logger = logging.getLogger(__name__)

_LIVE_TIMEOUT_S = 2.0
# What is told again after a start: older events are in the log, or their rows have gone by their age.
_RETOLD = timedelta(days=1)
# The clock and the one that nobody sets drift by less than this between two looks, unless somebody sets the clock.
_SET_BY_S = 5.0


def run_watcher(settings: Settings) -> int:
    """Runs a watcher until SIGTERM or SIGINT; returns the process's exit code.

    Raises:
        SettingsError: something it needs is not configured.
        PipelineError: the repository or the topics are not there at the start.
    """
    if not settings.triton.urls:
        raise SettingsError(
            "setting PIPELINE_TRITON__URLS is not set and no local stack runs: start one with `pipeline up`"
        )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(settings))


async def register_once(settings: Settings) -> RegistrationReport:
    """One pass without a watcher, by the same strategy; raises what `register_models` raises.

    Raises:
        SettingsError: servers are to be restarted, and nobody is known who could do it.
    """
    return await register_models(
        repository=settings.model_repository,
        serving_dir=settings.data_dir / "serving",
        triton_urls=settings.triton.urls or (),
        kafka_options=client_options(settings.kafka),
        topic=settings.topic("models"),
        credentials=channel_credentials(settings.triton.tls),
        update=await asyncio.to_thread(chosen_update, settings),
    )


async def _run(settings: Settings) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as resources:
        watcher = Watcher(settings)
        await watcher.start(resources)
        working = asyncio.create_task(watcher.work())
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([working, stopped], return_when=asyncio.FIRST_COMPLETED)
        await cancel_until_ended(working, stopped)
        if not working.cancelled() and (bug := working.exception()) is not None:
            raise bug
    return 0


class Watcher:
    """One watcher.

    Args:
        settings: with the addresses of Kafka and of the fleet.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._name = f"{socket.gethostname()}-{os.getpid()}"
        self._registry = CollectorRegistry()
        self._passes = Counter(
            "pipeline_watcher_passes", "Passes over the repository", ["outcome"], registry=self._registry
        )
        self._up = Gauge("pipeline_instance_up", "Whether an instance answers", ["instance"], registry=self._registry)
        self._changes = RepositoryChanges(settings.model_repository)
        self._drain = timedelta(seconds=settings.watcher.drain_s)
        self._lines = ModelEvents(self._name, settings.retention.events_days)
        self._told: set[str] = set()
        self._look: Look | None = None
        self._due_at: datetime | None = None
        self._again = True
        self._ahead_s = _ahead_s()
        self._report: RegistrationReport | None = None
        self._problem: str | None = "the first pass is not done yet"
        self._live: dict[str, bool] = {}

    async def start(self, resources: AsyncExitStack) -> None:
        """Connects everything; what fails here stops the start."""
        settings = self._settings
        update = await asyncio.to_thread(chosen_update, settings)
        await asyncio.to_thread(check_repository, settings.model_repository)
        options = client_options(settings.kafka)
        port = settings.watcher.metrics_port
        await resources.enter_async_context(StatusServer(port, self._registry, self._not_ready, self._state))
        credentials = channel_credentials(settings.triton.tls)
        urls = settings.triton.urls or ()
        servers = [await resources.enter_async_context(TritonControl(url, credentials)) for url in urls]
        self._servers = dict(zip(instance_names(urls), servers, strict=True))
        producer = AIOKafkaProducer(**options, acks="all", enable_idempotence=True)
        await resources.enter_async_context(producer)
        self._events = EventTopic(producer, settings.topic("events"))
        places = Places(settings.model_repository, settings.data_dir / "serving", options, settings.topic("models"))
        quiet = QuietTime(settings.watcher.quiet_s, time.time)
        self._pass = RepositoryPass(places, servers, producer, drain=self._drain, quiet=quiet, update=update)
        self._trials = TrialWatch(options, settings.topic("results"), settings.limits.record_bytes + (1 << 16))
        resources.push_async_callback(self._trials.stop)
        control = ControlFollower(options, settings.topic("control"), self._obey, lambda: None)
        await control.start()
        resources.push_async_callback(control.stop)
        listening = asyncio.create_task(self._changes.run())
        resources.callback(listening.cancel)
        logger.info("watcher %s looks at %s", self._name, settings.model_repository.absolute())

    async def work(self) -> None:
        """Makes passes until it is cancelled."""
        while True:
            await self._look_at_fleet()
            await self._judge_trials()
            self._notice_set_clock()
            look = await asyncio.to_thread(look_at, self._settings.model_repository)
            if self._again or look != self._look or (self._due_at is not None and utc_now() >= self._due_at):
                self._again = False  # a command that comes meanwhile sets it again
                self._look = look
                self._again |= not await self._make_pass()
            await self._changes.wait(self._pause_s())

    async def _judge_trials(self) -> None:
        """Ends the trials of versions that do worse than the default."""
        for model_name, (version, reason) in self._trials.verdicts().items():
            logger.warning("the trial of %s version %s ends: %s", model_name, version, reason)
            try:
                await self._pass.change(model_name, partial(_ended, version=version, reason=reason))
            except (PipelineError, KafkaError) as error:
                logger.warning("it cannot be announced yet: %s", error)
            self._again = True

    def _notice_set_clock(self) -> None:
        """What waits for a time was told by another clock where somebody set this one: a pass puts it right."""
        before, self._ahead_s = self._ahead_s, _ahead_s()
        if abs(self._ahead_s - before) > _SET_BY_S:
            logger.warning("the clock was set by %+.0f s", self._ahead_s - before)
            self._again = True

    def _pause_s(self) -> float:
        interval_s = self._settings.watcher.interval_s
        if self._due_at is None:
            return interval_s
        return min(max((self._due_at - utc_now()).total_seconds(), 0.01), interval_s)

    async def _make_pass(self) -> bool:
        """One pass; whether nothing is left for another one soon."""
        try:
            report = await self._pass.run(retries=False, withdraws=True)
            await self._tell(report.records.values())
        except (PipelineError, KafkaError, OSError) as error:
            # What serves goes on serving; whatever it was may be over at the next look.
            self._passes.labels("failed").inc()
            self._note_problem(str(error) or type(error).__name__)
            return False
        self._passes.labels("done").inc()
        self._note_problem(None)
        if self._report is None or self._report.lines() != report.lines():
            for line, is_error in report.lines():
                logger.log(logging.WARNING if is_error else logging.INFO, "%s", line)
        self._report = report
        await self._trials.follow(report.records.values())
        steps = [step for record in report.records.values() if (step := next_step_at(record, self._drain)) is not None]
        self._due_at = min(steps, default=None)
        return report.is_settled

    def _note_problem(self, problem: str | None) -> None:
        if problem is not None and problem != self._problem:
            logger.warning("the repository cannot be served as it is: %s", problem)
        self._problem = problem

    async def _tell(self, records: Any) -> None:
        """Publishes the events of these records that were not told yet."""
        since = utc_now() - _RETOLD
        lines: dict[str, bytes] = {}
        for record in records:
            lines |= self._lines.of(record, since)
        await self._events.publish([line for name, line in lines.items() if name not in self._told])
        self._told = set(lines)

    async def _look_at_fleet(self) -> None:
        """Which instances answer; one that comes back is brought to what the others serve."""
        names = list(self._servers)
        found = await asyncio.gather(*(self._servers[name].is_live(_LIVE_TIMEOUT_S) for name in names))
        for name, is_live in zip(names, found, strict=True):
            if self._live.get(name) == is_live:
                continue
            known = name in self._live
            self._live[name] = is_live
            self._up.labels(name).set(is_live)
            if not known and is_live:
                continue
            logger.log(logging.INFO if is_live else logging.WARNING, "%s %s", name, "is back" if is_live else "is away")
            self._again = self._again or is_live
            attributes = {"address": self._servers[name].address}
            line = self._lines.instance("instance.up" if is_live else "instance.down", name, utc_now(), attributes)
            try:
                await self._events.publish([line])
            except KafkaError as error:
                logger.warning("the event that %s changed is lost: %s", name, error)

    async def _obey(self, command: ControlCommand) -> ControlReply | None:
        if not isinstance(command, ModelPromoteCommand):
            return None
        reply = partial(ModelPromoteReply, id=command.id, watcher=self._name)
        before: list[ModelRecord | None] = []

        def change(record: ModelRecord | None) -> ModelRecord:
            before.append(record)
            return _promoted(record, command, utc_now())

        try:
            record = await self._pass.change(command.model_name, change)
        except (PipelineError, KafkaError) as error:
            return reply(error=str(error))
        self._again = True
        self._changes.notice()
        return reply(
            changed=record != before[0],
            default_version=record.default_version,
            previous_version=record.previous_version,
            effective_at=record.effective_at.isoformat(),
        )

    def _not_ready(self) -> dict[str, str]:
        return {} if self._problem is None else {"repository": self._problem}

    def _state(self) -> dict[str, Any]:
        report = self._report
        return {
            "pid": os.getpid(),
            "watcher": self._name,
            "instances": dict(self._live),
            "faults": [] if report is None else [line for line, is_error in report.lines() if is_error],
        }


def _ahead_s() -> float:
    """The wall clock's lead on the clock that nobody sets, in seconds: it changes when somebody sets the former."""
    return utc_now().timestamp() - time.monotonic()


def _ended(record: ModelRecord | None, version: str, reason: str) -> ModelRecord:
    """The record without the trial of a version, with the reason; as it is where that is not tried any more.

    Raises:
        PromotionError: there is no record any more.
    """
    if record is None:
        raise PromotionError("the model is gone")
    if record.canary is None or record.canary.version != version:
        return record
    return without_canary(record, reason)


def _promoted(record: ModelRecord | None, command: ModelPromoteCommand, now: datetime) -> ModelRecord:
    """The record after a command.

    Raises:
        PromotionError: it cannot be done.
    """
    if record is None:
        raise PromotionError(f"model {command.model_name!r} is not announced")
    expected = command.expected_default
    if expected is not None and expected != record.default_version and command.version != record.default_version:
        raise PromotionError(
            f"{record.model_name} has version {record.default_version} for its default by now, not {expected}"
        )
    if command.share is None:
        return promoted(record, command.version, now)
    if command.share:
        return with_canary(record, command.version, command.share, now)
    if record.canary is None or record.canary.version != command.version:
        raise PromotionError(f"{record.model_name} version {command.version} is not on trial")
    return without_canary(record)
