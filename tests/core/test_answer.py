"""Answers of one call, made together, are what each would be by itself."""

import struct

from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.core.answer import stored_answer, stored_answers
from pipeline.core.batching import split_tensors
from schemas.tensor import Tensor
from tests.schemas.records import ALL_DATATYPES, ELEMENT_SIZES, FAST

# The FP32 that readers would round twice, a NaN, and plain numbers.
AWKWARD = struct.pack("<4I", 0x15AE43FD, 0x7FC00000, 0x3F800000, 0xBF800000)


@st.composite
def joined_outputs(draw: st.DrawFn) -> tuple[list[Tensor], list[int]]:
    """Outputs of a batch, and how many rows each request had."""
    rows = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    outputs = []
    for number, datatype in enumerate(draw(st.lists(st.sampled_from(ALL_DATATYPES), max_size=3))):
        dims = draw(st.sampled_from([(), (1,), (3,), (2, 2), (0,)]))
        shape = (sum(rows), *dims)
        outputs.append(Tensor(f"y{number}", datatype, shape, draw(_raw(datatype, shape))))
    return outputs, rows


def _raw(datatype: str, shape: tuple[int, ...]) -> st.SearchStrategy[bytes]:
    count = 1
    for size in shape:
        count *= size
    if datatype == "BYTES":
        elements = st.lists(st.binary(max_size=3), min_size=count, max_size=count)
        return elements.map(lambda all_: b"".join(struct.pack("<I", len(one)) + one for one in all_))
    if datatype == "BOOL":
        return st.lists(st.sampled_from([0, 1]), min_size=count, max_size=count).map(bytes)
    size = count * ELEMENT_SIZES[datatype]
    return st.binary(min_size=size, max_size=size) | st.just((AWKWARD * size)[-size:] if size else b"")


@FAST
@given(joined_outputs())
@example(([Tensor("y", "FP32", (4,), AWKWARD[4:12] * 2)], [1, 1, 2]))
@example(([Tensor("y", "FP32", (4,), AWKWARD[8:] * 2)], [1, 1, 2]))
@example(([Tensor("y", "FP32", (4,), (AWKWARD[:4] + AWKWARD[8:12]) * 2)], [1, 1, 2]))
@example(([Tensor("y", "INT64", (2, 8192), bytes(2 * 8 * 8192))], [1, 1]))
@example(([Tensor("y", "INT64", (2, 8193), bytes(2 * 8 * 8193))], [1, 1]))
@example(([], [1, 2]))
def test_answers_made_together_are_those_made_alone(batch: tuple[list[Tensor], list[int]]) -> None:
    """Texts, sizes and tensors of a batch's answers are, byte for byte, those of each request by itself."""
    outputs, rows = batch
    parts = split_tensors(outputs, rows)
    together = stored_answers(outputs, parts, stored_at=5.0, instance="triton-0")
    for tensors, answer in zip(parts, together, strict=True):
        alone = stored_answer(tensors, stored_at=5.0, instance="triton-0")
        assert answer.tensors == alone.tensors
        assert (answer.json, answer.raw_bytes, answer.size_bytes) == (alone.json, alone.raw_bytes, alone.size_bytes)
        assert (answer.stored_at, answer.instance) == (5.0, "triton-0")
