"""One pass over one model: every good version of its folder served by every Triton, and told as a record.

Scan -> stage -> serve -> update and check one server, then the others -> announce. What fails at a server is taken out
of the serving folder again, so a restarted server does not meet it, and the version that served before goes on.
`repository_pass.py` runs it for all models.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta

from pipeline.core.model_config import content_mark
from pipeline.core.version_life import NOTICE, changing, may_leave, next_record
from pipeline.errors import InferenceServerError, ModelRepositoryError
from pipeline.watcher.draft import (
    Draft,
    PassState,
    Wanted,
    found,
    known_bad,
    on_trial,
    proven,
    reject,
    set_aside,
    shared_config,
)
from pipeline.watcher.fleet.check import CheckLimits, FleetCheck, FleetVerdict, NotRestarted, ServerUpdate
from pipeline.watcher.fleet.neighbour_check import Judged, judge_neighbours, unchanged_versions, with_earlier_verdicts
from pipeline.watcher.fleet.triton_control import TritonControl
from pipeline.watcher.report import Outcome, VersionReport, version_reports
from pipeline.watcher.repository.sample import read_sample
from pipeline.watcher.serving.folder import ServingFolder, StagedModel
from pipeline.watcher.serving.version_store import CopyPostponed, StoredFiles
from schemas.registry import ModelRecord

logger = logging.getLogger(__name__)

_TRIED_AGAIN = "when that is back, it is tried once more"
Announce = Callable[[ModelRecord], Awaitable[None]]
Registered = tuple[ModelRecord | None, tuple[VersionReport, ...], frozenset[str]]
"""A model's record (None: nothing is announced), what became of each version, and who did not answer."""


