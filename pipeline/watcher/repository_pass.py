"""One pass over the whole repository: what its models should be, brought about and announced.

A pass begins with what the models topic says and what the serving folder holds, never with what this process
remembers: whoever died in the middle of one, the next goes on from there.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from aiokafka import AIOKafkaProducer

from pipeline.adapters.models_topic import read_models
from pipeline.core.version_life import withdrawn
from pipeline.watcher.draft import Wanted
from pipeline.watcher.fleet.check import CheckLimits
from pipeline.watcher.fleet.strategy import MakeUpdate, by_reload
from pipeline.watcher.fleet.triton_control import TritonControl
from pipeline.watcher.registration import ModelRegistration, Registered
from pipeline.watcher.report import RegistrationReport, VersionReport
from pipeline.watcher.repository.model_folder import ModelFolder
from pipeline.watcher.repository.scan import scan
from pipeline.watcher.repository.version_scan import QuietTime
from pipeline.watcher.serving.folder import ServingFolder
from pipeline.watcher.serving.lock import serving_lock
from schemas.registry import ModelRecord

logger = logging.getLogger(__name__)

DRAIN = timedelta(seconds=30)


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Places:
    """Where a pass finds things.

    Attributes:
        repository: where owners put models; only read.
        serving_dir: what the servers serve; its store lies beside it, as `<name>.versions`.
        kafka_options: for aiokafka clients (pipeline/adapters/kafka.py).
        topic: the models topic's full name.
    """

    repository: Path
    serving_dir: Path
    kafka_options: Mapping[str, Any]
    topic: str


@dataclass(slots=True)
class _Tally:
    records: dict[str, ModelRecord]
    reports: list[VersionReport] = field(default_factory=list)
    unreachable: set[str] = field(default_factory=set)


class RepositoryPass:
    """Makes passes.

    Args:
        places: where things are.
        servers: the fleet, connected.
        producer: started, for the models topic: acks=all, idempotent.
        limits: how long a server may take.
        drain: how long a version that nothing selects any more is served.
        now: the wall clock.
        quiet: what earlier passes saw of versions that may still be copied; None: everything is taken for complete.
        update: how servers are brought to what is staged.
    """

    def __init__(
        self,
        places: Places,
        servers: Sequence[TritonControl],
        producer: AIOKafkaProducer,
        *,
        limits: CheckLimits | None = None,
        drain: timedelta = DRAIN,
        now: Callable[[], datetime] = utc_now,
        quiet: QuietTime | None = None,
        update: MakeUpdate = by_reload,
    ) -> None:
        self._places = places
        self._quiet = quiet
        self._producer = producer
        self._now = now
        self._drain = drain
        self._serving = ServingFolder(places.serving_dir)
        limits = limits or CheckLimits()
        self._registration = ModelRegistration(
            self._serving, servers, limits, update(servers, limits), announce=self._announce, now=now, drain=drain
        )

    async def run(self, *, retries: bool, withdraws: bool) -> RegistrationReport:
        """One pass.

        Args:
            retries: whether content that was rejected before is tried again.
            withdraws: whether models that are gone from the repository are taken from the servers.

        Raises:
            ModelRepositoryError: the repository is not there or cannot be read.
            TopicError: the models topic is not there.
            KafkaError: the brokers do not answer.
        """
        places = self._places
        async with serving_lock(places.serving_dir):
            found = await asyncio.to_thread(scan, places.repository, self._quiet)
            for fault in found.faults:
                logger.warning("not served: %s", fault)
            announced = await read_models(places.kafka_options, places.topic)
            tally = _Tally(dict(announced))
            wanted = [
                Wanted(model, announced.get(model.name), retries)
                for model in found.models
                if not _is_changing(model, announced.get(model.name))  # what is announced goes on as it is
            ]
            for name, (record, reports, silent) in await self._registered(wanted):
                if record is not None:
                    tally.records[name] = record
                tally.reports += reports
                tally.unreachable |= silent
            if withdraws:
                await self._withdraw({model.name for model in found.models}, announced, tally)
        return RegistrationReport(
            tuple(tally.reports), found.faults, tally.records, tuple(sorted(tally.unreachable)), found.unfinished
        )

    async def _registered(self, wanted: Sequence[Wanted]) -> list[tuple[str, Registered]]:
        """What became of each model, in turn.

        Where a server is updated as a whole, the first one is for each model with something new by itself, so that it
        is known which one fails there; the others are once, with all that is good.
        """
        if not self._registration.brings_all:
            return [(each.model.name, await self._registration.run(each)) for each in wanted]
        drafts = [await self._registration.begin(each) for each in wanted]
        for draft in drafts:
            await self._registration.try_first(draft)
        return [(draft.name, await self._registration.finish(draft)) for draft in drafts]

    async def change(self, model_name: str, change: Callable[[ModelRecord | None], ModelRecord]) -> ModelRecord:
        """Changes a model's record as it is on the topic now, and announces what came of it.

        Raises:
            PromotionError: as `change` raises it.
            TopicError: the models topic is not there.
            KafkaError: the brokers do not answer.
        """
        places = self._places
        async with serving_lock(places.serving_dir):
            before = (await read_models(places.kafka_options, places.topic)).get(model_name)
            after = change(before)
            if after != before:
                await self._announce(after)
        return after

    async def _withdraw(self, present: set[str], announced: Mapping[str, ModelRecord], tally: _Tally) -> None:
        """Models that this serving folder serves, and that their owner removed: they drain, then they go."""
        gone = [
            record
            for name, record in announced.items()
            if name not in present
            and not (self._places.repository / name).is_dir()
            and await asyncio.to_thread(self._serving.read, name) is not None
        ]
        if gone and not present:
            # A disk that is not mounted looks like this, too.
            logger.warning("%s holds no model any more: what is served goes on", self._places.repository)
            return
        for record in gone:
            after = withdrawn(record, self._now(), self._drain)
            if after is None:
                await self._producer.send_and_wait(self._places.topic, None, key=record.model_name.encode())
                tally.unreachable |= await self._registration.withdraw(record.model_name)
                del tally.records[record.model_name]
            elif after != record:
                await self._announce(after)
                tally.records[record.model_name] = after

    async def _announce(self, record: ModelRecord) -> None:
        body = record.model_dump_json().encode()
        await self._producer.send_and_wait(self._places.topic, body, key=record.model_name.encode())


def _is_changing(model: ModelFolder, announced: ModelRecord | None) -> bool:
    """Whether somebody may be changing what is served: all there is, or a version that is announced."""
    known = announced.versions if announced is not None else {}
    return bool(model.unfinished) and (
        not model.versions or any(version.number in known for version in model.unfinished)
    )


async def register_models(
    *,
    repository: Path,
    serving_dir: Path,
    triton_urls: Iterable[str],
    kafka_options: Mapping[str, Any],
    topic: str,
    credentials: grpc.ChannelCredentials | None = None,
    limits: CheckLimits | None = None,
    drain: timedelta = DRAIN,
    now: Callable[[], datetime] = utc_now,
    update: MakeUpdate = by_reload,
) -> RegistrationReport:
    """One pass by itself; content that was rejected before is tried again, and nothing is withdrawn.

    Args:
        repository: where owners put models; only read.
        serving_dir: what the servers serve.
        triton_urls: gRPC addresses, host:port.
        kafka_options: for aiokafka clients.
        topic: the models topic's full name.
        credentials: for Tritons that want TLS.
        limits: how long a server may take.
        drain: how long a version that nothing selects any more is served.
        now: the wall clock.
        update: how servers are brought to what is staged.

    Raises:
        ModelRepositoryError: the repository is not there or cannot be read.
        TopicError: the models topic is not there.
        KafkaError: the brokers do not answer.
    """
    await asyncio.to_thread(scan, repository)  # before anything is connected
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(TritonControl(url, credentials)) for url in triton_urls]
        producer = AIOKafkaProducer(**kafka_options, acks="all", enable_idempotence=True)
        await stack.enter_async_context(producer)
        places = Places(repository, serving_dir, kafka_options, topic)
        made = RepositoryPass(places, servers, producer, limits=limits, drain=drain, now=now, update=update)
        return await made.run(retries=True, withdraws=False)
