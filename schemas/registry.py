"""The models topic: what the fleet serves, one compacted record per model."""

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from schemas.tensor import Datatype

VersionState = Literal["ready", "draining", "unloaded", "rejected"]


class _Wire(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class TensorSpec(_Wire):
    """One input or output as config.pbtxt declares it: dims without the batch axis, -1 for any size."""

    name: str
    datatype: Datatype
    dims: tuple[int, ...]
    optional: bool = False


class ModelSignature(_Wire):
    """What a worker must know of a version to check, batch and cache its requests.

    `max_batch_size` 0 means the model has no batch axis.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: Annotated[int, Field(ge=0)] = 0
    decoupled: bool = False
    stateful: bool = False
    cacheable: bool = True
    cache_ttl_seconds: float | None = None
    client_batching: bool = True


class ModelVersion(_Wire):
    """One version: `fingerprint` is a digest of everything that can change its answers.

    `ready` and `draining` ones are served; a draining one is unloaded some time after `since`, unless it is chosen
    again. A `rejected` one never was, with this content: `reason` says why. A served one with a `reason` has newer
    content in the repository that was rejected.
    """

    fingerprint: str
    state: VersionState
    signature: ModelSignature | None = None
    since: AwareDatetime | None = Field(default=None, description="When it came into this state.")
    changing: bool = Field(default=False, description="Its content is being replaced: its answers are not stored.")
    reason: str | None = None
    rejected_fingerprint: str | None = Field(default=None, description="Of newer content that was rejected.")


class Canary(_Wire):
    """A version on trial by real requests: from `effective_at` on it answers a share of those that name no version.

    Which ones is decided by their content, so that equal requests meet the same version.
    """

    version: str
    share: Annotated[float, Field(gt=0, lt=1)]
    effective_at: AwareDatetime


class ModelRecord(_Wire):
    """One model. Requests appended after `effective_at` without a version are answered by `default_version`."""

    model_name: str
    versions: dict[str, ModelVersion]
    default_version: str | None
    previous_version: str | None = None
    effective_at: AwareDatetime
    held: tuple[str, ...] = Field(default=(), description="Versions that do not become the default by themselves.")
    canary: Canary | None = None
