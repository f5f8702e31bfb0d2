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
    """One version: `fingerprint` is a digest of everything that can change its answers."""

    fingerprint: str
    state: VersionState
    signature: ModelSignature | None = None


class ModelRecord(_Wire):
    """One model. Requests appended after `effective_at` without a version are answered by `default_version`."""

    model_name: str
    versions: dict[str, ModelVersion]
    default_version: str | None
    previous_version: str | None = None
    effective_at: AwareDatetime
