"""Large tensors: a model that gives them back, and request records that carry them."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pipeline.bench.workload import NO_ID, with_fresh_id
from pipeline.client.records import RequestRecord, build_record
from pipeline.errors import SettingsError
from schemas.tensor import Tensor

MODEL = "blobs"
_INPUT, _OUTPUT = "blob", "same"


def write_model(folder: Path) -> None:
    """A model folder whose one version gives its input UINT8 [-1] back, a batch axis before it.

    Raises:
        SettingsError: the package that writes ONNX files is not installed.
    """
    try:
        from onnx import TensorProto, helper, save_model
    except ImportError as error:
        raise SettingsError("benchmarks of memory need the package onnx: run `make install`") from error
    shape = ["batch", "bytes"]
    graph = helper.make_graph(
        [helper.make_node("Identity", [_INPUT], [_OUTPUT])],
        MODEL,
        [helper.make_tensor_value_info(_INPUT, TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info(_OUTPUT, TensorProto.UINT8, shape)],
    )
    version = folder / "1"
    version.mkdir(parents=True)
    # The operator set and the file format of 2021, which every onnxruntime reads.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    save_model(model, str(version / "model.onnx"))


def blob_records(count: int, size: int, repeats: int = 1) -> Iterator[RequestRecord]:
    """Requests with one tensor each that no other has; inputs and outputs travel as raw bytes.

    Args:
        count: how many.
        size: of a tensor, in bytes.
        repeats: how often a tensor repeats its random beginning: about how small it can be compressed.
    """
    template = build_record(
        NO_ID, MODEL, [Tensor(_INPUT, "UINT8", (1, size), bytes(size))], now=datetime.now(UTC).timestamp(),
        parameters={"binary_data_output": True}, binary=True,
    )  # fmt: skip
    head = template._replace(value=template.value[: len(template.value) - size])
    for _ in range(count):
        tile = os.urandom(-(-size // repeats))
        record = with_fresh_id(head)
        # Ids as keys spread over the partitions; nobody asks for these tensors again, so there is no cache to meet.
        yield record._replace(key=record.id.encode(), value=record.value + (tile * repeats)[:size])
