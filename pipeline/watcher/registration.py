"""One pass: every good version of the repository served by every Triton, and announced on the models topic.

For each model: scan -> stage -> serve -> load and check on one server, then on the others -> announce. What fails at
a server is taken out of the serving folder again, so a restarted server does not meet it, and the version that served
before goes on. The continuous watcher calls `ModelRegistration.run` for what has changed.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from aiokafka import AIOKafkaProducer

from pipeline.adapters.models_topic import read_models
from pipeline.core.model_config import ModelConfig, signature
from pipeline.errors import InferenceServerError, ModelRepositoryError
from pipeline.watcher.announcement import model_record
from pipeline.watcher.fleet_check import CheckLimits, FleetVerdict, check_fleet
from pipeline.watcher.model_folder import ModelFolder
from pipeline.watcher.report import Outcome, RegistrationReport, VersionReport, version_reports
from pipeline.watcher.repository import scan
from pipeline.watcher.sample import Sample, read_sample
from pipeline.watcher.serving import ServingFolder, StagedModel
from pipeline.watcher.triton_control import TritonControl
from pipeline.watcher.version_checks import completed_config, version_faults
from pipeline.watcher.version_store import StoredFiles
from schemas.registry import ModelRecord

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Pass:
    """What a pass over one model has found so far."""

    unreachable: set[str] = field(default_factory=set)
    failures: dict[str, tuple[Outcome, str]] = field(default_factory=dict)
    rejected_content: set[tuple[str, str]] = field(default_factory=set)
    serving_already: set[str] = field(default_factory=set)


class ModelRegistration:
    """Brings one model at a time from its folder to the fleet.

    Args:
        serving: the folder the servers load from.
        servers: the fleet; the first one meets a version first.
        limits: how long a server may take.
    """

    def __init__(self, serving: ServingFolder, servers: Sequence[TritonControl], limits: CheckLimits) -> None:
        self._serving = serving
        self._servers = servers
        self._limits = limits

    async def run(
        self, model: ModelFolder, announced: ModelRecord | None, now: Callable[[], datetime]
    ) -> tuple[ModelRecord | None, tuple[VersionReport, ...], frozenset[str]]:
        """The record to announce (None: leave what is there), what became of each version, and who did not answer."""
        started = time.monotonic()
        state = _Pass()
        before = await asyncio.to_thread(self._serving.read, model.name)
        staged: StagedModel | None = None
        try:
            sample = read_sample(model.sample, model.name) if model.sample else None
            shared = await asyncio.to_thread(self._serving.stage_shared, model)
            candidates = await self._stage(model, before, announced, state)
            config = await asyncio.to_thread(_shared_config, model, candidates, state)
            if config is not None:
                staged = await self._settle(model.name, config, candidates, shared, before, announced, sample, state)
        except (ModelRepositoryError, OSError) as error:
            logger.warning("model %s is left as it is: %s", model.name, error)
            state.failures.update({number: ("invalid", str(error)) for number in model.selected})
        record = None
        if staged is not None:
            record = model_record(
                model.name, staged.fingerprints, model.selected, signature(staged.config), announced, now()
            )
        good = staged.fingerprints if staged is not None else {}
        reports = version_reports(model.name, good, announced, state.failures, time.monotonic() - started)
        return record, reports, frozenset(state.unreachable)

    async def _stage(
        self, model: ModelFolder, before: StagedModel | None, announced: ModelRecord | None, state: _Pass
    ) -> dict[str, StoredFiles]:
        """What should be served: the owner's choice, and what is announced and still served."""
        candidates: dict[str, StoredFiles] = {}
        if before is not None and announced is not None:
            candidates = {number: before.versions[number] for number in before.versions if number in announced.versions}
        for version in model.versions:
            if version.number not in model.selected:
                continue
            try:
                stored = await asyncio.to_thread(self._serving.stage, model, version)
            except (ModelRepositoryError, OSError) as error:
                state.failures[version.number] = ("invalid", str(error))
                continue
            candidates[version.number] = stored
        return candidates

    async def _settle(
        self,
        model_name: str,
        config: ModelConfig,
        candidates: dict[str, StoredFiles],
        shared: StoredFiles | None,
        before: StagedModel | None,
        announced: ModelRecord | None,
        sample: Sample | None,
        state: _Pass,
    ) -> StagedModel | None:
        """Serves the candidates, takes out what a server rejects, until the fleet agrees; None if nothing is left."""
        earlier = before.versions if before else {}
        if before is None:
            state.serving_already = await self._serving_already(model_name)
        while candidates:
            staged, _ = await asyncio.to_thread(self._serving.serve, model_name, config, candidates, shared)
            on_trial = frozenset(
                number
                for number, digest in staged.fingerprints.items()
                if announced is None
                or number not in announced.versions
                or announced.versions[number].fingerprint != digest
            )
            verdict = await check_fleet(self._servers, staged, sample, on_trial, self._limits)
            state.unreachable.update(verdict.unreachable)
            if not verdict.checked:
                state.failures.update(dict.fromkeys(candidates, ("unreachable", "no server answered")))
                break
            if not verdict.rejected:
                state.failures.update({number: ("failing", reason) for number, reason in verdict.failing.items()})
                await asyncio.to_thread(self._serving.sweep, model_name)
                return staged
            candidates = _without(model_name, candidates, verdict, earlier, state)
        await self._restore(model_name, before, announced, state)
        return None

    async def _serving_already(self, model_name: str) -> set[str]:
        """The servers that serve a model of this name although nothing was staged: somebody else put it there."""
        found: set[str] = set()
        for server in self._servers:
            try:
                states = await server.states(model_name, self._limits.call_timeout_s)
            except InferenceServerError as error:
                logger.info("%s does not say what it serves: %s", server.address, error.reason)
                continue
            if any(state == "READY" for state, _ in states.values()):
                found.add(server.address)
        return found

    async def _restore(
        self, model_name: str, before: StagedModel | None, announced: ModelRecord | None, state: _Pass
    ) -> None:
        """Back to what was served before this pass, on the disk and on every server that answers."""
        versions = _proven(before, announced, state) if before else {}
        if before is not None and versions:
            await asyncio.to_thread(self._serving.serve, model_name, before.config, versions, before.shared)
        else:
            await asyncio.to_thread(self._serving.withdraw, model_name)
        for server in self._servers:
            try:
                if versions:
                    await server.load(model_name, self._limits.load_timeout_s)
                elif server.address not in state.serving_already:
                    await server.unload(model_name, self._limits.call_timeout_s)
            except InferenceServerError as error:
                logger.info("%s keeps what it has of %s: %s", server.address, model_name, error.reason)


