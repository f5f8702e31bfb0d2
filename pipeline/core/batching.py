"""Which misses leave together, and how their answers are told apart again.

A batch leaves at once when nothing of its group is out, else what arrives meanwhile collects: no wait is ever added,
and the busier the server the larger the batches. One partial batch per instance is out at a time; full ones go up to
`full_in_flight` per instance (measured on Triton 2.51: 37,000/s instead of 8,900/s with a fixed delay of 1 ms at 16
callers, at a quarter of its latency).

Requests leave in the order they came, until the oldest with a deadline has spent half of its time waiting. From then on
the newest leave first, for in order each would be computed just too late for the one who waits: simulated at twice the
capacity, in order 14 % of the peak's goodput are left (7 % in batches), newest first all of it. Those without a
deadline keep their order and get every other place. One whose deadline is nearer than a batch takes leaves alone, while
there is no such backlog.

A batch with a row that fails is halved until that row is alone. While batches of a group fail, they get smaller.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Generic, NamedTuple, Protocol, TypeVar

from schemas.errors import WireError
from schemas.tensor import Tensor, split_bytes_elements

# Past this a batch saves nothing: 600 KB tensors take 2 ms to move and 0.05 ms of overhead each.
BATCH_BYTES_MAX = 1 << 20
NEVER = float("-inf")
FOREVER = float("inf")


class Queued(Protocol):
    """A request that waits in the queue of its group.

    Attributes:
        rows: along the batch axis, at least 1.
        size_bytes: of its inputs.
        queued_at: since when, monotonic seconds.
    """

    rows: int
    size_bytes: int
    queued_at: float


Flight = TypeVar("Flight", bound=Queued)


class GroupKey(NamedTuple):
    """Requests with the same key may share a batch: everything but the rows is equal.

    Attributes:
        alone: content that failed by itself before: it leaves in calls of its own.
    """

    model_name: str
    version: str
    fingerprint: str
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    outputs: bytes
    parameters: tuple[tuple[str, str, str], ...]
    alone: bool = False


def group_key(
    model_name: str,
    version: str,
    fingerprint: str,
    tensors: Sequence[Tensor],
    outputs: bytes,
    parameters: Mapping[str, object],
) -> GroupKey:
    """The key of the group that a request's tensors belong to. `1`, `1.0` and `true`, `0.0` and `-0.0` differ."""
    typed: tuple[tuple[str, str, str], ...] = ()
    if parameters:
        typed = tuple([(name, type(value).__name__, repr(value)) for name, value in sorted(parameters.items())])
    shapes = tuple([(name, datatype, shape[1:]) for name, datatype, shape, _ in tensors])
    return GroupKey(model_name, version, fingerprint, shapes, outputs, typed)


def _forever(flight: object) -> float:
    return FOREVER


def _unknown(size_bytes: int) -> float | None:
    return None


