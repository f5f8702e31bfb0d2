"""A staged model on every server: brought there, ready, the same configuration, the sample answered.

How a server is brought to what is staged is the fleet's `ServerUpdate`: it reloads the model (reload.py), or is
restarted (restart.py).
"""

import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.core.model_config import checks_latency, signature, without_content_mark
from pipeline.errors import InferenceServerError, ServerUnavailable
from pipeline.watcher.fleet.neighbour_check import Judged
from pipeline.watcher.fleet.triton_control import LoadStillRunning, TritonControl
from pipeline.watcher.repository.sample import Sample
from pipeline.watcher.repository.version_checks import config_differences
from pipeline.watcher.serving.folder import StagedModel
from schemas.tensor import Tensor

logger = logging.getLogger(__name__)

# The best of five: whatever disturbs a call only makes it longer. Batches and threads explain less than five times.
_TIMED_CALLS = 5
_SLOWER_MAX = 5.0
_SLOWER_MIN_S = 0.05
_FAILED_VERSION = re.compile(r"version (\d+) is at UNAVAILABLE state")


@dataclass(frozen=True, slots=True)
class CheckLimits:
    """How long a server may take. A load of 90 MB takes 1 s; one of a large model, minutes."""

    load_timeout_s: float = 300.0
    call_timeout_s: float = 30.0
    # A server that is there answers in a millisecond; this is for one whose machine is busy.
    live_timeout_s: float = 5.0


class NotRestarted(InferenceServerError):  # noqa: N818 - a state, not a mistake
    """A server that has to be restarted was not, or came back with something else: it serves what it served before."""


class ServerUpdate(Protocol):
    """Brings one server to what the serving folder holds. It decides when, and what becomes of the server meanwhile.

    Attributes:
        brings_all: whether one update of a server brings every model that is staged.
    """

    brings_all: bool

    async def bring(self, server: TritonControl, staged: StagedModel) -> str | None:
        """Has a server serve what is staged for a model; does nothing where it does already.

        Returns:
            What the server said against it; None where it said nothing. What it serves then is to be checked.

        Raises:
            ServerUnavailable: it does not answer, or not any more.
            LoadStillRunning: it takes no order for the model before an earlier one has ended.
            NotRestarted: it goes on with what it has, for a reason that is no version's; nor may others be updated now.
        """
        ...

    async def release(self, server: TritonControl, model_name: str) -> None:
        """Has a server let go of a model that is not in the serving folder any more.

        Raises:
            InferenceServerError: it keeps what it has; those of `bring` likewise.
        """
        ...


Judge = Callable[[TritonControl], Awaitable[Judged]]


@dataclass(frozen=True, slots=True)
class FleetVerdict:
    """What the servers said: of versions on trial, of versions that were good before, and who said nothing.

    Attributes:
        fatal: versions on trial whose server answered before it met them and did not afterwards.
        halted: why the servers that are neither checked nor unreachable were left as they are; empty where none was.
        judged: what the neighbour check says; None where it was not made.
    """

    rejected: Mapping[str, str]
    fatal: Mapping[str, str]
    failing: Mapping[str, str]
    unreachable: tuple[str, ...]
    checked: tuple[str, ...]
    halted: str = ""
    judged: Judged | None = None


@dataclass(frozen=True, slots=True)
class FleetCheck:
    """The check of one staged model.

    Attributes:
        staged: what the serving folder holds for the model.
        sample: the model's sample request; without one, readiness and configuration are all that is checked.
        on_trial: versions that are not announced with this content.
        live: the version that is the default now; a much slower one does not take its place.
        limits: how long each step may take.
        update: brings a server to what is staged.
        judge: makes the neighbour check on a server that passed the rest.
    """

    staged: StagedModel
    sample: Sample | None
    on_trial: frozenset[str]
    live: str | None
    limits: CheckLimits
    update: ServerUpdate
    judge: Judge

    async def run(self, servers: Sequence[TritonControl]) -> FleetVerdict:
        """Updates and checks one server after the other; stops at the first that finds a version on trial wanting.

        So a bad version reaches one server of the fleet. A version that was announced before, with this content, is not
        taken away because a server has trouble with it now: it is only told. A server that does not answer is left out:
        it loads the same folder when it starts. One that stops answering while it has a version on trial may have died
        of it: no other server meets that version in this check. What its neighbours do to an answer is asked once, on
        the first server, before the next one has to be updated for it.
        """
        unreachable: list[str] = []
        checked: list[str] = []
        rejected: dict[str, str] = {}
        failing: dict[str, str] = {}
        judged: Judged | None = None
        for server in servers:
            was_live = await server.is_live(self.limits.live_timeout_s)
            try:
                problems = await self._problems(server)
                if judged is None and not problems.keys() & self.on_trial:
                    judged = await self._judged(server)
            except NotRestarted as error:
                logger.warning("the update of %s stops: %s", self.staged.name, error)
                unreachable.append(server.address)
                return FleetVerdict({}, {}, failing, tuple(unreachable), tuple(checked), str(error))
            except LoadStillRunning as error:
                logger.warning("%s is left out of the check of %s: %s", server.address, self.staged.name, error.reason)
                unreachable.append(server.address)
                continue
            except ServerUnavailable as error:
                logger.warning("%s is left out of the check of %s: %s", server.address, self.staged.name, error.reason)
                unreachable.append(server.address)
                if was_live and self.on_trial:
                    reason = f"{server.address} stopped answering while it tried it: {error.reason}"
                    fatal = dict.fromkeys(self.on_trial, reason)
                    return FleetVerdict({}, fatal, failing, tuple(unreachable), tuple(checked))
                continue
            checked.append(server.address)
            for number, reason in problems.items():
                told = rejected if number in self.on_trial else failing
                told.setdefault(number, f"{server.address}: {reason}")
            if rejected or (judged is not None and judged.alters):
                break
        return FleetVerdict(rejected, {}, failing, tuple(unreachable), tuple(checked), judged=judged)

    async def _problems(self, server: TritonControl) -> dict[str, str]:
        problems = await _check_server(server, self)
        if self.sample is not None and self.live is not None:
            on_trial = self.on_trial - problems.keys()
            problems |= await _slower(server, self.staged, self.sample, on_trial, self.live, self.limits)
        return problems

    async def _judged(self, server: TritonControl) -> Judged:
        judged = await self.judge(server)
        # What could not be asked may be so because the server has gone: of what, is the caller's to judge.
        unasked = [verdict for verdict in judged.verdicts.values() if verdict.outcome == "not checked"]
        if unasked and not await server.is_live(self.limits.live_timeout_s):
            raise ServerUnavailable(server.address, f"it was asked for {self.staged.name} in batches")
        return judged


