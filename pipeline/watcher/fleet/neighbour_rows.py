"""Whether a row's answer depends on its neighbours in a batch: which rows to ask, in which company, and what differs.

Pure: tensors and a generator of random numbers in, rows, companies and findings out. `neighbour_check.py` asks.

A row may differ from itself alone by a rounding (matrix products of another shape: every row, 1e-5), or by its
neighbours' size (dynamic quantization takes one scale for the batch: 1 % of the answer, half of it beside rows that are
50 times larger). So rows are small and large, alone, in twos and in eights, first and last.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.core.batching import NotSplittableError, split_tensors
from schemas.registry import ModelSignature, TensorSpec
from schemas.tensor import Tensor, from_numpy, to_numpy

Row = tuple[Tensor, ...]
"""One row of every input: the first dimension of each tensor is 1."""

# Four rows whose answers are compared, and four to stand beside them: of models that do depend on their neighbours,
# 69 % of rows differ or more (measured on numpy and onnxruntime), so four miss one in a hundred of them at most.
ROWS_COMPARED = 4
ROWS_BESIDE = 4
_LARGEST_BATCH = 8
# What is compared is scaled down, what stands beside it is not: a value stays between 0 and what the sample has.
_SCALES = (1.0, 0.5, 0.1, 0.02)
_FLOATS = frozenset({"FP16", "FP32", "FP64"})
_WORDS = ("a", "an", "answer", "beside", "company", "different", "number", "other", "row", "rows", "short", "the")
_NUMPY = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "u2", "UINT32": "u4", "UINT64": "u8", "INT8": "i1", "INT16": "i2",
    "INT32": "i4", "INT64": "i8", "FP16": "f2", "FP32": "f4", "FP64": "f8",
}  # fmt: skip


def rows_of_sample(inputs: Sequence[Tensor], rng: np.random.Generator) -> list[Row]:
    """Eight rows like those of a sample request, the sample's own first.

    Numbers are put in another order and floats made smaller, texts get their words in another order and number: what
    the model takes of the sample's kind it takes of these, most likely. Rows it refuses are the caller's to leave out.

    Raises:
        NotSplittableError: the inputs have no common batch axis.
    """
    rows = split_tensors(inputs, [1] * inputs[0].shape[0])
    count = ROWS_COMPARED + ROWS_BESIDE
    for index in range(len(rows), count):
        scale = _SCALES[index % len(_SCALES)] if index < ROWS_COMPARED else 1.0
        rows.append(tuple(_varied(tensor, scale, rng) for tensor in rows[index % len(rows)]))
    return rows[:count]


def _varied(tensor: Tensor, scale: float, rng: np.random.Generator) -> Tensor:
    if tensor.datatype == "BF16":
        pairs = np.frombuffer(tensor.raw, "<u2")
        return tensor._replace(raw=rng.permutation(pairs).tobytes())
    flat = to_numpy(tensor).reshape(-1)
    if tensor.datatype == "BYTES":
        texts = [_other_text(bytes(flat[index]), rng) for index in rng.permutation(len(flat))]
        varied = np.empty(len(texts), dtype=object)
        varied[:] = texts
    elif tensor.datatype in _FLOATS:
        varied = (rng.permutation(flat) * scale).astype(flat.dtype)
    elif len(flat) == 1 and tensor.datatype != "BOOL" and flat[0] > 0:
        varied = np.array([rng.integers(0, int(flat[0]), endpoint=True, dtype=np.uint64)]).astype(flat.dtype)
    else:
        varied = rng.permutation(flat)
    return from_numpy(tensor.name, varied.reshape(tensor.shape))


def _other_text(text: bytes, rng: np.random.Generator) -> bytes:
    """The same words in another order, up to twice as many: a batch of texts is as long as its longest.

    What is no plain text (an image's bytes, JSON) stays as it is.
    """
    words = text.split(b" ")
    if not text.isascii() or len(words) < 2 or text.lstrip()[:1] in (b"{", b"["):
        return text
    chosen = rng.choice(len(words), size=int(rng.integers(1, 2 * len(words), endpoint=True)))
    return b" ".join(words[index] for index in chosen)


def rows_of_signature(signature: ModelSignature, rng: np.random.Generator) -> list[Row] | str:
    """Eight rows of random tensors; why not, where an input is of any size or of a kind that cannot be guessed."""
    needed = [spec for spec in signature.inputs if not spec.optional]
    if not needed:
        return "every input is optional, and there is no sample.json"
    for spec in needed:
        if -1 in spec.dims:
            return f"input {spec.name!r} is of any size, and there is no sample.json"
        if spec.datatype == "BF16":
            return f"input {spec.name!r} is BF16, and there is no sample.json"
    rows: list[Row] = []
    for index in range(ROWS_COMPARED + ROWS_BESIDE):
        scale = _SCALES[index % len(_SCALES)] if index < ROWS_COMPARED else 1.0
        rows.append(tuple(_random(spec, scale, rng) for spec in needed))
    return rows


def _random(spec: TensorSpec, scale: float, rng: np.random.Generator) -> Tensor:
    shape = (1, *spec.dims)
    if spec.datatype == "BYTES":
        texts = np.empty(int(np.prod(shape)), dtype=object)
        texts[:] = [" ".join(rng.choice(_WORDS, size=int(rng.integers(1, 12)))) for _ in texts]
        return from_numpy(spec.name, texts.reshape(shape))
    numpy_type = np.dtype(_NUMPY[spec.datatype])
    if spec.datatype in _FLOATS:
        return from_numpy(spec.name, (rng.random(shape) * scale).astype(numpy_type))
    # Bytes are pixels most often; of other integers only 0 and 1 are an index into any table.
    high = 256 if spec.datatype == "UINT8" else 2
    return from_numpy(spec.name, rng.integers(0, high, shape).astype(numpy_type))


def companies(rows: int, rows_max: int, rng: np.random.Generator) -> Iterator[tuple[int, ...]]:
    """Which rows are asked together, by their numbers: each compared one in two twos, and in two eights.

    Args:
        rows: how many there are; one alone is its own neighbour.
        rows_max: the model's max_batch_size, at least 2.
        rng: chooses neighbours and places.
    """
    compared = range(min(ROWS_COMPARED, rows))
    for row in compared:
        others = [other for other in range(rows) if other != row] or [row]
        first, last = rng.choice(others), rng.choice(others)
        yield row, int(first)
        yield int(last), row
    size = min(_LARGEST_BATCH, rows_max)
    for _ in range(2 if size > 2 else 0):
        yield tuple(int(row) for row in np.resize(rng.permutation(rows), size))


def difference(alone: Mapping[int, Sequence[Tensor]], company: Sequence[int], outputs: Sequence[Tensor]) -> str | None:
    """Where rows that were asked together are not answered as each was alone, bit by bit; None where they are."""
    try:
        answers = split_tensors(outputs, [1] * len(company))
    except NotSplittableError as error:
        return str(error)
    for row, answer in zip(company, answers, strict=True):
        for mine, its in zip(_by_name(alone[row]), _by_name(answer), strict=False):
            if mine != its:
                return f"in a batch of {len(company)}, {_apart(mine, its)}"
        if len(alone[row]) != len(answer):
            return f"in a batch of {len(company)}, there are {len(answer)} outputs, alone {len(alone[row])}"
    return None


def _by_name(tensors: Sequence[Tensor]) -> list[Tensor]:
    return sorted(tensors, key=lambda tensor: tensor.name)


def _apart(mine: Tensor, its: Tensor) -> str:
    if mine[:3] != its[:3]:
        return f"output {its.name!r} is {its.datatype} {list(its.shape)}, alone {mine.datatype} {list(mine.shape)}"
    if mine.datatype in ("BYTES", "BOOL"):
        return f"output {mine.name!r} is another one than alone"
    here, there = (to_numpy(tensor).astype(np.float64) for tensor in (mine, its))
    with np.errstate(invalid="ignore"):
        apart: Any = np.nanmax(np.abs(here - there), initial=0.0)
    return f"output {mine.name!r} differs by up to {apart:.3g} from what it is alone"
