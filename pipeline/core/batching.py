"""Which misses leave together, and how their answers are told apart again.

A batch leaves at once when nothing of its group is out, else what arrives meanwhile collects: no wait is ever added,
and the busier the server the larger the batches. One partial batch per instance is out at a time; full ones go up to
`full_in_flight` per instance (measured on Triton 2.51: 37,000/s instead of 8,900/s with a fixed delay of 1 ms at 16
callers, at a quarter of its latency).
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from schemas.errors import WireError
from schemas.tensor import Tensor, split_bytes_elements

# Past this a batch saves nothing: 600 KB tensors take 2 ms to move and 0.05 ms of overhead each.
BATCH_BYTES_MAX = 1 << 20

Flight = TypeVar("Flight")


class GroupKey(NamedTuple):
    """Requests with the same key may share a batch: everything but the rows is equal."""

    model_name: str
    version: str
    fingerprint: str
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    outputs: bytes
    parameters: tuple[tuple[str, str, str], ...]


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


@dataclass(slots=True)
class Waiting(Generic[Flight]):
    """One request's place in the queue of its group."""

    flight: Flight
    tensors: Sequence[Tensor]
    rows: int
    size_bytes: int


@dataclass(slots=True)
class BatchGroup(Generic[Flight]):
    """The queue of one group, and how much of it is out.

    Args:
        rows_max: the model's max_batch_size.
        instances: how many servers share the load.
        full_in_flight: how many full batches may be out to each of them.
    """

    rows_max: int
    instances: int
    full_in_flight: int
    in_flight: int = 0
    queue: deque[Waiting[Flight]] = field(default_factory=deque)
    _rows_queued: int = 0

    def add(self, waiting: Waiting[Flight]) -> None:
        """A request joins the end of the queue."""
        self.queue.append(waiting)
        self._rows_queued += waiting.rows

    def take(self) -> list[Waiting[Flight]]:
        """The next batch, or nothing when what is out is enough. The caller counts it as in flight.

        The batch is at most `rows_max` rows and about `BATCH_BYTES_MAX` bytes, at least one request.
        """
        if not self.queue:
            return []
        limit = self.instances * (self.full_in_flight if self._rows_queued >= self.rows_max else 1)
        if self.in_flight >= limit:
            return []
        batch: list[Waiting[Flight]] = []
        rows = size = 0
        while self.queue:
            head = self.queue[0]
            if batch and (rows + head.rows > self.rows_max or size + head.size_bytes > BATCH_BYTES_MAX):
                break
            batch.append(self.queue.popleft())
            rows += head.rows
            size += head.size_bytes
        self._rows_queued -= rows
        self.in_flight += 1
        return batch


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
    name, datatype, rest = tensor.name, tensor.datatype, tensor.shape[1:]
    if datatype == "BYTES":
        ends = _bytes_row_ends(tensor, total)
    else:
        width = len(tensor.raw) // total
        if width * total != len(tensor.raw):
            raise NotSplittableError(f"output {name!r} has {len(tensor.raw)} bytes for {total} rows")
        ends = range(0, len(tensor.raw) + 1, width) if width else [0] * (total + 1)
    parts: list[Tensor] = []
    row = 0
    for count in rows:
        raw = tensor.raw[ends[row] : ends[row + count]]
        parts.append(Tensor(name, datatype, (count, *rest), raw))
        row += count
    return parts


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
