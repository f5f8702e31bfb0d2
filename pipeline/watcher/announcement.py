"""The record that announces a model: which versions are good, which one answers by default, from when. Pure."""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta

from schemas.registry import ModelRecord, ModelSignature, ModelVersion, VersionState

# Workers that follow the topic know of a promotion before it counts; one that lags over a second waits (design,
# section 4). Two seconds hold that second and a slow broker.
PROMOTION_NOTICE = timedelta(seconds=2)


def model_record(
    model_name: str,
    good: Mapping[str, str],
    selected: Collection[str],
    signature: ModelSignature,
    announced: ModelRecord | None,
    now: datetime,
) -> ModelRecord | None:
    """The model's next record; None when no version is good.

    Args:
        model_name: the model.
        good: version -> fingerprint of everything the fleet serves and that passed its checks.
        selected: versions the owner's version_policy names; the rest is served until it has drained.
        signature: of the configuration all versions share.
        announced: the record on the topic.
        now: the time.
    """
    if not good:
        return None
    # Without a good version of the owner's choice, what answered before goes on answering.
    wanted = [number for number in good if number in selected]
    live = announced.default_version if announced else None
    default = max(wanted, key=int) if wanted else live if live in good else max(good, key=int)
    promoted = live is not None and default != live
    previous = live if promoted else announced.previous_version if announced else None
    effective_at = announced.effective_at if announced else now
    if promoted:
        effective_at = now + PROMOTION_NOTICE

    def state(number: str) -> VersionState:
        return "ready" if number in selected or number in (default, previous) else "draining"

    return ModelRecord(
        model_name=model_name,
        versions={
            number: ModelVersion(fingerprint=good[number], state=state(number), signature=signature)
            for number in sorted(good, key=int)
        },
        default_version=default,
        previous_version=previous if previous in good else None,
        effective_at=effective_at,
    )
