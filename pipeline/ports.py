"""What the core needs of the outside, one Protocol each. Adapters implement them; tests' fakes pass the same suites.

Every method says what blocks and what it raises. Times are seconds; `now` of a `Clock` is Unix time, `monotonic`
never goes back.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pipeline.core.answer import StoredAnswer
from pipeline.core.cache_key import CacheScope
from pipeline.core.response_cache import Cleared
from pipeline.core.stored_result import Pending, StoredResult
from pipeline.core.trace_context import Attributes, Span
from schemas.tensor import Tensor


class Clock(Protocol):
    """Time, so that tests can hold it."""

    def now(self) -> float:
        """Unix time in seconds."""

    def monotonic(self) -> float:
        """Seconds from an unknown start; never goes back."""


SpanKind = Literal["server", "client", "producer", "consumer"]


class Tracer(Protocol):
    """Spans for whoever follows a request through its processes (OpenTelemetry). Where nobody does there is no tracer.

    The collector may be away, slow or full: that costs spans, never an answer.
    """

    def begin(
        self,
        name: str,
        kind: SpanKind,
        at: float,
        attributes: Attributes,
        *,
        parent: bytes | None = None,
        links: Sequence[bytes] = (),
    ) -> Span:
        """A span from now on, or from a moment that has passed; never blocks, never raises.

        Args:
            name: as the semantic conventions have it.
            kind: which side of which exchange.
            at: Unix seconds.
            attributes: what is known of it by now; a sampler may look at them.
            parent: a valid `traceparent`; None: the span that is current in the caller's own program, else none.
            links: the same of spans that it leans on.
        """


@dataclass(frozen=True, slots=True)
class InferenceCall:
    """One call of one model version: tensors already joined along the batch axis.

    Attributes:
        outputs: names that are wanted, in order; empty for all. A name comes with its own request parameters.
        parameters: what reaches the model; the protocol's own (`priority`, `timeout`) are among them.
        traceparent: names the span of this call for the server's own trace; None where there is none.
    """

    model_name: str
    model_version: str
    inputs: Sequence[Tensor]
    outputs: Sequence[tuple[str, Mapping[str, Any]]] = ()
    parameters: Mapping[str, Any] | None = None
    traceparent: bytes | None = None


class AnswerCache(Protocol):
    """Stored answers by key, in this process."""

    def get(self, key: bytes, now: float) -> StoredAnswer | None:
        """The answer stored for exactly this key, or None. `now` is monotonic seconds."""

    def put(self, key: bytes, value: StoredAnswer, expires_at: float, scope: CacheScope) -> None:
        """Stores an answer until `expires_at`, in place of an older one; may refuse one that is too large."""

    def clear(self, wanted: Callable[[CacheScope], bool] | None = None) -> Cleared:
        """Forgets the answers of these scopes; None for all of them."""


@dataclass(frozen=True, slots=True)
class SharedAnswer:
    """An answer that another process, or an earlier life of this one, stored in the shared cache.

    Attributes:
        answer: its `stored_at` is this process's monotonic time now, less `age_s`.
        age_s: how old it is by the shared cache's own clock, never negative.
        left_s: how long it lives on, above zero.
    """

    answer: StoredAnswer
    age_s: float
    left_s: float


class SharedCache(Protocol):
    """Stored answers by key, for all workers: the second level, behind each worker's own.

    It may be away, slow, full or emptied at any moment: that costs time within the look-up's budget, never an answer.
    The budget is the cache's time, not that of a caller who is busy: it counts from when the question has left.
    """

    def look_up(self, key: bytes, scope: CacheScope, found: Callable[[SharedAnswer | None], None]) -> bool:
        """Asks for an answer; never blocks, never raises.

        True: `found` is called exactly once, never inside this call, with the answer or None: within the budget where
        nobody waits, and behind others at most that of 16 more pipelines, all of them in time; one that is late ends
        the waiting for all. False: not asked, for the cache does not answer at present or too many look-ups wait;
        `found` is not called. After `close`, False.
        """

    def store(
        self,
        key: bytes,
        scope: CacheScope,
        answer: StoredAnswer,
        ttl_s: float,
        *,
        replace: bool,
        winner: Callable[[SharedAnswer], None],
    ) -> None:
        """Stores an answer for `ttl_s` more, behind; never blocks, never raises.

        What finds the queue full, or the cache away, is dropped and counted. Without `replace` the first writer wins:
        where another was first, `winner` is called, later, with its answer. After `close` nothing happens.
        """

    def forget(self, wanted: Callable[[CacheScope], bool]) -> None:
        """What waits to be written of these scopes is not written any more; never blocks, never raises.

        What has left for the cache by now is undone by a `clear` that begins after this, anybody's.
        """

    async def clear(
        self, *, tenant: str | None = None, model_name: str | None = None, model_version: str | None = None
    ) -> int:
        """Removes the stored answers of these, and returns how many there were.

        None stands for all of them; the tenant "" for requests without one. What was on its way when it began, from
        whatever process, is removed or not written; what leaves meanwhile may stay.

        Raises:
            PipelineError: the cache cannot be asked; some answers may be removed already.
        """

    async def close(self) -> None:
        """Writes what waits if that takes a moment, and ends. Look-ups that wait find nothing. Idempotent."""


class InferenceServer(Protocol):
    """One instance that runs models (a Triton)."""

    @property
    def name(self) -> str:
        """The instance's name, as results and events give it."""

    async def infer(self, call: InferenceCall, timeout_s: float) -> tuple[Tensor, ...]:
        """The outputs of one call, in the order asked, or the server's own for all.

        Cancelling the task reaches the server. The version that answered is the one named, else it raises.

        Raises:
            ServerUnavailable: no answer within `timeout_s`, or no connection.
            ModelNotReady: model or version not served there.
            InvalidTensor: the tensors were refused.
            ModelFailed: the model failed on them.
        """


@dataclass(frozen=True, slots=True)
class InsertBlock:
    """Rows of one table in one insert: column-oriented, each column as long as the others."""

    table: str
    columns: Mapping[str, Sequence[Any]]


class EventStore(Protocol):
    """The inference log."""

    async def insert(self, blocks: Iterable[InsertBlock], token: str) -> None:
        """Inserts each block once: repeated with the same token and rows, the store keeps one copy.

        Returns when the store has acknowledged all of them.

        Raises:
            EventStoreError: refused (`retryable` False), or not reached.
        """


class ResultStore(Protocol):
    """Results by request for as long as they are asked for most; the log has them for longer.

    Names are those of `core.stored_result.name_of`. Every method raises ResultStoreError where the store refuses or
    does not answer in time, and nothing else.
    """

    async def reserve(self, name: bytes, digest: bytes) -> Pending | StoredResult | None:
        """Notes a request as pending where nothing is known of it, never over a result.

        Returns:
            What was there before; None: nothing, it is pending now.
        """

    async def release(self, name: bytes, digest: bytes) -> None:
        """Takes back a reservation of this request: it was not accepted after all. A result stays."""

    async def keep(self, results: Sequence[tuple[bytes, StoredResult]]) -> None:
        """Stores results in the order of their log: the first of a name wins, in place of a pending one."""

    async def find(self, names: Sequence[bytes]) -> list[Pending | StoredResult | None]:
        """What is known of each; None: nothing."""

    async def close(self) -> None:
        """Ends the connections. Idempotent."""
