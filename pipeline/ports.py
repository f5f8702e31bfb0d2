"""What the core needs of the outside, one Protocol each. Adapters implement them; tests' fakes pass the same suites.

Every method says what blocks and what it raises. Times are seconds; `now` of a `Clock` is Unix time, `monotonic`
never goes back.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.core.answer import StoredAnswer
from pipeline.core.cache_key import CacheScope
from schemas.tensor import Tensor


class Clock(Protocol):
    """Time, so that tests can hold it."""

    def now(self) -> float:
        """Unix time in seconds."""

    def monotonic(self) -> float:
        """Seconds from an unknown start; never goes back."""


@dataclass(frozen=True, slots=True)
class InferenceCall:
    """One call of one model version: tensors already joined along the batch axis.

    Attributes:
        outputs: names that are wanted, in order; empty for all. A name comes with its own request parameters.
        parameters: what reaches the model; the protocol's own (`priority`, `timeout`) are among them.
    """

    model_name: str
    model_version: str
    inputs: Sequence[Tensor]
    outputs: Sequence[tuple[str, Mapping[str, Any]]] = ()
    parameters: Mapping[str, Any] | None = None


class AnswerCache(Protocol):
    """Stored answers by key, in this process."""

    def get(self, key: bytes, now: float) -> StoredAnswer | None:
        """The answer stored for exactly this key, or None. `now` is monotonic seconds."""

    def put(self, key: bytes, value: StoredAnswer, expires_at: float, scope: CacheScope) -> None:
        """Stores an answer until `expires_at`, in place of an older one; may refuse one that is too large."""


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
