"""What one pass wants of one model, and how far it is: which versions, which are set aside, and why."""

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from pipeline.core.model_config import ModelConfig, promotes, signature
from pipeline.core.version_life import Found, may_leave
from pipeline.watcher.fleet.neighbour_check import Judged
from pipeline.watcher.report import Outcome
from pipeline.watcher.repository.model_folder import ModelFolder
from pipeline.watcher.repository.sample import Sample
from pipeline.watcher.repository.version_checks import completed_config, version_faults
from pipeline.watcher.serving.folder import StagedModel
from pipeline.watcher.serving.version_store import StoredFiles
from schemas.registry import ModelRecord

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class PassState:
    """What a pass over one model has found so far.

    Attributes:
        rejected: version -> the fingerprint of the content that was rejected.
        notes: version -> what else its owner should know.
        set_aside: version and source of content that no server is to see again in this pass.
        changing: whether the topic says that content is being replaced.
        halted: whether a server may serve something else than the topic says until another pass updates it.
    """

    unreachable: set[str] = field(default_factory=set)
    failures: dict[str, tuple[Outcome, str]] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    set_aside: set[tuple[str, str]] = field(default_factory=set)
    serving_already: set[str] = field(default_factory=set)
    changing: bool = False
    halted: bool = False


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


@dataclass(slots=True)
class Draft:
    """One model in a pass: what is to be served of it, as far as the pass knows by now.

    Attributes:
        wanted: what the pass began with.
        before: what the serving folder held then.
        config: completed from what the owner wrote; None where no version fits it.
        candidates: the versions that may still become served.
        shared: the files beside the version folders.
        judged: what the neighbour check said of a mark (`content_mark`), so that it is asked once.
        ended: whether nothing was left to serve, and what was served before is again.
        first: the addresses of servers that meet what is new before any other.
        began: when, in seconds of the monotonic clock.
    """

    wanted: Wanted
    before: StagedModel | None
    state: PassState
    sample: Sample | None = None
    config: ModelConfig | None = None
    candidates: dict[str, StoredFiles] = field(default_factory=dict)
    shared: StoredFiles | None = None
    judged: dict[str | None, Judged] = field(default_factory=dict)
    ended: bool = False
    first: set[str] = field(default_factory=set)
    began: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.wanted.model.name

    @property
    def earlier(self) -> Mapping[str, StoredFiles]:
        """The versions that were served before, by their number."""
        return self.before.versions if self.before else {}


def found(model: ModelFolder, staged: StagedModel | None, announced: ModelRecord | None, state: PassState) -> Found:
    """What the pass over a model found, as its next record is made of it."""
    bad: dict[str, tuple[str, str]] = {
        number: (state.rejected.get(number, ""), reason)
        for number, (outcome, reason) in state.failures.items()
        if outcome in ("invalid", "rejected")
    }
    if staged is not None:
        config = staged.config
        removed = _removed(model, announced)
        return Found(staged.fingerprints, model.selected, bad, signature(config), promotes(config), removed)
    served = {}
    shape = None
    for number, version in (announced.versions if announced else {}).items():
        if version.state != "rejected":
            served[number], shape = version.fingerprint, version.signature
    return Found(served, model.selected, bad, shape, removed=_removed(model, announced))


def _removed(model: ModelFolder, announced: ModelRecord | None) -> frozenset[str]:
    """Versions whose folder is gone; none where the model's is: a disk that is not mounted looks like that."""
    if announced is None or not model.path.is_dir():
        return frozenset()
    return frozenset(number for number in announced.versions if not (model.path / number).exists())


def on_trial(staged: StagedModel, announced: ModelRecord | None) -> frozenset[str]:
    """The versions that are not announced with this content."""
    known = announced.versions if announced else {}
    return frozenset(
        number
        for number, digest in staged.fingerprints.items()
        if number not in known or known[number].state == "rejected" or known[number].fingerprint != digest
    )


def known_bad(planned: StagedModel, announced: ModelRecord | None) -> dict[str, str]:
    """Content that was rejected before, with the reason: no server meets it a second time."""
    found: dict[str, str] = {}
    for number, version in (announced.versions if announced else {}).items():
        bad = version.fingerprint if version.state == "rejected" else version.rejected_fingerprint
        if bad is not None and planned.fingerprints.get(number) == bad:
            found[number] = version.reason or "was rejected before"
    return found


def proven(
    before: StagedModel, announced: ModelRecord | None, state: PassState, now: datetime
) -> dict[str, StoredFiles]:
    """What was served and may be again: neither what a pass that was cut short left there, nor what is leaving."""
    known = announced.versions if announced else {}
    return {
        number: stored
        for number, stored in before.versions.items()
        if (
            not may_leave(known[number], now)
            if number in known and known[number].fingerprint == before.fingerprints[number]
            else (number, stored.source) not in state.set_aside
        )
    }


def reject(draft: Draft, reasons: Mapping[str, str], staged: StagedModel) -> None:
    """Takes out what was rejected; where the content of a number changed, its earlier one is a candidate again."""
    for number, reason in reasons.items():
        draft.state.failures.setdefault(number, ("rejected", reason))
        draft.state.rejected.setdefault(number, staged.fingerprints[number])
        logger.warning("%s version %s is rejected: %s", draft.name, number, reason)
    set_aside(draft, reasons.keys())


def set_aside(draft: Draft, numbers: Iterable[str]) -> None:
    """Takes these out of the candidates: no server sees this content again in this pass."""
    left = dict(draft.candidates)
    for number in numbers:
        draft.state.set_aside.add((number, left.pop(number).source))
        if number in draft.earlier and (number, draft.earlier[number].source) not in draft.state.set_aside:
            left[number] = draft.earlier[number]
    draft.candidates = left


def shared_config(model: ModelFolder, candidates: dict[str, StoredFiles], state: PassState) -> ModelConfig | None:
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
