"""A version that would be batched is asked the same rows alone and in company; if answers differ, it is not batched.

What a caller gets must not depend on who else asks: a stored answer is given again for an hour, and whoever computes it
anew should find the same. Triton's own dynamic batcher joins requests, too, so both are switched off then
(`without_batching`). An owner to whom small differences do not matter says `client_batching` `on`, and is not asked.
"""

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.core.batching import NotSplittableError, join_tensors
from pipeline.core.model_config import (
    ModelConfig,
    batches_requests,
    dependent_versions,
    signature,
    stated_batching,
    without_batching,
)
from pipeline.errors import InferenceServerError, ServerUnavailable
from pipeline.watcher.fleet.neighbour_rows import Row, companies, difference, rows_of_sample, rows_of_signature
from pipeline.watcher.fleet.triton_control import TritonControl
from pipeline.watcher.repository.sample import Sample
from pipeline.watcher.serving.folder import StagedModel
from schemas.registry import ModelSignature
from schemas.tensor import Tensor

logger = logging.getLogger(__name__)

Outcome = Literal["same", "differs", "not checked"]


@dataclass(frozen=True, slots=True)
class NeighbourVerdict:
    """What the check of one version came to, and why."""

    outcome: Outcome
    reason: str = ""

    @property
    def is_news(self) -> bool:
        """Whether the model's owner should be told."""
        return self.outcome != "same"

    def __str__(self) -> str:
        if self.outcome == "differs":
            return f'not batched, its answers depend on their neighbours: {self.reason} (client_batching "on" insists)'
        return f"neighbours {self.outcome}: {self.reason}" if self.reason else f"neighbours {self.outcome}"


@dataclass(frozen=True, slots=True)
class NeighbourLimits:
    """How long the check of one version may take, and what its rows are drawn from.

    It makes 19 calls at most, 16 of them of one or two rows: 0.1 s for a small model, 20 s for one that takes a second.
    """

    version_timeout_s: float = 30.0
    call_timeout_s: float = 10.0
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Judged:
    """What is to be served, and what is known of each version that may be batched.

    Attributes:
        alters: whether that is another configuration than the one that was judged.
    """

    config: ModelConfig
    verdicts: Mapping[str, NeighbourVerdict]
    alters: bool = False


def with_earlier_verdicts(config: ModelConfig, before: ModelConfig | None, unchanged: Collection[str]) -> ModelConfig:
    """A configuration with batching off where a version is served on that was found to depend on its neighbours.

    Args:
        config: completed from what the owner wrote.
        before: what was served until now; None for nothing.
        unchanged: versions that were served with this content, and are again.
    """
    if before is None or not batches_requests(config) or stated_batching(config) is True:
        return config
    dependent = dependent_versions(before) & set(unchanged)
    return without_batching(config, dependent) if dependent else config


def versions_to_check(
    config: ModelConfig, versions: Collection[str], before: ModelConfig | None, known: Collection[str]
) -> list[str]:
    """The versions whose neighbours matter and are not known yet, in rising order.

    Args:
        config: what would be served.
        versions: of these versions.
        before: what was served until now; None for nothing.
        known: versions that were served and announced with this content.
    """
    if not batches_requests(config) or stated_batching(config) is True:
        return []
    # Who was batched without the owner's word passed this check when it came.
    passed = before is not None and batches_requests(before) and stated_batching(before) is None
    return sorted(set(versions) - (set(known) if passed else set()), key=int)


async def judge_neighbours(
    servers: Sequence[TritonControl],
    config: ModelConfig,
    staged: StagedModel,
    sample: Sample | None,
    before: StagedModel | None,
    on_trial: Collection[str],
) -> Judged:
    """Checks what is not known yet of versions that are loaded; `config` comes back without batching where it must.

    Args:
        servers: who has them loaded.
        config: completed from what the owner wrote, with what earlier checks found.
        staged: what is served of it.
        sample: the model's sample request.
        before: what was served until now.
        on_trial: versions that are not announced with this content: nobody may have checked them to the end.
    """
    noted = {
        number: NeighbourVerdict("differs", "as found when it was new")
        for number in dependent_versions(config) & staged.versions.keys()
    }
    known = unchanged_versions(staged, before) - set(on_trial)
    asked = versions_to_check(config, staged.versions, before.config if before else None, known)
    found = await check_neighbours(servers, staged, sample, asked)
    dependent = [number for number, verdict in found.items() if verdict.outcome == "differs"]
    judged = without_batching(config, dependent) if dependent else config
    return Judged(judged, noted | found, alters=judged is not config)


