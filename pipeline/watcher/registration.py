"""One pass over one model: every good version of its folder served by every Triton, and told as a record.

Scan -> stage -> serve -> load and check on one server, then on the others -> announce. What fails at a server is taken
out of the serving folder again, so a restarted server does not meet it, and the version that served before goes on.
`pass_over.py` runs it for all models.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from pipeline.core.model_config import ModelConfig, promotes, signature
from pipeline.core.version_life import NOTICE, Found, changing, may_leave, next_record
from pipeline.errors import InferenceServerError, ModelRepositoryError
from pipeline.watcher.fleet_check import CheckLimits, check_fleet
from pipeline.watcher.model_folder import ModelFolder
from pipeline.watcher.neighbour_check import judge_neighbours, unchanged_versions, with_earlier_verdicts
from pipeline.watcher.report import Outcome, VersionReport, version_reports
from pipeline.watcher.sample import Sample, read_sample
from pipeline.watcher.serving import ServingFolder, StagedModel
from pipeline.watcher.triton_control import TritonControl
from pipeline.watcher.version_checks import completed_config, version_faults
from pipeline.watcher.version_store import StoredFiles
from schemas.registry import ModelRecord

logger = logging.getLogger(__name__)

Announce = Callable[[ModelRecord], Awaitable[None]]


@dataclass(slots=True)
class _Pass:
    """What a pass over one model has found so far.

    Attributes:
        rejected: version -> the fingerprint of the content that was rejected.
        notes: version -> what else its owner should know.
        set_aside: version and source of content that no server is to see again in this pass.
        changing: whether the topic says that content is being replaced.
    """

    unreachable: set[str] = field(default_factory=set)
    failures: dict[str, tuple[Outcome, str]] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    set_aside: set[tuple[str, str]] = field(default_factory=set)
    serving_already: set[str] = field(default_factory=set)
    changing: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a pass is to bring about for one model.

    Attributes:
        model: the owner's folder.
        announced: the record on the topic.
        retries: whether content that was rejected before is tried again.
    """

    model: ModelFolder
    announced: ModelRecord | None
    retries: bool = False


