"""Equal requests in flight run once: a flight and its members."""

from dataclasses import dataclass, field
from typing import Protocol

from pipeline.core.answer import Answer
from pipeline.core.cache_key import CacheScope
from pipeline.core.cache_policy import CachePolicy
from pipeline.core.catalog import ServedVersion
from pipeline.core.trace_context import Span
from schemas.decoded import DecodedRequest
from schemas.request import Parameters
from schemas.result import CacheStatus
from schemas.tensor import Tensor


class Timer(Protocol):
    """A planned call that can be taken back."""

    def cancel(self) -> None:
        """The call will not happen."""


class Waiter(Protocol):
    """Somebody who waits for an answer."""

    def answered(self, answer: Answer) -> None:
        """The answer, exactly once. Must not raise."""


@dataclass(slots=True, eq=False)
class Member:
    """One request that a flight answers.

    Attributes:
        cache_status: what its answer will say: the first member computes, the others coalesce.
        policy: what its request lets the cache do.
        deadline: monotonic seconds after which it is EXPIRED, or None.
        give_up_at: monotonic seconds after which "no instance answers" is its answer.
        enable_cache: as its request says it, for entering again under another version.
        resolve_at: Unix seconds: a default version is never resolved as of an earlier time.
        timer: will tell it that it expired; cancelled with the answer, for it holds the request's tensors.
        span: of its request, where somebody follows it.
    """

    waiter: Waiter
    request: DecodedRequest
    cache_status: CacheStatus
    policy: CachePolicy
    enable_cache: bool
    deadline: float | None
    give_up_at: float
    resolve_at: float
    done: bool = False
    flight: "Flight | None" = None
    timer: Timer | None = None
    span: Span | None = None


@dataclass(slots=True, eq=False)
class Flight:
    """One inference that runs, or waits to.

    Attributes:
        key: the cache key, or None where nothing may be shared or stored.
        tenant: whose answers it may be stored with.
        version: the version that is asked, and no other.
        outputs: names asked for, each with the parameters that reach the server.
        parameters: those that reach the model; `server_parameters` are the server's own.
        replaces: its answer takes the place of what is stored, with other workers too.
        looking: the shared cache is being asked; nothing is computed yet.
        forgotten: what was stored of its kind has been cleared since: its answer is not stored.
        rows: along the batch axis; 1 for a model without one.
        size_bytes: raw bytes of all inputs.
        queued_at: when it began to wait for the fleet, monotonic seconds.
        unavailable: why no instance answered last time; None while one may.
        tries: how often no instance answered.
    """

    key: bytes | None
    tenant: str | None
    version: ServedVersion
    tensors: tuple[Tensor, ...]
    outputs: tuple[tuple[str, Parameters], ...]
    outputs_encoded: bytes
    parameters: Parameters
    server_parameters: Parameters
    size_bytes: int
    members: list[Member] = field(default_factory=list)
    replaces: bool = False
    looking: bool = False
    forgotten: bool = False
    rows: int = field(init=False)
    queued_at: float = 0.0
    unavailable: str | None = None
    tries: int = 0

    def __post_init__(self) -> None:
        shape = self.tensors[0].shape
        self.rows = shape[0] if shape and self.version.signature.max_batch_size else 1

    def join(self, member: Member) -> None:
        """One more request that this flight answers."""
        member.flight = self
        self.members.append(member)

    @property
    def scope(self) -> CacheScope:
        """Whose answers, and of what."""
        return self.version.scope_of(self.tenant)

    @property
    def store(self) -> bool:
        """Whether the answer is stored: it is if any member's may be."""
        if self.forgotten or self.key is None:
            return False
        for member in self.members:  # noqa: SIM110 - `any` costs 0.3 us more for each miss
            if member.policy.store:
                return True
        return False

    @property
    def all_parameters(self) -> Parameters:
        """Those that reach the model and those of the server."""
        return {**self.parameters, **self.server_parameters} if self.server_parameters else self.parameters

    @property
    def is_wanted(self) -> bool:
        """Whether anybody still waits for it."""
        return not all(member.done for member in self.members)

    def waiting(self) -> list[Member]:
        """Members without an answer yet."""
        return [member for member in self.members if not member.done]