def unchanged_versions(staged: StagedModel, before: StagedModel | None) -> set[str]:
    """The versions that were served with the content they have now."""
    earlier = before.fingerprints if before else {}
    return {number for number, digest in staged.fingerprints.items() if earlier.get(number) == digest}


async def check_neighbours(
    servers: Sequence[TritonControl],
    staged: StagedModel,
    sample: Sample | None,
    versions: Collection[str],
    limits: NeighbourLimits | None = None,
) -> dict[str, NeighbourVerdict]:
    """Asks a server that has these versions loaded; the next one where the first does not answer.

    Args:
        servers: who serves them. Nobody else should ask for them meanwhile, as requests could meet there.
        staged: what is served.
        sample: the model's sample request, which the rows are made of; without one they are random.
        versions: which of its versions.
        limits: time, and the seed.
    """
    limits = limits or NeighbourLimits()
    shape = signature(staged.config)
    found: dict[str, NeighbourVerdict] = {}
    for number in sorted(versions, key=int):
        rows = _rows(shape, sample, limits.seed)
        if isinstance(rows, str):
            found[number] = NeighbourVerdict("not checked", rows)
            continue
        parameters = dict(sample.parameters) if sample else {}
        found[number] = await _ask_fleet(servers, staged.name, number, shape, rows, parameters, limits)
        logger.info("%s version %s: %s", staged.name, number, found[number])
    return found


def _rows(shape: ModelSignature, sample: Sample | None, seed: int) -> list[Row] | str:
    """The rows to ask, or why none."""
    if shape.decoupled:
        return "its answers are streams"
    if shape.stateful:
        return "its requests belong to sequences"
    rng = np.random.default_rng(seed)
    if sample is None:
        return rows_of_signature(shape, rng)
    try:
        return rows_of_sample(sample.inputs, rng)
    except NotSplittableError as error:
        return f"the sample has no common batch axis: {error}"


async def _ask_fleet(
    servers: Sequence[TritonControl],
    model_name: str,
    number: str,
    shape: ModelSignature,
    rows: list[Row],
    parameters: Mapping[str, bool | int | float | str],
    limits: NeighbourLimits,
) -> NeighbourVerdict:
    reason = "there is no server"
    for server in servers:
        asking = _Asking(server, model_name, number, parameters, limits.call_timeout_s)
        try:
            async with asyncio.timeout(limits.version_timeout_s):
                return await _compare(asking, rows, shape.max_batch_size, np.random.default_rng(limits.seed))
        except TimeoutError:
            return NeighbourVerdict("not checked", f"{asking.calls} calls took {limits.version_timeout_s:g} s")
        except ServerUnavailable as error:
            reason = str(error)
        except InferenceServerError as error:
            return NeighbourVerdict("not checked", str(error))
    return NeighbourVerdict("not checked", reason)


@dataclass(slots=True)
class _Asking:
    server: TritonControl
    model_name: str
    number: str
    parameters: Mapping[str, bool | int | float | str]
    timeout_s: float
    calls: int = 0

    async def outputs(self, rows: Sequence[Row]) -> tuple[Tensor, ...]:
        self.calls += 1
        return await self.server.infer(
            self.model_name,
            self.number,
            join_tensors(rows),
            self.parameters,
            decoupled=False,
            timeout_s=self.timeout_s,
        )


async def _compare(asking: _Asking, rows: list[Row], rows_max: int, rng: np.random.Generator) -> NeighbourVerdict:
    good: list[Row] = []
    alone: dict[int, tuple[Tensor, ...]] = {}
    refusal = ""
    for row in rows:
        try:
            alone[len(good)] = await asking.outputs([row])
            good.append(row)
        except ServerUnavailable:
            raise
        except InferenceServerError as error:
            refusal = error.reason  # made of a sample, it need not be an input of the model
    if not good:
        return NeighbourVerdict("not checked", f"the model refuses what it was asked: {refusal}")
    if (apart := difference(alone, (0,), await asking.outputs(good[:1]))) is not None:
        return NeighbourVerdict("differs", f"asked twice, {apart.removeprefix('in a batch of 1, ')}")
    for company in companies(len(good), rows_max, rng):
        try:
            outputs = await asking.outputs([good[row] for row in company])
        except ServerUnavailable:
            raise
        except InferenceServerError as error:
            return NeighbourVerdict("differs", f"a batch of {len(company)} fails: {error.reason}")
        if (apart := difference(alone, company, outputs)) is not None:
            return NeighbourVerdict("differs", apart)
    return NeighbourVerdict("same")