class ModelRegistration:
    """Brings one model at a time from its folder to the fleet.

    Args:
        serving: the folder the servers load from.
        servers: the fleet; the first one meets a version first.
        limits: how long a server may take.
        announce: publishes a record.
        now: the wall clock.
        drain: how long a version that nothing selects any more is served.
    """

    def __init__(
        self,
        serving: ServingFolder,
        servers: Sequence[TritonControl],
        limits: CheckLimits,
        *,
        announce: Announce,
        now: Callable[[], datetime],
        drain: timedelta,
    ) -> None:
        self._serving = serving
        self._servers = servers
        self._limits = limits
        self._announce = announce
        self._now = now
        self._drain = drain
        self._met_fatally: set[tuple[str, str, str]] = set()

    async def run(self, wanted: Wanted) -> tuple[ModelRecord | None, tuple[VersionReport, ...], frozenset[str]]:
        """Announces the model's next record where there is one.

        Returns:
            The record (None: nothing is announced), what became of each version, and who did not answer.
        """
        started = time.monotonic()
        model, announced = wanted.model, wanted.announced
        state = _Pass()
        before = await asyncio.to_thread(self._serving.read, model.name)
        staged: StagedModel | None = None
        try:
            sample = read_sample(model.sample, model.name) if model.sample else None
            shared = await asyncio.to_thread(self._serving.stage_shared, model)
            candidates = await self._stage(wanted, before, state)
            config = await asyncio.to_thread(_shared_config, model, candidates, state)
            if config is not None:
                staged = await self._settle(wanted, config, candidates, shared, before, sample, state)
        except (ModelRepositoryError, OSError) as error:
            logger.warning("model %s is left as it is: %s", model.name, error)
            state.failures.update({number: ("invalid", str(error)) for number in model.selected})
        found = _found(model, staged, announced, state)
        record = next_record(model.name, found, announced, self._now(), self._drain)
        if record is not None and (record != announced or state.changing):
            await self._announce(record)
        good = staged.fingerprints if staged is not None else {}
        seconds = time.monotonic() - started
        reports = version_reports(model.name, good, announced, state.failures, seconds, state.notes)
        return record or announced, reports, frozenset(state.unreachable)

    async def withdraw(self, model_name: str) -> frozenset[str]:
        """Takes a model that drained whole from the servers; who did not answer."""
        await asyncio.to_thread(self._serving.withdraw, model_name)
        silent: set[str] = set()
        for server in self._servers:
            try:
                await server.unload(model_name, self._limits.call_timeout_s)
            except InferenceServerError as error:
                logger.info("%s keeps what it has of %s: %s", server.address, model_name, error.reason)
                silent.add(server.address)
        await asyncio.to_thread(self._serving.sweep, model_name)
        return frozenset(silent)

    async def _stage(self, wanted: Wanted, before: StagedModel | None, state: _Pass) -> dict[str, StoredFiles]:
        """What should be served: the owner's choice, and what is announced and still served."""
        model, announced = wanted.model, wanted.announced
        candidates: dict[str, StoredFiles] = {}
        if before is not None and announced is not None:
            candidates = {
                number: before.versions[number]
                for number, version in announced.versions.items()
                if number in before.versions and version.state != "rejected" and not may_leave(version, self._now())
            }
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
        wanted: Wanted,
        config: ModelConfig,
        candidates: dict[str, StoredFiles],
        shared: StoredFiles | None,
        before: StagedModel | None,
        sample: Sample | None,
        state: _Pass,
    ) -> StagedModel | None:
        """Serves the candidates, takes out what a server rejects, until the fleet agrees; None if nothing is left."""
        model_name, announced = wanted.model.name, wanted.announced
        earlier = before.versions if before else {}
        unchanged = unchanged_versions(self._serving.plan(model_name, config, candidates, shared), before)
        config = with_earlier_verdicts(config, before.config if before else None, unchanged)
        if not wanted.retries:
            planned = self._serving.plan(model_name, config, candidates, shared)
            candidates = _without(model_name, candidates, _known_bad(planned, announced), planned, earlier, state)
        if before is None:
            state.serving_already = await self._serving_already(model_name)
        await self._tell_changes(self._serving.plan(model_name, config, candidates, shared), announced, state)
        while candidates:
            staged, _ = await asyncio.to_thread(self._serving.serve, model_name, config, candidates, shared)
            on_trial = _on_trial(staged, announced)
            live = announced.default_version if announced else None
            verdict = await check_fleet(self._servers, staged, sample, on_trial, live, self._limits)
            state.unreachable.update(verdict.unreachable)
            if verdict.fatal:
                candidates = self._without_fatal(model_name, candidates, verdict.fatal, staged, earlier, state)
                continue
            if not verdict.checked:
                state.failures.update(dict.fromkeys(candidates, ("unreachable", "no server answered")))
                break
            if not verdict.rejected:
                judged = await judge_neighbours(self._servers, config, staged, sample, before, on_trial)
                state.notes.update({number: str(each) for number, each in judged.verdicts.items() if each.is_news})
                if judged.config is not config:
                    config = judged.config
                    continue  # served again, with every request on its own
                state.failures.update({number: ("failing", reason) for number, reason in verdict.failing.items()})
                await asyncio.to_thread(self._serving.sweep, model_name)
                return staged
            candidates = _without(model_name, candidates, verdict.rejected, staged, earlier, state)
        await self._restore(model_name, before, announced, state)
        return None

    def _without_fatal(
        self,
        model_name: str,
        candidates: dict[str, StoredFiles],
        fatal: Mapping[str, str],
        staged: StagedModel,
        earlier: Mapping[str, StoredFiles],
        state: _Pass,
    ) -> dict[str, StoredFiles]:
        """The candidates without those that a server may have died of; the second time they are rejected.

        Once may be chance: somebody restarted it. The serving folder is without them before it starts again.
        """
        rejected: dict[str, str] = {}
        for number, reason in fatal.items():
            content = model_name, number, staged.fingerprints[number]
            if content in self._met_fatally:
                rejected[number] = reason
            else:
                self._met_fatally.add(content)
                state.failures[number] = ("unreachable", f"{reason}; it is tried once more")
        left = _without(model_name, candidates, rejected, staged, earlier, state)
        return _set_aside(left, fatal.keys() - rejected.keys(), earlier, state)

    async def _tell_changes(self, planned: StagedModel, announced: ModelRecord | None, state: _Pass) -> None:
        """Before the content of a served version is replaced, every worker knows: it stores nothing of it."""
        if announced is None:
            return
        replaced = {
            number
            for number in _on_trial(planned, announced)
            if number in announced.versions and announced.versions[number].state != "rejected"
        }
        if replaced:
            state.changing = True
            await self._announce(changing(announced, replaced))
            await asyncio.sleep(NOTICE.total_seconds())

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