async def _check_server(server: TritonControl, check: FleetCheck) -> dict[str, str]:
    staged, limits = check.staged, check.limits
    error = await check.update.bring(server, staged)
    states = await server.states(staged.name, limits.call_timeout_s)
    rejected: dict[str, str] = {}
    for number in staged.versions:
        if not await server.is_ready(staged.name, number, limits.call_timeout_s):
            state, reason = states.get(number, ("not there", ""))
            rejected[number] = error or f"is {state} {' '.join(reason.split())}".rstrip()
    if error is not None and not rejected:
        # Every version answers, so one that failed still answers with what it was before.
        failed = set(_FAILED_VERSION.findall(error)) & staged.versions.keys()
        rejected = dict.fromkeys(failed or check.on_trial or staged.versions, error)
    for number in staged.versions:
        if number not in rejected and (problem := await _problem(server, staged, number, check.sample, limits)):
            rejected[number] = problem
    return rejected


async def _slower(
    server: TritonControl,
    staged: StagedModel,
    sample: Sample,
    on_trial: frozenset[str],
    live: str,
    limits: CheckLimits,
) -> dict[str, str]:
    """Versions that need much longer for the sample than the live one, in turn on the same server."""
    if live in on_trial or live not in staged.versions or not checks_latency(staged.config):
        return {}
    found: dict[str, str] = {}
    for number in on_trial:
        ours = theirs = math.inf
        for _ in range(_TIMED_CALLS):
            theirs = min(theirs, await _seconds(server, staged, live, sample, limits))
            ours = min(ours, await _seconds(server, staged, number, sample, limits))
        if ours > theirs * _SLOWER_MAX and ours - theirs > _SLOWER_MIN_S:
            found[number] = f"takes {ours * 1e3:.0f} ms for the sample, version {live} takes {theirs * 1e3:.1f} ms"
    return found


async def _seconds(
    server: TritonControl, staged: StagedModel, number: str, sample: Sample, limits: CheckLimits
) -> float:
    began = time.monotonic()
    try:
        await _answer(server, staged, number, sample, limits)
    except ServerUnavailable:
        if not await server.is_live(limits.live_timeout_s):
            raise
    except InferenceServerError:
        return math.inf  # the live one may fail by now: then it is no measure
    return time.monotonic() - began


async def _problem(
    server: TritonControl, staged: StagedModel, number: str, sample: Sample | None, limits: CheckLimits
) -> str | None:
    theirs = await server.config(staged.name, number, limits.call_timeout_s)
    if differences := config_differences(without_content_mark(staged.config), theirs):
        return f"the server's configuration is another one: {'; '.join(differences)}"
    if sample is None:
        return None
    try:
        outputs = await _answer(server, staged, number, sample, limits)
    except ServerUnavailable as error:
        if not await server.is_live(limits.live_timeout_s):
            raise
        return f"the sample was not answered: {error.reason}"
    except InferenceServerError as error:
        return f"the sample failed: {error.reason}"
    return "; ".join(sample.differences(number, signature(staged.config), outputs)) or None


async def _answer(
    server: TritonControl, staged: StagedModel, number: str, sample: Sample, limits: CheckLimits
) -> tuple[Tensor, ...]:
    return await server.infer(
        staged.name,
        number,
        sample.inputs,
        sample.parameters,
        decoupled=staged.config.model_transaction_policy.decoupled,
        timeout_s=limits.call_timeout_s,
    )
