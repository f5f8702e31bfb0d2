"""What `map` has out: bounded, handed on in the order of the inputs or as it comes. No I/O, no clock."""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from pipeline.errors import PipelineError
from schemas.result import InferenceResult

Outcome = InferenceResult | Exception


class Progress(NamedTuple):
    """How far a `map` is.

    Attributes:
        taken: inputs that were read.
        done: of them answered, or given up.
        failed: of these without a good answer.
        hits: of these answered by the cache.
        total: how many inputs there are; None where they cannot be counted.
    """

    taken: int = 0
    done: int = 0
    failed: int = 0
    hits: int = 0
    total: int | None = None


class Window:
    """The inputs between the source and whoever consumes the answers.

    Args:
        size_max: inputs that are read and whose answer is not handed on yet.
        ordered: answers are handed on in the order of the inputs; else as they come.
        total: how many inputs there are, if known.
        on_progress: is told of every answer; what it raises ends the map.
    """

    def __init__(
        self,
        size_max: int,
        *,
        ordered: bool,
        total: int | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        if size_max < 1:
            raise ValueError(f"concurrency is {size_max}, at least 1 is needed")
        self._size_max = size_max
        self._ordered = ordered
        self._on_progress = on_progress
        self._progress = Progress(total=total)
        self._given = 0
        self._by_place: dict[int, Outcome] = {}
        self._as_they_came: deque[Outcome] = deque()

    @property
    def has_room(self) -> bool:
        """Whether one more input may be read."""
        return self._progress.taken - self._given < self._size_max

    @property
    def is_empty(self) -> bool:
        """Whether everything that was read is handed on."""
        return self._progress.taken == self._given

    def take(self) -> int:
        """Makes place for an input; returns its number, from 0."""
        place = self._progress.taken
        self._progress = self._progress._replace(taken=place + 1)
        return place

    def settle(self, place: int, outcome: Outcome) -> None:
        """Keeps an input's outcome until its turn comes."""
        if self._ordered:
            self._by_place[place] = outcome
        else:
            self._as_they_came.append(outcome)
        taken, done, failed, hits, total = self._progress
        is_error = isinstance(outcome, Exception)
        hit = isinstance(outcome, InferenceResult) and outcome.parameters.cache_status == "hit"
        self._progress = Progress(taken, done + 1, failed + is_error, hits + hit, total)
        if self._on_progress is not None:
            self._on_progress(self._progress)

    def pop(self) -> Outcome | None:
        """The outcome whose turn it is; None while it is not there."""
        if self._ordered:
            outcome = self._by_place.pop(self._given, None)
        else:
            outcome = self._as_they_came.popleft() if self._as_they_came else None
        self._given += outcome is not None
        return outcome


def value_or_raise(outcome: Outcome, *, return_exceptions: bool) -> InferenceResult | PipelineError:
    """An outcome as the caller of `map` wants it; what is no error of the pipeline is always raised."""
    if isinstance(outcome, InferenceResult) or (return_exceptions and isinstance(outcome, PipelineError)):
        return outcome
    raise outcome