@dataclass(slots=True)
class BatchGroup(Generic[Flight]):
    """The queue of one group, and how much of it is out.

    Attributes:
        rows_max: the model's max_batch_size, or less for a model that must not be batched.
        instances: how many servers share the load.
        full_in_flight: how many full batches may be out to each of them.
        wanted_until: until when somebody waits for a flight, monotonic seconds; `NEVER` where nobody does any more.
        call_p99_s: what a call of so many bytes takes; None where that is not known.
        rows_queued: of all that wait; 0 where none does.
        unwanted: those nobody waits for any more, found on the way; whoever takes batches empties it.
    """

    rows_max: int
    instances: int
    full_in_flight: int
    wanted_until: Callable[[Flight], float] = _forever
    call_p99_s: Callable[[int], float | None] = _unknown
    in_flight: int = 0
    rows_queued: int = 0
    unwanted: list[Flight] = field(default_factory=list)
    # With a deadline and without; both oldest first.
    _hasty: deque[Flight] = field(default_factory=deque)
    _patient: deque[Flight] = field(default_factory=deque)
    _rows_trusted: int = 0
    _patient_turn: bool = False

    def __post_init__(self) -> None:
        self._rows_trusted = self.rows_max

    def __len__(self) -> int:
        """How many wait."""
        return len(self._hasty) + len(self._patient)

    @property
    def oldest_at(self) -> float:
        """Since when the oldest waits; infinite where none does."""
        return min(queue[0].queued_at if queue else FOREVER for queue in (self._hasty, self._patient))

    def add(self, flight: Flight) -> None:
        """A request joins the end of the queue."""
        patient = self.wanted_until(flight) == FOREVER
        (self._patient if patient else self._hasty).append(flight)
        self.rows_queued += flight.rows

    def take(self, now: float = 0.0) -> list[Flight]:
        """The next batch, or nothing when what is out is enough, or nobody waits.

        The batch is at most `rows_max` rows and about `BATCH_BYTES_MAX` bytes, at least one request. It counts as in
        flight until the caller says otherwise.
        """
        if not self._hasty and not self._patient:
            return []
        rows_max = min(self.rows_max, self._rows_trusted)
        if self.in_flight >= self.instances * (self.full_in_flight if self.rows_queued >= rows_max else 1):
            return []
        behind = self._falls_behind(now)
        hasty, patient, wanted_until = self._hasty, self._patient, self.wanted_until
        batch: list[Flight] = []
        rows = size = 0
        soonest = FOREVER
        while hasty or patient:
            queue = self._next_queue(newest_first=behind) if hasty and patient else hasty or patient
            newest = behind and queue is hasty
            flight = queue[-1] if newest else queue[0]
            if batch and (rows + flight.rows > rows_max or size + flight.size_bytes > BATCH_BYTES_MAX):
                break
            if newest:
                queue.pop()
            else:
                queue.popleft()
            self.rows_queued -= flight.rows
            until = wanted_until(flight)
            if until == NEVER:
                self.unwanted.append(flight)
                continue
            self._patient_turn = queue is hasty
            batch.append(flight)
            rows += flight.rows
            size += flight.size_bytes
            if until < soonest:
                soonest = until
        if soonest != FOREVER and len(batch) > 1 and not behind:
            batch = self._without_the_hurried(batch, size, soonest, now)
        self.in_flight += bool(batch)
        return batch

    def drop_unwanted(self) -> None:
        """Looks through the whole queue for those nobody waits for any more."""
        for queue in (self._hasty, self._patient):
            for _ in range(len(queue)):
                flight = queue.popleft()
                if self.wanted_until(flight) == NEVER:
                    self.rows_queued -= flight.rows
                    self.unwanted.append(flight)
                else:
                    queue.append(flight)

    def distrust(self) -> None:
        """A batch failed: the next ones are half as large, so that fewer suffer with the one that fails."""
        self._rows_trusted = max(min(self.rows_max, self._rows_trusted) // 2, 1)

    def trust(self) -> None:
        """A batch was answered: the next ones may be an eighth larger."""
        if self._rows_trusted < self.rows_max:
            self._rows_trusted = min(self._rows_trusted + max(self._rows_trusted // 8, 1), self.rows_max)

    def _falls_behind(self, now: float) -> bool:
        """Whether the oldest with a deadline has spent half of its time waiting."""
        while self._hasty:
            oldest = self._hasty[0]
            until = self.wanted_until(oldest)
            if until == NEVER:
                self.unwanted.append(self._hasty.popleft())
                self.rows_queued -= oldest.rows
            elif until == FOREVER:  # one without a deadline has joined it
                self._patient.append(self._hasty.popleft())
            else:
                return now - oldest.queued_at > until - now
        return False

    def _next_queue(self, *, newest_first: bool) -> deque[Flight]:
        """Whose turn it is where some with a deadline wait, and some without."""
        hasty, patient = self._hasty, self._patient
        if newest_first:
            return patient if self._patient_turn else hasty
        return hasty if hasty[0].queued_at <= patient[0].queued_at else patient

    def _without_the_hurried(self, batch: list[Flight], size: int, soonest: float, now: float) -> list[Flight]:
        """One whose time ends before the batch would, alone; the others go back to the front."""
        p99_s = self.call_p99_s(size)
        if p99_s is None or soonest - now >= p99_s:
            return batch
        hurried = next(flight for flight in batch if self.wanted_until(flight) == soonest)
        for flight in reversed(batch):
            if flight is not hurried:
                patient = self.wanted_until(flight) == FOREVER
                (self._patient if patient else self._hasty).appendleft(flight)
                self.rows_queued += flight.rows
        return [hurried]


def join_tensors(batch: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
    """Tensors of several requests as one, along the batch axis: row-major bytes, one after the other."""
    if len(batch) == 1:
        return tuple(batch[0])
    rows = sum(tensors[0].shape[0] for tensors in batch)
    return tuple(
        Tensor(first.name, first.datatype, (rows, *first.shape[1:]), b"".join([tensors[i].raw for tensors in batch]))
        for i, first in enumerate(batch[0])
    )


class NotSplittableError(Exception):
    """An answer has not one row for each row asked: the model must not be batched."""


def split_tensors(outputs: Sequence[Tensor], rows: Sequence[int]) -> list[tuple[Tensor, ...]]:
    """One request's outputs each, from the outputs of a batch.

    Args:
        outputs: what the server answered.
        rows: how many rows each request had, in order.

    Raises:
        NotSplittableError: an output's first dimension is not the sum of `rows`.
    """
    columns = [_split_one(tensor, rows) for tensor in outputs]
    return list(zip(*columns, strict=True)) if columns else [() for _ in rows]


def _split_one(tensor: Tensor, rows: Sequence[int]) -> list[Tensor]:
    total = sum(rows)
    if not tensor.shape or tensor.shape[0] != total:
        raise NotSplittableError(f"output {tensor.name!r} has shape {list(tensor.shape)} for a batch of {total}")
    name, datatype, rest, raw = tensor.name, tensor.datatype, tensor.shape[1:], tensor.raw
    if datatype == "BYTES":
        ends = _bytes_row_ends(tensor, total)
    else:
        width = len(raw) // total
        if width * total != len(raw):
            raise NotSplittableError(f"output {name!r} has {len(raw)} bytes for {total} rows")
        ends = range(0, len(raw) + 1, width) if width else [0] * (total + 1)
    shapes = {count: (count, *rest) for count in rows}
    lasts = list(accumulate(rows))
    return [
        Tensor(name, datatype, shapes[count], raw[ends[last - count] : ends[last]])
        for count, last in zip(rows, lasts, strict=True)
    ]


def _bytes_row_ends(tensor: Tensor, rows: int) -> Sequence[int]:
    """Where each row of a BYTES tensor begins, and where the last ends."""
    try:
        elements = split_bytes_elements(tensor.name, tensor.raw)
    except WireError as error:
        raise NotSplittableError(error.message) from None
    per_row, left = divmod(len(elements), rows)
    if left:
        raise NotSplittableError(f"output {tensor.name!r} has {len(elements)} elements for {rows} rows")
    ends, position = [0], 0
    for index, element in enumerate(elements, 1):
        position += 4 + len(element)
        if per_row and index % per_row == 0:
            ends.append(position)
    return ends if per_row else [0] * (rows + 1)
