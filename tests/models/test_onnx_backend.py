"""The local onnxruntime backend, on a stand-in for Triton: what runs together, what comes back, what fails alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from .folders import DIGITS, ONNX_BACKEND, read_config
from .python_backend import (
    LoadedModel,
    TritonError,
    TritonModelException,
    byte_strings,
    load_python_model,
)

Array = npt.NDArray[Any]
Shape = Sequence[int | str]

ELEMENTS: dict[str, tuple[int, npt.DTypeLike]] = {
    "TYPE_BOOL": (TensorProto.BOOL, np.bool_),
    "TYPE_UINT8": (TensorProto.UINT8, np.uint8),
    "TYPE_UINT16": (TensorProto.UINT16, np.uint16),
    "TYPE_UINT32": (TensorProto.UINT32, np.uint32),
    "TYPE_UINT64": (TensorProto.UINT64, np.uint64),
    "TYPE_INT8": (TensorProto.INT8, np.int8),
    "TYPE_INT16": (TensorProto.INT16, np.int16),
    "TYPE_INT32": (TensorProto.INT32, np.int32),
    "TYPE_INT64": (TensorProto.INT64, np.int64),
    "TYPE_FP16": (TensorProto.FLOAT16, np.float16),
    "TYPE_FP32": (TensorProto.FLOAT, np.float32),
    "TYPE_FP64": (TensorProto.DOUBLE, np.float64),
    "TYPE_STRING": (TensorProto.STRING, np.object_),
}
"""The data types that Triton and ONNX share: the ONNX type and the numpy type of each."""


class Models:
    """Writes one-operator models into a folder and loads them on the backend."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        """Takes the folder of the one model."""
        self._monkeypatch = monkeypatch
        self._version_folder = folder / "1"
        self._version_folder.mkdir()

    def write(
        self,
        node: onnx.NodeProto,
        data_type: str = "TYPE_FP32",
        x: Shape = ("batch", "size"),
        y: Shape = ("batch", "size"),
        constants: Sequence[onnx.TensorProto] = (),
    ) -> None:
        """Writes the graph of `node`, from x to y, of one data type."""
        element = ELEMENTS[data_type][0]
        inputs = [helper.make_tensor_value_info("x", element, x)]
        outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT if constants else element, y)]
        graph = helper.make_graph([node], "test", inputs, outputs, list(constants))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, self._version_folder / "model.onnx")

    def load(self, **config: Any) -> LoadedModel:
        """Loads what was written, with `config` over a configuration of FP32 [size] in batches of 8."""
        complete = {
            "max_batch_size": 8,
            "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": ["-1"]}],
            "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": ["-1"]}],
            **config,
        }
        return load_python_model(self._monkeypatch, ONNX_BACKEND, complete, self._version_folder)


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Models:
    """Returns a writer of models."""
    return Models(monkeypatch, tmp_path)


IDENTITY = helper.make_node("Identity", ["x"], ["y"])

TOTAL = helper.make_node("ReduceSum", ["x"], ["y"], keepdims=1)
"""Adds up all rows of a batch: one row comes out, whatever goes in."""

LOOK_UP = helper.make_node("Gather", ["table", "x"], ["y"])
TABLE = numpy_helper.from_array(np.arange(10, dtype=np.float32), "table")


def rows_of(answer: dict[str, Array] | TritonError) -> list[Any]:
    """Returns output y of a request that succeeded."""
    assert isinstance(answer, dict), answer.message
    rows: list[Any] = answer["y"].tolist()
    return rows


@pytest.mark.parametrize("version", ["1", "2"])
def test_shipped_folder_is_served(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """The digits folder loads as it is, and requests in a batch get their own rows back."""
    model = load_python_model(monkeypatch, ONNX_BACKEND, read_config(DIGITS), DIGITS / version)
    images = np.random.default_rng(0).integers(0, 17, (3, 64)).astype(np.float32)
    first, second = model.execute({"image": images[:1]}, {"image": images[1:]})
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert first["label"].shape == (1, 1)
    assert second["probabilities"].shape == (2, 10)
    (together,) = model.execute({"image": images})
    assert isinstance(together, dict)
    np.testing.assert_array_equal(np.concatenate([first["label"], second["label"]]), together["label"])


@pytest.mark.parametrize("data_type", ELEMENTS)
def test_data_type_passes_through(models: Models, data_type: str) -> None:
    """Every data type that Triton and ONNX share goes in and comes out with its values."""
    models.write(IDENTITY, data_type)
    tensor = {"data_type": data_type, "dims": ["-1"]}
    model = models.load(input=[{"name": "x", **tensor}], output=[{"name": "y", **tensor}])
    if data_type == "TYPE_STRING":
        sent = np.array([["é".encode(), b"\0"], [b"", b"two"]], np.object_)
        expected = [["é", "\0"], ["", "two"]]
    else:
        sent = np.array([[0, 1], [1, 0]]).astype(ELEMENTS[data_type][1])
        expected = sent.tolist()
    (answer,) = model.execute({"x": sent})
    assert rows_of(answer) == expected
    assert isinstance(answer, dict)
    assert answer["y"].dtype == sent.dtype


def test_requests_of_different_shapes_share_a_call(models: Models) -> None:
    """Requests of other sizes behind the batch axis are answered in the same call, each in its own shape."""
    models.write(IDENTITY)
    shapes = [(1, 2), (2, 3), (3, 2)]
    answers = models.load().execute(*({"x": np.full(shape, shape[0], np.float32)} for shape in shapes))
    assert [np.shape(rows_of(answer)) for answer in answers] == shapes


def test_bad_request_of_eight_fails_alone(models: Models) -> None:
    """One request that the graph refuses gets INVALID_ARG; the seven batched with it get their answers."""
    models.write(LOOK_UP, "TYPE_INT64", ("batch", 1), ("batch", 1), [TABLE])
    model = models.load(
        input=[{"name": "x", "data_type": "TYPE_INT64", "dims": ["1"]}],
        output=[{"name": "y", "data_type": "TYPE_FP32", "dims": ["1"]}],
    )
    answers = model.execute(*({"x": np.array([[index]])} for index in (0, 1, 2, 99, 4, 5, 6, 7)))
    bad = answers.pop(3)
    assert isinstance(bad, TritonError)
    assert bad.code == TritonError.INVALID_ARG
    assert [rows_of(answer) for answer in answers] == [[[index]] for index in (0, 1, 2, 4, 5, 6, 7)]


def test_text_that_is_not_utf8_fails_alone(models: Models) -> None:
    """A string that onnxruntime cannot take is refused with the input's name; its neighbour is answered."""
    models.write(IDENTITY, "TYPE_STRING")
    tensor = {"data_type": "TYPE_STRING", "dims": ["-1"]}
    model = models.load(input=[{"name": "x", **tensor}], output=[{"name": "y", **tensor}])
    bad, good = model.execute({"x": byte_strings(b"\xff")}, {"x": byte_strings(b"text")})
    assert isinstance(bad, TritonError)
    assert bad.code == TritonError.INVALID_ARG
    assert bad.message.startswith("input 'x' is not UTF-8")
    assert rows_of(good) == [["text"]]