def _proven(before: StagedModel, announced: ModelRecord | None, state: _Pass) -> dict[str, StoredFiles]:
    """What was served and may be again: a pass that was cut short may have left a version that is rejected now."""
    known = announced.versions if announced else {}
    return {
        number: stored
        for number, stored in before.versions.items()
        if (number, stored.source) not in state.rejected_content
        or (number in known and known[number].fingerprint == before.fingerprints[number])
    }


def _without(
    model_name: str,
    candidates: dict[str, StoredFiles],
    verdict: FleetVerdict,
    earlier: Mapping[str, StoredFiles],
    state: _Pass,
) -> dict[str, StoredFiles]:
    """The candidates without what was rejected; where the content of a number changed, its earlier one again."""
    left = dict(candidates)
    for number, reason in verdict.rejected.items():
        state.failures.setdefault(number, ("rejected", reason))
        state.rejected_content.add((number, candidates[number].source))
        logger.warning("%s version %s is rejected: %s", model_name, number, reason)
        del left[number]
        if number in earlier and (number, earlier[number].source) not in state.rejected_content:
            left[number] = earlier[number]
    return left


def _shared_config(model: ModelFolder, candidates: dict[str, StoredFiles], state: _Pass) -> ModelConfig | None:
    """The configuration of the highest version that fits it; versions that do not fit are taken out."""
    config: ModelConfig | None = None
    for number in sorted(candidates, key=int, reverse=True):
        folder = candidates[number].files
        faults = version_faults(model, folder, config)
        if faults:
            state.failures[number] = ("invalid", "; ".join(fault.reason for fault in faults))
            del candidates[number]
        elif config is None:
            config = completed_config(model, folder)
    return config


async def register_models(
    *,
    repository: Path,
    serving_dir: Path,
    triton_urls: Iterable[str],
    kafka_options: Mapping[str, Any],
    topic: str,
    credentials: grpc.ChannelCredentials | None = None,
    limits: CheckLimits | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> RegistrationReport:
    """One pass over the repository.

    Args:
        repository: where owners put models; only read.
        serving_dir: what the servers serve; its store lies beside it, as `<name>.versions`.
        triton_urls: gRPC addresses, host:port.
        kafka_options: for aiokafka clients (pipeline/adapters/kafka.py).
        topic: the models topic's full name.
        credentials: for Tritons that want TLS.
        limits: how long a server may take.
        now: the wall clock.

    Raises:
        ModelRepositoryError: the repository is not there or cannot be read.
        TopicError: the models topic is not there.
        KafkaError: the brokers do not answer.
    """
    found = await asyncio.to_thread(scan, repository)
    for fault in found.faults:
        logger.warning("not served: %s", fault)
    announced = await read_models(kafka_options, topic)
    records = dict(announced)
    reports: list[VersionReport] = []
    unreachable: set[str] = set()
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(TritonControl(url, credentials)) for url in triton_urls]
        producer = AIOKafkaProducer(**kafka_options, acks="all", enable_idempotence=True)
        await stack.enter_async_context(producer)
        registration = ModelRegistration(ServingFolder(serving_dir), servers, limits or CheckLimits())
        for model in found.models:
            known = announced.get(model.name)
            record, outcomes, silent = await registration.run(model, known, now)
            if record is not None and record != known:
                await producer.send_and_wait(topic, record.model_dump_json().encode(), key=model.name.encode())
                records[model.name] = record
            reports += outcomes
            unreachable |= silent
    return RegistrationReport(tuple(reports), found.faults, records, tuple(sorted(unreachable)))
