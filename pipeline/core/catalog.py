"""Which version answers: the models topic, folded."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from pipeline.core.batching import GroupKey
from pipeline.core.cache_key import CacheScope, encode_outputs
from schemas.errors import ErrorCode, WireError
from schemas.registry import ModelRecord, ModelSignature, TensorSpec
from schemas.request import Parameters

# Scopes are made again for tenants past this many.
_TENANTS_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """One version that may be asked, with what is computed once for all its requests.

    Attributes:
        inputs: by name.
        output_names: all outputs, in the order declared.
        all_outputs: the same, as a request that names none asks for them; `all_outputs_encoded` for its key.
        is_plain: one request, one answer: neither decoupled nor stateful.
        trial: another version that answers a share of the requests that name none, where this one is the default.
        accepted: layouts of inputs that were found to fit (`core/validation.py`).
        group_keys: the batches' groups by layout and outputs, where they are known (`core/batching.py`).
    """

    model_name: str
    version: str
    fingerprint: str
    signature: ModelSignature
    inputs: dict[str, TensorSpec] = field(repr=False)
    required_inputs: int
    output_names: tuple[str, ...]
    all_outputs: tuple[tuple[str, Parameters], ...] = field(repr=False)
    all_outputs_encoded: bytes = field(repr=False)
    is_plain: bool
    trial: "Trial | None" = None
    accepted: set[tuple[tuple[str | int, ...], ...]] = field(repr=False, default_factory=set)
    group_keys: dict[tuple[object, ...], GroupKey] = field(repr=False, default_factory=dict)
    _scopes: dict[str | None, CacheScope] = field(repr=False, default_factory=dict)

    def scope_of(self, tenant: str | None) -> CacheScope:
        """The scope of a tenant's answers by this version."""
        scope = self._scopes.get(tenant)
        if scope is None:
            scope = CacheScope(tenant, self.model_name, self.version, self.fingerprint)
            if len(self._scopes) < _TENANTS_REMEMBERED:
                self._scopes[tenant] = scope
        return scope

    def is_content_of(self, other: "ServedVersion") -> bool:
        """Whether both are the same content under the same number."""
        return (self.version, self.fingerprint) == (other.version, other.fingerprint)

    @property
    def batches(self) -> bool:
        """Whether requests may be joined along the batch axis before they leave."""
        signature = self.signature
        return signature.max_batch_size > 1 and signature.client_batching and not signature.stateful


@dataclass(frozen=True, slots=True)
class Trial:
    """A version on trial: which requests it answers, and from when on, Unix seconds."""

    version: ServedVersion
    share: float
    effective_at: float

    def takes(self, content: bytes, now: float) -> bool:
        """Whether a request with this content digest is among its share: equal requests meet the same version."""
        return now >= self.effective_at and int.from_bytes(content[:8]) < self.share * 2.0**64


def served_version(model_name: str, version: str, fingerprint: str, signature: ModelSignature) -> ServedVersion:
    """A `ServedVersion` from what was announced."""
    names = tuple(spec.name for spec in signature.outputs)
    all_outputs: tuple[tuple[str, Parameters], ...] = tuple((name, {}) for name in names)
    return ServedVersion(
        model_name=model_name,
        version=version,
        fingerprint=fingerprint,
        signature=signature,
        inputs={spec.name: spec for spec in signature.inputs},
        required_inputs=sum(not spec.optional for spec in signature.inputs),
        output_names=names,
        all_outputs=all_outputs,
        all_outputs_encoded=encode_outputs(all_outputs),
        is_plain=not (signature.decoupled or signature.stateful),
    )


@dataclass(frozen=True, slots=True)
class _Model:
    versions: dict[str, ServedVersion]
    default: str | None
    previous: str | None
    effective_at: float
    changing: frozenset[str]


class ModelCatalog:
    """What the fleet serves, as far as the models topic was read."""

    def __init__(self, records: Iterable[ModelRecord] = ()) -> None:
        self._models: dict[str, _Model] = {}
        for record in records:
            self.apply(record)

    def __len__(self) -> int:
        return len(self._models)

    def apply(self, record: ModelRecord) -> None:
        """Takes a newer record of a model in the place of the older one."""
        versions = {
            number: served_version(record.model_name, number, version.fingerprint, version.signature)
            for number, version in record.versions.items()
            if version.state in {"ready", "draining"} and version.signature is not None
        }
        default, canary = record.default_version, record.canary
        if canary is not None and canary.version in versions and default in versions:
            trial = Trial(versions[canary.version], canary.share, canary.effective_at.timestamp())
            versions[default] = replace(versions[default], trial=trial)
        changing = frozenset(number for number, version in record.versions.items() if version.changing)
        self._models[record.model_name] = _Model(
            versions, default, record.previous_version, record.effective_at.timestamp(), changing
        )

    def discard(self, model_name: str) -> None:
        """Forgets a model: its record was deleted."""
        self._models.pop(model_name, None)

    def versions(self) -> list[ServedVersion]:
        """All versions that may be asked."""
        return [version for model in self._models.values() for version in model.versions.values()]

    def is_served(self, version: ServedVersion) -> bool:
        """Whether exactly this content is what the fleet serves under its number, and is about to serve."""
        model = self._models.get(version.model_name)
        if model is None or version.version in model.changing:
            return False
        return self._fingerprint(version.model_name, version.version) == version.fingerprint

    def serves(self, scope: CacheScope) -> bool:
        """Whether the content that answered is still what the fleet serves under its number."""
        return self._fingerprint(scope.model_name, scope.model_version) == scope.fingerprint

    def _fingerprint(self, model_name: str, number: str) -> str | None:
        model = self._models.get(model_name)
        served = model.versions.get(number) if model is not None else None
        return served.fingerprint if served is not None else None

    def resolve(self, model_name: str, version: str | None, now: float) -> ServedVersion:
        """The version that answers a request.

        Args:
            model_name: as the request names it.
            version: as the request names it, or None for the default.
            now: the later of the clock and the record's append time, Unix seconds: a record appended after a
                promotion took effect is never answered by an earlier default, whatever this clock says.

        Raises:
            WireError: MODEL_NOT_FOUND or VERSION_NOT_FOUND.
        """
        model = self._models.get(model_name)
        if model is None:
            known = ", ".join(sorted(self._models)) or "none"
            raise WireError(
                ErrorCode.MODEL_NOT_FOUND, f"model_name: {model_name!r:.64} is not served (served: {known})"
            )
        number = version
        if number is None:
            promoted = now >= model.effective_at or model.previous is None
            number = model.default if promoted else model.previous
        served = model.versions.get(number) if number is not None else None
        if served is None:
            known = ", ".join(sorted(model.versions, key=int)) or "none"
            raise WireError(
                ErrorCode.VERSION_NOT_FOUND,
                f"model_version: {number!r} of {model_name!r:.80} is not served (served: {known})",
            )
        return served
