"""Model folders for the tests: small, whole, and easy to break."""

import json
from pathlib import Path

import onnx
from onnx import TensorProto, helper

PYTHON_CONFIG = """name: "{name}"
backend: "python"
max_batch_size: 8
input [ {{ name: "x" data_type: TYPE_FP32 dims: [ 2 ] }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: [ 2 ] }} ]
"""


def python_model(repository: Path, name: str = "m", versions: tuple[str, ...] = ("1",), extra: str = "") -> Path:
    """A model of the python backend; returns its folder."""
    folder = repository / name
    folder.mkdir(parents=True)
    (folder / "config.pbtxt").write_text(PYTHON_CONFIG.format(name=name) + extra, encoding="utf-8")
    for version in versions:
        (folder / version).mkdir()
        (folder / version / "model.py").write_text(f"VERSION = {version}\n", encoding="utf-8")
    return folder


def write_sample(folder: Path) -> Path:
    """A sample request for a model of this module, without an answer; returns its file."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
    path = folder / "sample.json"
    path.write_text(json.dumps({"model_name": folder.name, "inputs": [tensor]}), encoding="utf-8")
    return path


def onnx_bytes(
    first: str | int | None = "batch",
    *,
    rank_one_output: bool = False,
    factor: float = 1.0,
) -> bytes:
    """The model y = x * factor, FP32; `first` is the first dimension of x and y."""
    nodes = [helper.make_node("Mul", ["x", "factor"], ["y"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [first, 2])]
    if rank_one_output:
        nodes.append(helper.make_node("ArgMax", ["x"], ["label"], axis=1, keepdims=0))
        outputs.append(helper.make_tensor_value_info("label", TensorProto.INT64, [first]))
    stored = helper.make_tensor("factor", TensorProto.FLOAT, [], [factor])
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [first, 2]),
        # Old exporters list stored values among the inputs; nobody sends them.
        helper.make_tensor_value_info("factor", TensorProto.FLOAT, []),
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [stored])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def onnx_model(repository: Path, name: str = "m", config: str | None = None, content: bytes | None = None) -> Path:
    """A model of the onnxruntime backend with one version, without a configuration by default."""
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_bytes(onnx_bytes() if content is None else content)
    if config is not None:
        (folder / "config.pbtxt").write_text(config, encoding="utf-8")
    return folder


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below a folder with its content and its time of change."""
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