class ModelRegistration:
    """Brings one model at a time from its folder to the fleet.

    Args:
        serving: the folder the servers load from.
        servers: the fleet; the first one meets a version first.
        limits: how long a server may take.
        update: brings a server to what is staged.
        announce: publishes a record.
        now: the wall clock.
        drain: how long a version that nothing selects any more is served.
    """

    def __init__(
        self,
        serving: ServingFolder,
        servers: Sequence[TritonControl],
        limits: CheckLimits,
        update: ServerUpdate,
        *,
        announce: Announce,
        now: Callable[[], datetime],
        drain: timedelta,
    ) -> None:
        self._serving = serving
        self._servers = servers
        self._limits = limits
        self._update = update
        self._announce = announce
        self._now = now
        self._drain = drain
        # Content -> the address of the server that may have died of it.
        self._met_fatally: dict[tuple[str, str, str], str] = {}

    @property
    def brings_all(self) -> bool:
        """Whether one update of a server brings every model: `begin`, `try_first` and `finish` them together then."""
        return self._update.brings_all

    async def run(self, wanted: Wanted) -> Registered:
        """Announces the model's next record where there is one."""
        return await self.finish(await self.begin(wanted))

    async def begin(self, wanted: Wanted) -> Draft:
        """What is to be served, in copies that no server sees yet."""
        model = wanted.model
        draft = Draft(wanted, await asyncio.to_thread(self._serving.read, model.name), PassState())
        try:
            draft.sample = read_sample(model.sample, model.name) if model.sample else None
            draft.shared = await asyncio.to_thread(self._serving.stage_shared, model)
            draft.candidates = await self._stage(draft)
            draft.config = await asyncio.to_thread(shared_config, model, draft.candidates, draft.state)
            if draft.config is not None:
                await self._prepare(draft)
        except (ModelRepositoryError, OSError) as error:
            self._leave(draft, error)
        return draft

    async def try_first(self, draft: Draft) -> None:
        """Has the first server meet what is new, and takes out what fails there: all others may be updated then."""
        try:
            if draft.config is not None:
                await self._agree(draft, self._in_order(draft)[:1])
                if not draft.candidates:
                    await self._restore(draft)
        except (ModelRepositoryError, OSError) as error:
            self._leave(draft, error)

    async def finish(self, draft: Draft) -> Registered:
        """Has every server serve what is good, and announces the model's next record where there is one."""
        model, announced, state = draft.wanted.model, draft.wanted.announced, draft.state
        staged: StagedModel | None = None
        try:
            if draft.config is not None and not draft.ended:
                staged = await self._settle(draft)
        except (ModelRepositoryError, OSError) as error:
            self._leave(draft, error)
        record = next_record(model.name, found(model, staged, announced, state), announced, self._now(), self._drain)
        # While a server may have the content that is being replaced, the topic goes on saying so.
        unclear = state.changing and state.halted
        if record is not None and not unclear and (record != announced or state.changing):
            await self._announce(record)
        good = staged.fingerprints if staged is not None else {}
        seconds = time.monotonic() - draft.began
        reports = version_reports(model.name, good, announced, state.failures, seconds, state.notes)
        return (announced if unclear else record or announced), reports, frozenset(state.unreachable)

    async def withdraw(self, model_name: str) -> frozenset[str]:
        """Takes a model that drained whole from the servers; who did not answer."""
        await asyncio.to_thread(self._serving.withdraw, model_name)
        silent: set[str] = set()
        for server in self._servers:
            try:
                await self._update.release(server, model_name)
            except InferenceServerError as error:
                logger.info("%s keeps what it has of %s: %s", server.address, model_name, error.reason)
                silent.add(server.address)
        await asyncio.to_thread(self._serving.sweep, model_name)
        return frozenset(silent)

    def _leave(self, draft: Draft, error: Exception) -> None:
        logger.warning("model %s is left as it is: %s", draft.name, error)
        draft.config = None
        told = _outcome(error), str(error)
        draft.state.failures.update(dict.fromkeys(draft.wanted.model.selected, told))

    async def _stage(self, draft: Draft) -> dict[str, StoredFiles]:
        """What should be served: the owner's choice, and what is announced and still served."""
        model, announced = draft.wanted.model, draft.wanted.announced
        candidates: dict[str, StoredFiles] = {}
        if announced is not None:
            candidates = {
                number: draft.earlier[number]
                for number, version in announced.versions.items()
                if number in draft.earlier and version.state != "rejected" and not may_leave(version, self._now())
            }
        for version in model.versions:
            if version.number not in model.selected:
                continue
            try:
                stored = await asyncio.to_thread(self._serving.stage, model, version)
            except (ModelRepositoryError, OSError) as error:
                draft.state.failures[version.number] = (_outcome(error), str(error))
                continue
            candidates[version.number] = stored
        return candidates

    def _plan(self, draft: Draft) -> StagedModel:
        return self._serving.plan(draft.name, draft.config, draft.candidates, draft.shared)

    async def _prepare(self, draft: Draft) -> None:
        """Leaves out what is known to be bad, and tells of what is to be replaced."""
        unchanged = unchanged_versions(self._plan(draft), draft.before)
        draft.config = with_earlier_verdicts(draft.config, draft.before.config if draft.before else None, unchanged)
        announced = draft.wanted.announced
        if not draft.wanted.retries:
            planned = self._plan(draft)
            reject(draft, known_bad(planned, announced), planned)
        await self._wait_for_the_bereft(draft)
        if draft.before is None:
            draft.state.serving_already = await self._serving_already(draft.name)
        await self._tell_changes(self._plan(draft), announced, draft.state)

    async def _settle(self, draft: Draft) -> StagedModel | None:
        """Has the whole fleet serve what is good; None if nothing is left, or not all of it could be updated."""
        agreed = await self._agree(draft, self._in_order(draft))
        if agreed is None:
            await self._restore(draft)
            return None
        staged, verdict = agreed
        failures = draft.state.failures
        if verdict.halted:
            trial = on_trial(staged, draft.wanted.announced)
            failures.update(dict.fromkeys(trial, ("unreachable", verdict.halted)))
            failures.update(dict.fromkeys(staged.versions.keys() - trial, ("failing", verdict.halted)))
            draft.state.halted = True
            if trial and not verdict.checked:
                await self._restore(draft)
            return None
        if not verdict.checked:
            failures.update(dict.fromkeys(draft.candidates, ("unreachable", "no server answered")))
            await self._restore(draft)
            return None
        judged = verdict.judged.verdicts if verdict.judged else {}
        draft.state.notes.update({number: str(each) for number, each in judged.items() if each.is_news})
        failures.update({number: ("failing", reason) for number, reason in verdict.failing.items()})
        await asyncio.to_thread(self._serving.sweep, draft.name)
        for number, digest in staged.fingerprints.items():
            self._met_fatally.pop((draft.name, number, digest), None)
        return staged

    async def _agree(self, draft: Draft, servers: Sequence[TritonControl]) -> tuple[StagedModel, FleetVerdict] | None:
        """Serves the candidates without what a server rejects, until these servers agree; None if nothing is left."""
        announced = draft.wanted.announced
        live = announced.default_version if announced else None
        while draft.candidates:
            staged, _ = await asyncio.to_thread(
                self._serving.serve, draft.name, draft.config, draft.candidates, draft.shared
            )
            trial = on_trial(staged, announced)

            async def judge(server: TritonControl, staged: StagedModel = staged) -> Judged:
                return await self._judge(draft, server, staged)

            check = FleetCheck(staged, draft.sample, trial, live, self._limits, self._update, judge)
            verdict = await check.run(servers)
            draft.state.unreachable.update(verdict.unreachable)
            if verdict.fatal:
                self._set_aside_fatal(draft, verdict.fatal, staged, verdict.unreachable[-1])
            elif verdict.rejected:
                reject(draft, verdict.rejected, staged)
            elif verdict.judged is not None and verdict.judged.alters:
                draft.config = verdict.judged.config  # served again, with every request on its own
            else:
                return staged, verdict
        return None

    async def _judge(self, draft: Draft, server: TritonControl, staged: StagedModel) -> Judged:
        """The neighbour check; what was checked already in this pass is not asked again."""
        mark = content_mark(staged.config)
        if mark not in draft.judged:
            trial = on_trial(staged, draft.wanted.announced)
            draft.judged[mark] = await judge_neighbours(
                [server], draft.config, staged, draft.sample, draft.before, trial
            )
        return draft.judged[mark]

    async def _wait_for_the_bereft(self, draft: Draft) -> None:
        """A version that a server may have died of meets that one again, once it is back, and before any other.

        While it is away the rest of the fleet is what answers, and is not to die of it, too.
        """
        suspects = {
            number: address
            for number, digest in self._plan(draft).fingerprints.items()
            if (address := self._met_fatally.get((draft.name, number, digest))) is not None
        }
        for server in self._servers:
            if server.address in suspects.values() and await server.is_live(self._limits.live_timeout_s):
                draft.first.add(server.address)
        away = {number: address for number, address in suspects.items() if address not in draft.first}
        for number, address in away.items():
            reason = f"{address} stopped answering while it tried it; {_TRIED_AGAIN}"
            draft.state.failures[number] = ("unreachable", reason)
        set_aside(draft, away.keys())

    def _in_order(self, draft: Draft) -> Sequence[TritonControl]:
        return sorted(self._servers, key=lambda server: server.address not in draft.first)

    def _set_aside_fatal(self, draft: Draft, fatal: Mapping[str, str], staged: StagedModel, address: str) -> None:
        """Takes out what a server may have died of; the second time it is rejected.

        Once may be chance: somebody restarted it. The serving folder is without them before it starts again.
        """
        rejected: dict[str, str] = {}
        for number, reason in fatal.items():
            content = draft.name, number, staged.fingerprints[number]
            if content in self._met_fatally:
                rejected[number] = reason
            else:
                self._met_fatally[content] = address
                draft.state.failures[number] = ("unreachable", f"{reason}; {_TRIED_AGAIN}")
        reject(draft, rejected, staged)
        set_aside(draft, fatal.keys() - rejected.keys())

    async def _tell_changes(self, planned: StagedModel, announced: ModelRecord | None, state: PassState) -> None:
        """Before the content of a served version is replaced, every worker knows: it stores nothing of it."""
        if announced is None:
            return
        replaced = {
            number
            for number in on_trial(planned, announced)
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
                serves = await server.serves_any(model_name, self._limits.call_timeout_s)
            except InferenceServerError as error:
                logger.info("%s does not say what it serves: %s", server.address, error.reason)
                continue
            if serves:
                found.add(server.address)
        return found

    async def _restore(self, draft: Draft) -> None:
        """Back to what was served before this pass, on the disk and on every server that answers."""
        draft.ended = True
        before = draft.before
        versions = proven(before, draft.wanted.announced, draft.state, self._now()) if before else {}
        restored: StagedModel | None = None
        if before is not None and versions:
            restored, _ = await asyncio.to_thread(
                self._serving.serve, draft.name, before.config, versions, before.shared
            )
        else:
            await asyncio.to_thread(self._serving.withdraw, draft.name)
        for server in self._servers:
            try:
                if restored is not None:
                    if problem := await self._update.bring(server, restored):
                        logger.info("%s keeps what it has of %s: %s", server.address, draft.name, problem)
                elif server.address not in draft.state.serving_already:
                    await self._update.release(server, draft.name)
            except InferenceServerError as error:
                draft.state.halted |= isinstance(error, NotRestarted)
                logger.info("%s keeps what it has of %s: %s", server.address, draft.name, error.reason)


def _outcome(error: Exception) -> Outcome:
    """A disk that fails, or a file that somebody writes meanwhile, says nothing against a version."""
    return "postponed" if isinstance(error, CopyPostponed | OSError) else "invalid"
