"""Joining tensors and telling answers apart again: nothing is lost, nothing is mixed up."""

import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.batching import (
    BATCH_BYTES_MAX,
    BatchGroup,
    NotSplittableError,
    join_tensors,
    split_tensors,
)
from schemas.tensor import Tensor

FAST = settings(max_examples=100, deadline=None)


@dataclass
class _Queued:
    """A request in a queue."""

    number: int
    rows: int
    size_bytes: int
    queued_at: float = 0.0


_SIZES = {"UINT8": 1, "INT16": 2, "FP32": 4, "INT64": 8, "BF16": 2, "BOOL": 1}


@st.composite
def row_tensors(draw: st.DrawFn, rest: tuple[int, ...], datatype: str) -> Tensor:
    """A tensor of one to four rows of this shape."""
    rows = draw(st.integers(1, 4))
    count = rows
    for size in rest:
        count *= size
    if datatype == "BYTES":
        elements = draw(st.lists(st.binary(max_size=6), min_size=count, max_size=count))
        raw = b"".join(len(element).to_bytes(4, "little") + element for element in elements)
    else:
        width = count * _SIZES[datatype]
        raw = draw(st.binary(min_size=width, max_size=width))
    return Tensor("t", datatype, (rows, *rest), raw)


@st.composite
def batches(draw: st.DrawFn) -> list[Tensor]:
    """Tensors that may share a batch: one datatype, one shape of a row."""
    datatype = draw(st.sampled_from([*_SIZES, "BYTES"]))
    rest = tuple(draw(st.lists(st.integers(0, 3), max_size=2)))
    return draw(st.lists(row_tensors(rest, datatype), min_size=1, max_size=6))


@FAST
@given(batches())
def test_split_undoes_the_join(tensors: list[Tensor]) -> None:
    """Tensors joined along the batch axis and split again by their rows are the same tensors."""
    (joined,) = join_tensors([[tensor] for tensor in tensors])
    assert joined.shape[0] == sum(tensor.shape[0] for tensor in tensors)
    parts = split_tensors([joined], [tensor.shape[0] for tensor in tensors])
    assert parts == [(tensor,) for tensor in tensors]


@FAST
@given(batches(), st.integers(-3, 3).filter(bool))
def test_wrong_number_of_rows_is_refused(tensors: list[Tensor], off: int) -> None:
    """An output whose first dimension is not the rows asked is never cut up by guessing."""
    (joined,) = join_tensors([[tensor] for tensor in tensors])
    rows = [tensor.shape[0] for tensor in tensors]
    rows[0] += off
    if rows[0] < 0:
        rows[0] = sum(rows) + 7
    with pytest.raises(NotSplittableError):
        split_tensors([joined], rows)


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor("t", "FP32", (), b"\0\0\0\0"),
        Tensor("t", "FP32", (2, 2), b"\0" * 15),
        Tensor("t", "BYTES", (2, 1), b"\1\0\0\0a"),
        Tensor("t", "BYTES", (2, 1), b"\1\0\0\0a\1\0\0\0b\1\0\0\0c"),
        Tensor("t", "BYTES", (2, 1), b"\1\0\0\0a\x09\0\0\0b"),
        Tensor("t", "BYTES", (2, 1), b"\1\0"),
    ],
)
def test_broken_outputs_are_not_split(tensor: Tensor) -> None:
    """Bytes that do not fit their shape cannot be divided among requests."""
    with pytest.raises(NotSplittableError):
        split_tensors([tensor], [1, 1])


def test_no_outputs_split_into_none() -> None:
    """An answer without outputs is an answer without outputs for each request."""
    assert split_tensors([], [1, 2]) == [(), ()]


def test_several_inputs_are_joined_each() -> None:
    """Every input of a batch is joined by itself, in the order of the first request."""
    one = (Tensor("a", "UINT8", (1, 2), b"ab"), Tensor("b", "INT16", (1,), b"cd"))
    two = (Tensor("a", "UINT8", (2, 2), b"efgh"), Tensor("b", "INT16", (2,), b"ijkl"))
    assert join_tensors([one, two]) == (
        Tensor("a", "UINT8", (3, 2), b"abefgh"),
        Tensor("b", "INT16", (3,), b"cdijkl"),
    )


def test_lone_request_is_passed_through() -> None:
    """One request alone is not copied."""
    tensors = (Tensor("a", "UINT8", (1, 2), b"ab"),)
    assert join_tensors([tensors])[0] is tensors[0]


@FAST
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(0, BATCH_BYTES_MAX)), max_size=40),
    st.integers(1, 8),
    st.integers(1, 3),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_queue_is_emptied_within_limits(
    sizes: list[tuple[int, int]], rows_max: int, instances: int, window: int, rng: random.Random
) -> None:
    """Batches keep order and limits, lose nothing, and never exceed what may be out."""
    group: BatchGroup[_Queued] = BatchGroup(rows_max, instances, window)
    taken: list[int] = []
    waiting = list(enumerate(sizes))
    while waiting or len(group) or group.in_flight:
        if waiting:
            index, (rows, size) = waiting.pop(0)
            group.add(_Queued(index, rows, size))
        if rng.random() < 0.5 and waiting:
            continue
        while batch := group.take():
            assert len(batch) == 1 or sum(one.rows for one in batch) <= rows_max
            assert len(batch) == 1 or sum(one.size_bytes for one in batch) <= BATCH_BYTES_MAX
            taken += [one.number for one in batch]
        assert group.in_flight <= instances * window
        assert not len(group) or group.in_flight, "something waits though nothing is out"
        if group.in_flight:
            group.in_flight -= 1
    assert taken == list(range(len(sizes)))
