"""A staged model on every server: loaded, ready, the same configuration, the sample answered."""

import logging
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.core.model_config import checks_latency, signature
from pipeline.errors import InferenceServerError, ServerUnavailable
from pipeline.watcher.sample import Sample
from pipeline.watcher.serving import StagedModel
from pipeline.watcher.triton_control import ModelControlOff, ModelLoadFailed, TritonControl
from pipeline.watcher.version_checks import config_differences
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


@dataclass(frozen=True, slots=True)
class FleetVerdict:
    """What the servers said: of versions on trial, of versions that were good before, and who said nothing.

    Attributes:
        fatal: versions on trial whose server answered before it met them and did not afterwards.
    """

    rejected: Mapping[str, str]
    fatal: Mapping[str, str]
    failing: Mapping[str, str]
    unreachable: tuple[str, ...]
    checked: tuple[str, ...]


async def check_fleet(
    servers: Sequence[TritonControl],
    staged: StagedModel,
    sample: Sample | None,
    on_trial: frozenset[str],
    live: str | None,
    limits: CheckLimits,
) -> FleetVerdict:
    """Loads and checks on one server after the other; stops at the first that finds a version on trial wanting.

    So a bad version reaches one server of the fleet. A version that was announced before, with this content, is not
    taken away because a server has trouble with it now: it is only told. A server that does not answer is left out:
    it loads the same folder when it starts. One that stops answering while it has a version on trial may have died of
    it: no other server meets that version in this check.

    Args:
        servers: the fleet.
        staged: what the serving folder holds for the model.
        sample: the model's sample request; without one, readiness and configuration are all that is checked.
        on_trial: versions that are not announced with this content.
        live: the version that is the default now; a much slower one does not take its place.
        limits: how long each step may take.
    """
    unreachable: list[str] = []
    checked: list[str] = []
    rejected: dict[str, str] = {}
    failing: dict[str, str] = {}
    for server in servers:
        was_live = await server.is_live(limits.live_timeout_s)
        try:
            problems = await _check_server(server, staged, sample, on_trial, limits)
            if sample is not None and live is not None:
                problems |= await _slower(server, staged, sample, on_trial - problems.keys(), live, limits)
        except ServerUnavailable as error:
            logger.warning("%s is left out of the check of %s: %s", server.address, staged.name, error.reason)
            unreachable.append(server.address)
            if was_live and on_trial:
                reason = f"{server.address} stopped answering while it tried it: {error.reason}"
                return FleetVerdict({}, dict.fromkeys(on_trial, reason), failing, tuple(unreachable), tuple(checked))
            continue
        checked.append(server.address)
        for number, reason in problems.items():
            told = rejected if number in on_trial else failing
            told.setdefault(number, f"{server.address}: {reason}")
        if rejected:
            break
    return FleetVerdict(rejected, {}, failing, tuple(unreachable), tuple(checked))


async def _check_server(
    server: TritonControl, staged: StagedModel, sample: Sample | None, on_trial: frozenset[str], limits: CheckLimits
) -> dict[str, str]:
    load_error = await _load(server, staged.name, limits)
    states = await server.states(staged.name, limits.call_timeout_s)
    rejected: dict[str, str] = {}
    for number in staged.versions:
        if not await server.is_ready(staged.name, number, limits.call_timeout_s):
            state, reason = states.get(number, ("not there", ""))
            rejected[number] = load_error or f"is {state} {' '.join(reason.split())}".rstrip()
    if load_error is not None and not rejected:
        # Every version answers, so one that failed still answers with what it was before.
        failed = set(_FAILED_VERSION.findall(load_error)) & staged.versions.keys()
        rejected = dict.fromkeys(failed or on_trial or staged.versions, load_error)
    for number in staged.versions:
        if number not in rejected and (problem := await _problem(server, staged, number, sample, limits)):
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


async def _load(server: TritonControl, model_name: str, limits: CheckLimits) -> str | None:
    """Loads the model; what the server said against it, or None."""
    try:
        await server.load(model_name, limits.load_timeout_s)
    except ModelControlOff as error:
        # Somebody else decides what this server loads; what is ready there is judged like the rest.
        logger.info("%s loads by itself: %s", server.address, error.reason)
    except ModelLoadFailed as error:
        return error.reason
    except ServerUnavailable as error:
        if not await server.is_live(limits.live_timeout_s):
            raise
        return f"the load did not end in {limits.load_timeout_s:.0f} s: {error.reason}"
    return None


async def _problem(
    server: TritonControl, staged: StagedModel, number: str, sample: Sample | None, limits: CheckLimits
) -> str | None:
    theirs = await server.config(staged.name, number, limits.call_timeout_s)
    if differences := config_differences(staged.config, theirs):
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
