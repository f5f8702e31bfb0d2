"""The life of a model's versions, as the record on the models topic tells it. Pure: records in, records out.

    found ──> rejected                          by its form, or by a server; the same content is not tried again
      └─────> ready ──> draining ──> unloaded   the default, the one before it, and what the owner's policy selects are
                 ^          │                   ready; the rest drains, and is taken from the servers
                 └──────────┘                   chosen again

Every step is a record that is published before anything is done by it, with times in it: whoever finds the record
later, another watcher after a crash, goes on from there. The servers' part is `pipeline/watcher/registration.py`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from pipeline.errors import PromotionError
from schemas.registry import Canary, ModelRecord, ModelSignature, ModelVersion, VersionState

# Workers that follow the topic know of a change before it counts; one that lags over a second waits (design, section
# 4). Two seconds hold that second and a slow broker.
NOTICE = timedelta(seconds=2)
# Clocks that NTP keeps differ by milliseconds, and what is told to come is told two seconds ahead. A record's time that
# is further ahead was written before this clock was set back: it is waited for anew, not for as long as that was.
_AHEAD_MAX = timedelta(seconds=5)
# States that end by themselves, some time after they began.
_WAITING = {"draining", "unloaded"}


@dataclass(frozen=True, slots=True)
class Found:
    """What a pass over one model found.

    Attributes:
        good: version -> fingerprint of everything the fleet serves and that passed its checks.
        selected: versions that are in the repository and that the owner's version_policy names.
        rejected: version -> (fingerprint, reason) of what failed, by its number.
        signature: of the configuration that all versions share; None where no version is good.
        promotes: whether a new version becomes the default by itself.
        removed: versions whose folder the owner took away. What only the policy does not select any more may still be
            the previous one; what was taken away is kept for nobody.
    """

    good: Mapping[str, str]
    selected: Collection[str]
    rejected: Mapping[str, tuple[str, str]]
    signature: ModelSignature | None
    promotes: bool = True
    removed: Collection[str] = ()


def next_record(
    model_name: str, found: Found, announced: ModelRecord | None, now: datetime, drain: timedelta
) -> ModelRecord | None:
    """The model's next record; None where there is nothing to tell.

    Args:
        model_name: the model.
        found: what the repository and the fleet hold.
        announced: the record on the topic.
        now: the time.
        drain: how long a version that nothing selects any more is served.
    """
    good = found.good
    if not good and not found.rejected:
        return None
    live = announced.default_version if announced else None
    held = _held(found, announced)
    # Without a good version of the owner's choice, what answered before goes on answering.
    wanted = [number for number in good if number in found.selected and number not in held]
    fallback = live if live in good else max(good, key=int, default=None)
    default = max(wanted, key=int) if wanted else fallback
    promoted = live is not None and default != live
    previous = live if promoted else announced.previous_version if announced else None
    if previous in found.removed:
        previous = None
    effective_at = _within_reach(announced.effective_at, now) if announced else now
    if promoted:
        effective_at = now + NOTICE
    canary = announced.canary if announced else None
    if canary is not None and (canary.version not in good or canary.version in {default, *found.removed}):
        canary = None
    if canary is not None:
        canary = canary.model_copy(update={"effective_at": _within_reach(canary.effective_at, now)})
    chosen = {*found.selected, default, previous, canary.version if canary else None}
    versions = {
        number: _version(number, found, announced, chosen, now, drain)
        for number in sorted({*good, *found.rejected}, key=int)
    }
    return ModelRecord(
        model_name=model_name,
        versions=versions,
        default_version=default,
        previous_version=previous if previous in good else None,
        effective_at=effective_at,
        held=tuple(sorted(held, key=int)),
        canary=canary,
    )


def _within_reach(effective_at: datetime, now: datetime) -> datetime:
    """When a change counts, as announced; with notice from now where a clock that was set back put that off."""
    return now + NOTICE if effective_at > now + _AHEAD_MAX else effective_at


def _held(found: Found, announced: ModelRecord | None) -> set[str]:
    """Versions an operator turned away from, and new ones of a model whose owner promotes by hand."""
    present = {*found.good, *found.rejected, *found.selected}
    held = {number for number in announced.held if number in present} if announced else set()
    if not found.promotes and announced is not None and announced.default_version is not None:
        held |= {number for number in found.good if number != announced.default_version}
    return held


def _version(
    number: str, found: Found, announced: ModelRecord | None, chosen: set[str | None], now: datetime, drain: timedelta
) -> ModelVersion:
    before = announced.versions.get(number) if announced else None
    rejected, reason = found.rejected.get(number, (None, None))
    if number not in found.good:
        version = ModelVersion(fingerprint=rejected or "", state="rejected", reason=reason)
    else:
        version = ModelVersion(
            fingerprint=found.good[number],
            state="ready" if number in chosen else _leaving(before, now, drain),
            signature=found.signature,
            reason=reason,
            rejected_fingerprint=rejected,
        )
    if before is None or before.fingerprint != version.fingerprint:
        return version.model_copy(update={"since": now})
    if reason is None and before.rejected_fingerprint is None and before.state != "rejected":
        version = version.model_copy(update={"reason": before.reason})  # why its trial ended
    return version.model_copy(update={"since": _since(before, version.state, now)})


def _since(before: ModelVersion, state: VersionState, now: datetime) -> datetime | None:
    """Since when it is in this state; a wait that a clock which was set back made longer begins anew."""
    if before.state != state:
        return now
    put_off = state in _WAITING and before.since is not None and before.since > now + _AHEAD_MAX
    return now if put_off else before.since


def _leaving(before: ModelVersion | None, now: datetime, drain: timedelta) -> VersionState:
    if before is None or before.since is None or before.state not in _WAITING:
        return "draining"
    return "unloaded" if before.state == "unloaded" or now >= before.since + drain else "draining"


def changing(record: ModelRecord, numbers: Collection[str]) -> ModelRecord:
    """The record while the content of these versions is replaced: nothing they answer is stored."""
    versions = {
        number: version.model_copy(update={"changing": number in numbers})
        for number, version in record.versions.items()
    }
    return record.model_copy(update={"versions": versions})


def withdrawn(record: ModelRecord, now: datetime, drain: timedelta) -> ModelRecord | None:
    """The next record of a model that its owner removed: it drains whole; None once nobody asks for it any more."""
    versions: dict[str, ModelVersion] = {}
    for number, version in record.versions.items():
        if version.state == "rejected" or may_leave(version, now):
            continue
        state = _leaving(version, now, drain)
        versions[number] = version.model_copy(update={"state": state, "since": _since(version, state, now)})
    return record.model_copy(update={"versions": versions, "canary": None}) if versions else None


def may_leave(version: ModelVersion, now: datetime) -> bool:
    """Whether a version may be taken from the servers: every worker knows by now that it is unloaded."""
    return version.state == "unloaded" and version.since is not None and now >= version.since + NOTICE


def next_step_at(record: ModelRecord, drain: timedelta) -> datetime | None:
    """When a pass is due although nothing changed: a version has drained, or may leave."""
    waits = {"draining": drain, "unloaded": NOTICE}
    return min(
        (
            version.since + waits[version.state]
            for version in record.versions.values()
            if version.since is not None and version.state in waits
        ),
        default=None,
    )


def promoted(record: ModelRecord, version: str, now: datetime) -> ModelRecord:
    """The record in which a version is the default, from two seconds on; the same one where it is already.

    Higher versions are held: they do not take over by themselves. A new one, published later, does.

    Raises:
        PromotionError: it is not served.
    """
    _check_served(record, version)
    held = {number for number in (*record.versions, *record.held) if int(number) > int(version)}
    changes: dict[str, object] = {"held": tuple(sorted(held, key=int)), "canary": None}
    if version != record.default_version:
        changes |= {
            "default_version": version,
            "previous_version": record.default_version,
            "effective_at": now + NOTICE,
            "versions": record.versions | {version: _chosen(record.versions[version], now)},
        }
    return record.model_copy(update=changes)


def with_canary(record: ModelRecord, version: str, share: float, now: datetime) -> ModelRecord:
    """The record in which a version answers a share of the requests that name none, from two seconds on.

    Raises:
        PromotionError: it is not served, or is the default.
    """
    _check_served(record, version)
    if version == record.default_version:
        raise PromotionError(f"{record.model_name} version {version} is the default: there is nothing to try")
    canary = Canary(version=version, share=share, effective_at=now + NOTICE)
    held = tuple(sorted({*record.held, version}, key=int))
    versions = record.versions | {version: _chosen(record.versions[version], now)}
    return record.model_copy(update={"canary": canary, "held": held, "versions": versions})


def without_canary(record: ModelRecord, reason: str | None = None) -> ModelRecord:
    """The record without a version on trial; it stays held, with the reason where it did badly."""
    changes: dict[str, object] = {"canary": None}
    if reason is not None and record.canary is not None:
        number = record.canary.version
        failed = record.versions[number].model_copy(update={"reason": reason})
        changes["versions"] = record.versions | {number: failed}
    return record.model_copy(update=changes)


def _check_served(record: ModelRecord, version: str) -> None:
    known = record.versions.get(version)
    if known is not None and known.state in {"ready", "draining"}:
        return
    served = [number for number, found in record.versions.items() if found.state in {"ready", "draining"}]
    state = f"is {known.state}" if known is not None else "is not there"
    reason = f" ({known.reason})" if known is not None and known.reason else ""
    raise PromotionError(
        f"{record.model_name} version {version} {state}{reason}; served: {', '.join(sorted(served, key=int)) or 'none'}"
    )


def _chosen(version: ModelVersion, now: datetime) -> ModelVersion:
    since = version.since if version.state == "ready" else now
    return version.model_copy(update={"state": "ready", "since": since, "reason": None})