def test_graph_that_mixes_rows_runs_requests_alone(models: Models) -> None:
    """A graph whose output has no row for each input row never gives one request the sum of another's."""
    models.write(TOTAL, x=("batch", 2), y=("one", 1))
    model = models.load(output=[{"name": "y", "data_type": "TYPE_FP32", "dims": ["1"]}])
    alone, other, pair = model.execute(
        {"x": np.ones((1, 2), np.float32)}, {"x": np.zeros((1, 2), np.float32)}, {"x": np.ones((2, 2), np.float32)}
    )
    assert rows_of(alone) == [[2.0]]
    assert rows_of(other) == [[0.0]]
    assert isinstance(pair, TritonError)
    assert pair.code == TritonError.INTERNAL
    assert pair.message == "output 'y' has shape [1, 1] for a batch of 2"


def test_model_without_batch_axis_runs_one_by_one(models: Models) -> None:
    """With max_batch_size 0 the first axis is not a batch: requests of one shape are not joined along it."""
    models.write(TOTAL, x=("rows", "columns"), y=("one", 1))
    model = models.load(
        max_batch_size=0,
        input=[{"name": "x", "data_type": "TYPE_FP32", "dims": ["-1", "-1"]}],
        output=[{"name": "y", "data_type": "TYPE_FP32", "dims": ["1", "1"]}],
    )
    answers = model.execute({"x": np.ones((2, 2), np.float32)}, {"x": np.zeros((2, 2), np.float32)})
    assert [rows_of(answer) for answer in answers] == [[[4.0]], [[0.0]]]


@pytest.mark.parametrize(
    ("tensor", "complaint"),
    [
        ({"name": "z", "data_type": "TYPE_FP32", "dims": ["3"]}, "the graph has no input 'z'; it has x"),
        ({"name": "x", "data_type": "TYPE_INT64", "dims": ["3"]}, "TYPE_INT64"),
        ({"name": "x", "data_type": "TYPE_FP32", "dims": ["4"]}, r"\[-1, 4\] in config\.pbtxt"),
        ({"name": "x", "data_type": "TYPE_FP32", "dims": ["3", "1"]}, r"\[-1, 3, 1\] in config\.pbtxt"),
    ],
)
def test_config_unlike_graph_is_refused(models: Models, tensor: dict[str, Any], complaint: str) -> None:
    """A configuration that does not describe the graph fails the load, not the first request."""
    models.write(IDENTITY, x=("batch", 3), y=("batch", 3))
    with pytest.raises(TritonModelException, match=complaint):
        models.load(input=[tensor])


def test_input_missing_in_config_is_refused(models: Models) -> None:
    """A graph's input that the configuration forgets fails the load."""
    models.write(IDENTITY)
    with pytest.raises(TritonModelException, match=r"config\.pbtxt has no input x"):
        models.load(input=[])


def test_missing_file_fails_the_load(models: Models) -> None:
    """A version folder without its graph fails the load with the path that was looked for."""
    with pytest.raises(TritonModelException, match=r"failed to load .*1/model\.onnx"):
        models.load()


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"execution_mode": {"string_value": "7"}}, "parameter 'execution_mode' is 0 or 1, not '7'"),
        ({"intra_op_thread_count": {"string_value": "many"}}, "many"),
    ],
)
def test_meaningless_parameter_fails_the_load(models: Models, parameters: dict[str, Any], complaint: str) -> None:
    """A parameter value without a meaning fails the load and is named."""
    models.write(IDENTITY)
    with pytest.raises(TritonModelException, match=complaint):
        models.load(parameters=parameters)


def test_parameters_of_the_real_backend_are_accepted(models: Models) -> None:
    """The parameters that Triton's own onnxruntime backend documents load here too, as do unknown ones."""
    models.write(IDENTITY)
    values = {
        "intra_op_thread_count": "1",
        "inter_op_thread_count": "1",
        "execution_mode": "1",
        "enable_mem_arena": "0",
        "enable_mem_pattern": "true",
        "owner": "somebody",
    }
    model = models.load(
        parameters={name: {"string_value": value} for name, value in values.items()},
        optimization={"graph": {"level": -1}},
    )
    (answer,) = model.execute({"x": np.ones((1, 1), np.float32)})
    assert rows_of(answer) == [[1.0]]
