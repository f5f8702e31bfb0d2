"""What an ONNX file declares: its inputs and outputs, without the `onnx` package, and without reading its weights.

The watcher runs where that package is not installed, and needs 30 of its 400 fields. A file is walked from field to
field and weights are stepped over, so a graph of 1 GB costs what one of 20 kB does. It is not mapped: a mapped file
that its owner cuts short ends the process (SIGBUS).

Source: onnx/onnx.proto, ModelProto and what hangs on it; the numbers are part of the file format.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from pipeline.errors import ModelRepositoryError
from pipeline.watcher.repository.completion import Graph, GraphTensor

# protobuf's own limit: no ONNX file can have more, and what is beyond lies beside the graph.
GRAPH_BYTES_MAX = (1 << 31) - 1

_DATATYPES = {
    1: "FP32", 2: "UINT8", 3: "INT8", 4: "UINT16", 5: "INT16", 6: "INT32", 7: "INT64", 8: "BYTES", 9: "BOOL",
    10: "FP16", 11: "FP64", 12: "UINT32", 13: "UINT64", 16: "BF16",
}  # fmt: skip

# Where the walk goes: the numbers of ModelProto, GraphProto, TensorProto and SparseTensorProto.
_GRAPH = 7
_INITIALIZER, _INPUT, _OUTPUT, _SPARSE_INITIALIZER = 5, 11, 12, 15
_NAME, _VALUES = 8, 1

# message -> (field, number, type): a lower-case type is a scalar, `*` repeats.
_FIELDS: dict[str, tuple[tuple[str, int, str], ...]] = {
    "Value": (("name", 1, "string"), ("type", 2, "Type")),
    "Type": (("tensor_type", 1, "TensorType"),),
    "TensorType": (("elem_type", 1, "int32"), ("shape", 2, "Shape")),
    "Shape": (("dim", 1, "*Dimension"),),
    "Dimension": (("dim_value", 1, "int64"),),
}


@lru_cache(maxsize=1)
def _value_class() -> Any:
    types = descriptor_pb2.FieldDescriptorProto
    scalars = {"int64": types.TYPE_INT64, "int32": types.TYPE_INT32, "string": types.TYPE_STRING}
    file = descriptor_pb2.FileDescriptorProto(name="pipeline/onnx_part.proto", package="pipeline_onnx", syntax="proto2")
    for message, fields in _FIELDS.items():
        entry = file.message_type.add(name=message)
        for name, number, kind in fields:
            bare = kind.lstrip("*")
            added = entry.field.add(name=name, number=number)
            added.label = types.LABEL_REPEATED if kind.startswith("*") else types.LABEL_OPTIONAL
            added.type = scalars.get(bare, types.TYPE_MESSAGE)
            if bare not in scalars:
                added.type_name = f".pipeline_onnx.{bare}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("pipeline_onnx.Value"))


def read_graph(path: Path) -> Graph:
    """The inputs and outputs of an ONNX file; inputs with a stored default value are not asked of clients.

    Raises:
        ModelRepositoryError: no whole ONNX file, or a type the protocol does not have.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        content = _Content(file.fileno(), os.fstat(file.fileno()).st_size)
        if content.size > GRAPH_BYTES_MAX:
            raise ModelRepositoryError(path, f"has {content.size} bytes, an ONNX file ends at {GRAPH_BYTES_MAX}")
        try:
            return _read_graph(path, content)
        except (DecodeError, _NotWholeError):
            raise ModelRepositoryError(path, "this is no whole ONNX file (half copied?)") from None


class _NotWholeError(Exception):
    """A field that runs past the end of what it is in."""


class _Span(NamedTuple):
    """One field of a message: its number, and where its bytes are (none, for a number)."""

    number: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Content:
    """An open file."""

    descriptor: int
    size: int

    def read(self, start: int, end: int) -> bytes:
        """The bytes from `start` to `end`.

        Raises:
            _NotWholeError: the file ends before.
        """
        found = os.pread(self.descriptor, end - start, start)
        if len(found) != end - start:
            raise _NotWholeError
        return found


def _read_graph(path: Path, content: _Content) -> Graph:
    stored: set[str] = set()
    values: dict[int, list[Any]] = {_INPUT: [], _OUTPUT: []}
    for graph in _spans(content, _Span(0, 0, content.size)):
        for part in _spans(content, graph) if graph.number == _GRAPH else ():
            if part.number in values:
                values[part.number].append(_value_class().FromString(content.read(part.start, part.end)))
            elif part.number == _INITIALIZER:
                stored |= _names(content, part)
            elif part.number == _SPARSE_INITIALIZER:
                inside = [span for span in _spans(content, part) if span.number == _VALUES]
                stored |= {name for span in inside for name in _names(content, span)}
    if not values[_OUTPUT]:
        raise ModelRepositoryError(path, "this ONNX file has no graph with an output")
    return Graph(
        inputs=tuple(_tensor(path, value) for value in values[_INPUT] if value.name not in stored),
        outputs=tuple(_tensor(path, value) for value in values[_OUTPUT]),
    )


def _names(content: _Content, span: _Span) -> set[str]:
    return {
        content.read(field.start, field.end).decode(errors="replace")
        for field in _spans(content, span)
        if field.number == _NAME
    }


def _spans(content: _Content, span: _Span) -> Iterator[_Span]:
    """The fields of a message, in order.

    Raises:
        _NotWholeError: it is none, or ends too early.
    """
    position = span.start
    while position < span.end:
        tag, position = _varint(content, position, span.end)
        start, kind = position, tag & 7
        # Protocol Buffers, "Encoding": 0 a varint, 1 eight bytes, 2 a length and its bytes, 5 four bytes.
        if kind == 0:
            _, position = _varint(content, position, span.end)
            start = position
        elif kind == 2:
            length, start = _varint(content, position, span.end)
            position = start + length
        elif kind in (1, 5):
            position = start + (8 if kind == 1 else 4)
        else:
            raise _NotWholeError
        if position > span.end:
            raise _NotWholeError
        yield _Span(tag >> 3, start, position)


def _varint(content: _Content, position: int, end: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(content.read(position, min(position + 10, end))):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise _NotWholeError


def _tensor(path: Path, value: Any) -> GraphTensor:
    datatype = _DATATYPES.get(value.type.tensor_type.elem_type)
    if datatype is None:
        raise ModelRepositoryError(path, f"{value.name!r} is no tensor of a type that Triton has")
    if not value.type.tensor_type.HasField("shape"):
        return GraphTensor(value.name, datatype, None)
    dims = value.type.tensor_type.shape.dim
    # A dimension is a number, a name, or nothing; some exporters write -1 or 0 for "any".
    shape = tuple(size.dim_value if size.HasField("dim_value") and size.dim_value > 0 else None for size in dims)
    return GraphTensor(value.name, datatype, shape)
