"""What the engine says to one request, and the stored answer that a hit gives again."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import orjson

from schemas.errors import ErrorCode, InferenceFailure, WireError
from schemas.result import CacheStatus, Status
from schemas.tensor import Tensor, json_from_raw, rows_as_json

# Up to this many raw bytes the JSON text is made once and kept, so that a hit splices it; above, the text is two to
# five times the raw bytes and would fill the cache with what few ask for.
_KEPT_JSON_RAW_BYTES_MAX = 64 * 1024
# A tensor's objects: name, shape, itself, its bytes' header.
_TENSOR_OVERHEAD_BYTES = 300
_ANSWER_OVERHEAD_BYTES = 250


@dataclass(slots=True, eq=False)  # frozen would cost 0.8 us for each miss
class StoredAnswer:
    """A version's outputs for one key. First writer wins, and these very bytes are given to everybody after.

    Attributes:
        tensors: the outputs in raw form, in the order asked.
        json: the `outputs` array as JSON text, where it is small and JSON can carry it.
        stored_at: when it was computed, monotonic seconds.
        instance: who computed it.
        raw_bytes: bytes of all outputs in raw form.
        size_bytes: all it holds on to.
    """

    tensors: tuple[Tensor, ...]
    stored_at: float
    instance: str
    json: bytes | None = field(repr=False)
    raw_bytes: int
    size_bytes: int

    def json_outputs(self) -> bytes | None:
        """The `outputs` array as JSON text, or None where JSON cannot carry it."""
        return self.json if self.json is not None else outputs_as_json(self.tensors)


def stored_answer(tensors: Sequence[Tensor], *, stored_at: float, instance: str) -> StoredAnswer:
    """A `StoredAnswer` with its JSON text made where it is worth keeping."""
    raw = _raw_bytes(tensors)
    json = outputs_as_json(tensors) if raw <= _KEPT_JSON_RAW_BYTES_MAX else None
    return _answer_of(tuple(tensors), raw, json, stored_at, instance)


def stored_answers(
    joined: Sequence[Tensor], parts: Sequence[tuple[Tensor, ...]], *, stored_at: float, instance: str
) -> list[StoredAnswer]:
    """A `StoredAnswer` of each part of what one call computed, as `stored_answer` makes it of each by itself.

    Numbers become text in one go for all of them: 0.4 us for each part instead of 2.

    Args:
        joined: all parts as one, along the batch axis.
        parts: the outputs of each request.
        stored_at: monotonic seconds.
        instance: who computed them.
    """
    raws = [_raw_bytes(tensors) for tensors in parts]
    texts = _texts_of(joined, parts) if len(parts) > 1 and max(raws) <= _KEPT_JSON_RAW_BYTES_MAX else None
    if texts is None:
        return [stored_answer(tensors, stored_at=stored_at, instance=instance) for tensors in parts]
    return [
        _answer_of(tensors, raw, json, stored_at, instance)
        for tensors, raw, json in zip(parts, raws, texts, strict=True)
    ]


def _answer_of(
    tensors: tuple[Tensor, ...], raw: int, json: bytes | None, stored_at: float, instance: str
) -> StoredAnswer:
    size = _ANSWER_OVERHEAD_BYTES + raw + len(tensors) * _TENSOR_OVERHEAD_BYTES + (len(json) if json else 0)
    return StoredAnswer(tensors, stored_at, instance, json, raw, size)


def _raw_bytes(tensors: Sequence[Tensor]) -> int:
    return sum([len(tensor.raw) for tensor in tensors])


def _texts_of(joined: Sequence[Tensor], parts: Sequence[tuple[Tensor, ...]]) -> list[bytes] | None:
    """`outputs_as_json` of each part; None where one of them has none, or they cannot be made together."""
    columns: list[list[bytes]] = []
    for position, whole in enumerate(joined):
        rows = rows_as_json(whole)
        if rows is None:
            return None
        heads: dict[int, bytes] = {}
        column: list[bytes] = []
        end = 0
        for tensors in parts:
            count = tensors[position].shape[0]
            if count not in heads:
                heads[count] = output_head(tensors[position]) + b',"data":['
            data = rows[end] if count == 1 else b",".join(rows[end : end + count])
            column.append(b"%b%b]}" % (heads[count], data))
            end += count
        columns.append(column)
    return [b"[%b]" % b",".join(outputs) for outputs in zip(*columns, strict=True)] if columns else None


def outputs_as_json(tensors: Sequence[Tensor]) -> bytes | None:
    """The `outputs` array of a result, or None where a tensor has no JSON form."""
    parts: list[bytes] = []
    for tensor in tensors:
        output = output_as_json(tensor)
        if output is None:
            return None
        parts.append(output)
    return b"[%b]" % b",".join(parts)


def output_as_json(tensor: Tensor) -> bytes | None:
    """One output with its data as a JSON object, or None where the tensor has no JSON form."""
    data = json_from_raw(tensor)
    return None if data is None else b'%b,"data":%b}' % (output_head(tensor), data)


def output_head(tensor: Tensor) -> bytes:
    """One output's JSON object up to its data, not closed."""
    return tensor_head(tensor.name, tensor.datatype, tensor.shape)


@lru_cache(maxsize=4096)
def tensor_head(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    """A tensor's JSON object up to its data, not closed."""
    return b'{"name":%b,"datatype":"%b","shape":%b' % (orjson.dumps(name), datatype.encode(), orjson.dumps(shape))


@dataclass(slots=True, eq=False)
class Answer:
    """What the engine says to one request.

    Attributes:
        model_version: the version that answered, or that was asked; None where none was resolved.
        outputs: of a succeeded one.
        failure: of any other.
        cache_status: None where the cache was not reached.
        key: 32 bytes, where one was built.
        age_s: of a hit's stored answer.
        dispatched_at: when the call that answered left, Unix seconds; None where none was made.
        inference_s: how long that call took, batching included.
        instance: the Triton that computed the outputs.
    """

    status: Status
    model_version: str | None = None
    outputs: StoredAnswer | None = None
    failure: InferenceFailure | None = None
    cache_status: CacheStatus | None = None
    key: bytes | None = None
    age_s: float | None = None
    dispatched_at: float | None = None
    inference_s: float = 0.0
    instance: str = ""


def failed(error: WireError, cache_status: CacheStatus | None = None, model_version: str | None = None) -> Answer:
    """The answer that tells of an error."""
    status: Status = "expired" if error.code is ErrorCode.EXPIRED else "failed"
    return Answer(status, model_version, failure=error.failure, cache_status=cache_status)