def _found(model: ModelFolder, staged: StagedModel | None, announced: ModelRecord | None, state: _Pass) -> Found:
    """What the pass over a model found, as its next record is made of it."""
    bad: dict[str, tuple[str, str]] = {
        number: (state.rejected.get(number, ""), reason)
        for number, (outcome, reason) in state.failures.items()
        if outcome in ("invalid", "rejected")
    }
    if staged is not None:
        config = staged.config
        return Found(staged.fingerprints, model.selected, bad, signature(config), promotes(config))
    served = {}
    shape = None
    for number, version in (announced.versions if announced else {}).items():
        if version.state != "rejected":
            served[number], shape = version.fingerprint, version.signature
    return Found(served, model.selected, bad, shape)


def _on_trial(staged: StagedModel, announced: ModelRecord | None) -> frozenset[str]:
    """The versions that are not announced with this content."""
    known = announced.versions if announced else {}
    return frozenset(
        number
        for number, digest in staged.fingerprints.items()
        if number not in known or known[number].state == "rejected" or known[number].fingerprint != digest
    )


def _known_bad(planned: StagedModel, announced: ModelRecord | None) -> dict[str, str]:
    """Content that was rejected before, with the reason: no server meets it a second time."""
    found: dict[str, str] = {}
    for number, version in (announced.versions if announced else {}).items():
        bad = version.fingerprint if version.state == "rejected" else version.rejected_fingerprint
        if bad is not None and planned.fingerprints.get(number) == bad:
            found[number] = version.reason or "was rejected before"
    return found


def _proven(before: StagedModel, announced: ModelRecord | None, state: _Pass) -> dict[str, StoredFiles]:
    """What was served and may be again: a pass that was cut short may have left a version that is set aside now."""
    known = announced.versions if announced else {}
    return {
        number: stored
        for number, stored in before.versions.items()
        if (number, stored.source) not in state.set_aside
        or (number in known and known[number].fingerprint == before.fingerprints[number])
    }


def _without(
    model_name: str,
    candidates: dict[str, StoredFiles],
    rejected: Mapping[str, str],
    staged: StagedModel,
    earlier: Mapping[str, StoredFiles],
    state: _Pass,
) -> dict[str, StoredFiles]:
    """The candidates without what was rejected; where the content of a number changed, its earlier one again."""
    for number, reason in rejected.items():
        state.failures.setdefault(number, ("rejected", reason))
        state.rejected.setdefault(number, staged.fingerprints[number])
        logger.warning("%s version %s is rejected: %s", model_name, number, reason)
    return _set_aside(candidates, rejected.keys(), earlier, state)


def _set_aside(
    candidates: dict[str, StoredFiles], numbers: Iterable[str], earlier: Mapping[str, StoredFiles], state: _Pass
) -> dict[str, StoredFiles]:
    """The candidates without these, of which no server sees this content again in this pass."""
    left = dict(candidates)
    for number in numbers:
        state.set_aside.add((number, left.pop(number).source))
        if number in earlier and (number, earlier[number].source) not in state.set_aside:
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
