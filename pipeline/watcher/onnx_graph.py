"""What an ONNX file declares: its inputs and outputs, without the `onnx` package.

The watcher runs where that package is not installed, and needs 30 of its 400 fields. Fields that are not described
here (the weights among them) are skipped by protobuf.

Source: onnx/onnx.proto, ModelProto and what hangs on it; the numbers are part of the file format.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from pipeline.errors import ModelRepositoryError
from pipeline.watcher.completion import Graph, GraphTensor

_DATATYPES = {
    1: "FP32", 2: "UINT8", 3: "INT8", 4: "UINT16", 5: "INT16", 6: "INT32", 7: "INT64", 8: "BYTES", 9: "BOOL",
    10: "FP16", 11: "FP64", 12: "UINT32", 13: "UINT64", 16: "BF16",
}  # fmt: skip

# message -> (field, number, type): a lower-case type is a scalar, `*` repeats.
_FIELDS: dict[str, tuple[tuple[str, int, str], ...]] = {
    "Model": (("ir_version", 1, "int64"), ("graph", 7, "GraphBody")),
    "GraphBody": (
        ("initializer", 5, "*Initializer"),
        ("input", 11, "*Value"),
        ("output", 12, "*Value"),
        ("sparse_initializer", 15, "*SparseInitializer"),
    ),
    "Initializer": (("name", 8, "string"),),
    "SparseInitializer": (("values", 1, "Initializer"),),
    "Value": (("name", 1, "string"), ("type", 2, "Type")),
    "Type": (("tensor_type", 1, "TensorType"),),
    "TensorType": (("elem_type", 1, "int32"), ("shape", 2, "Shape")),
    "Shape": (("dim", 1, "*Dimension"),),
    "Dimension": (("dim_value", 1, "int64"),),
}


@lru_cache(maxsize=1)
def _model_class() -> Any:
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
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("pipeline_onnx.Model"))


def read_graph(path: Path) -> Graph:
    """The inputs and outputs of an ONNX file; inputs with a stored default value are not asked of clients.

    Raises:
        ModelRepositoryError: no whole ONNX file, or a type the protocol does not have.
        OSError: the file cannot be read.
    """
    model = _model_class()()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError:
        raise ModelRepositoryError(path, "this is no whole ONNX file (half copied?)") from None
    if not model.HasField("graph") or not model.graph.output:
        raise ModelRepositoryError(path, "this ONNX file has no graph with an output")
    stored = {entry.name for entry in model.graph.initializer}
    stored |= {entry.values.name for entry in model.graph.sparse_initializer}
    return Graph(
        inputs=tuple(_tensor(path, value) for value in model.graph.input if value.name not in stored),
        outputs=tuple(_tensor(path, value) for value in model.graph.output),
    )


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
