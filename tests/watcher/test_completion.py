"""A configuration completed from an ONNX file."""

import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from pipeline.core.model_config import config_text, findings, parse_config, signature
from pipeline.errors import ModelRepositoryError
from pipeline.watcher.repository.completion import Graph, GraphTensor, completed, graph_findings
from pipeline.watcher.repository.onnx_graph import read_graph
from tests.watcher.folders import onnx_bytes

GRAPH = Graph((GraphTensor("x", "FP32", (None, 2)),), (GraphTensor("y", "INT64", (None, 3, None)),))


def graph_of(tmp_path: Path, content: bytes) -> Graph:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    return read_graph(path)


def test_graph_is_read_without_stored_inputs(tmp_path: Path) -> None:
    """Inputs, outputs, datatypes and open dimensions come from the file; stored values are no inputs."""
    graph = graph_of(tmp_path, onnx_bytes(rank_one_output=True))
    assert graph.inputs == (GraphTensor("x", "FP32", (None, 2)),)
    assert graph.outputs == (GraphTensor("y", "FP32", (None, 2)), GraphTensor("label", "INT64", (None,)))


@pytest.mark.parametrize("cut", [1, 40, 100])
def test_truncated_file_is_refused(tmp_path: Path, cut: int) -> None:
    """A half-copied file is no model."""
    with pytest.raises(ModelRepositoryError, match="ONNX file"):
        graph_of(tmp_path, onnx_bytes()[:-cut])


def test_configuration_is_generated_from_the_graph() -> None:
    """Without a config.pbtxt everything Triton wants is written, with a batch axis of 64."""
    config = completed(None, "m", GRAPH)
    assert findings(config, "m") == []
    assert graph_findings(config, GRAPH) == []
    assert config_text(config) == config_text(completed(None, "m", GRAPH))
    read = signature(config)
    assert (read.max_batch_size, read.inputs[0].dims, read.outputs[0].dims) == (64, (2,), (3, -1))
    assert config.backend == "onnxruntime"
    assert [(group.count, group.kind) for group in config.instance_group] == [(1, 2)]
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds == 0


def test_output_without_dims_becomes_one_element(tmp_path: Path) -> None:
    """Triton has no scalars: [batch] is shown as [batch, 1] and reshaped."""
    config = completed(None, "m", graph_of(tmp_path, onnx_bytes(rank_one_output=True)))
    assert findings(config, "m") == []
    assert list(config.output[1].dims) == [1]
    assert config.output[1].HasField("reshape")


def test_fixed_first_dimension_is_no_batch_axis(tmp_path: Path) -> None:
    """Where one first dimension is fixed the model has no batch axis, and its dims are whole."""
    config = completed(None, "m", graph_of(tmp_path, onnx_bytes(4)))
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [4, 2]
    assert not config.HasField("dynamic_batching")


def test_what_is_written_stays() -> None:
    """The owner's words win, also a batch size of 0, which proto3 cannot tell from silence."""
    stated = completed(parse_config("max_batch_size: 0"), "m", GRAPH)
    assert (stated.max_batch_size, list(stated.input[0].dims)) == (0, [-1, 2])
    silent = completed(parse_config("# max_batch_size: 0"), "m", GRAPH)
    assert (silent.max_batch_size, list(silent.input[0].dims)) == (64, [2])
    small = completed(parse_config("max_batch_size: 4 instance_group { count: 3 kind: KIND_GPU }"), "m", GRAPH)
    assert (small.max_batch_size, small.instance_group[0].count) == (4, 3)
    assert not small.HasField("dynamic_batching")


def test_dims_of_full_rank_mean_no_batch_axis() -> None:
    """An owner who wrote the open dimension himself wants no batch axis beside it."""
    config = completed(parse_config('input { name: "x" data_type: TYPE_FP32 dims: [ -1, 2 ] }'), "m", GRAPH)
    assert config.max_batch_size == 0
    assert graph_findings(config, GRAPH) == []


def test_instance_count_is_always_written() -> None:
    """KIND_CPU without a count starts two instances in Triton; here it is one."""
    config = completed(parse_config('backend: "python" instance_group { kind: KIND_CPU }'), "m")
    assert [group.count for group in config.instance_group] == [1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('input { name: "z" data_type: TYPE_FP32 dims: [ 2 ] }', "is not in the graph"),
        ('input { name: "x" data_type: TYPE_INT64 dims: [ 2 ] }', "the graph says FP32"),
        ('input { name: "x" data_type: TYPE_FP32 dims: [ 3 ] }', "the graph says [2]"),
        ('output { name: "y" dims: [ 3 ] }', "the graph says [3, 'any']"),
    ],
)
def test_contradiction_to_the_graph_is_found(text: str, words: str) -> None:
    """A configuration that its own model file contradicts never reaches a server."""
    source = parse_config("max_batch_size: 8\n" + text)
    config = completed(source, "m", GRAPH)
    (found,) = [each for each in graph_findings(config, GRAPH, source.lines) if words in each.reason]
    assert found.line == 2


def test_batch_size_without_a_batch_axis_is_found() -> None:
    """max_batch_size above 0 needs an open first dimension everywhere."""
    graph = Graph((GraphTensor("x", "FP32", (4, 2)),), GRAPH.outputs)
    source = parse_config("\nmax_batch_size: 8")
    (found,) = graph_findings(completed(source, "m", graph), graph, source.lines)
    assert (found.line, "open dimension" in found.reason) == (2, True)


@pytest.mark.parametrize("rank_one_output", [False, True])
def test_file_cut_anywhere_is_no_model(tmp_path: Path, rank_one_output: bool) -> None:
    """However much of a file has arrived, it is a model only when all of it is there."""
    whole = onnx_bytes(rank_one_output=rank_one_output)
    path = tmp_path / "model.onnx"
    for end in range(0, len(whole) - 20, 3):
        path.write_bytes(whole[:end])
        with pytest.raises(ModelRepositoryError):
            read_graph(path)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=64), st.integers(0, 400))
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, noise: bytes, place: int) -> None:
    """No content makes the reader fail in another way than with the fault that names the file."""
    whole = onnx_bytes(rank_one_output=True)
    path = tmp_path_factory.getbasetemp() / "noise.onnx"
    path.write_bytes(whole[:place] + noise + whole[place + len(noise) :])
    with suppress(ModelRepositoryError):
        read_graph(path)


def test_weights_are_stepped_over(tmp_path: Path) -> None:
    """A gigabyte of weights is not read to learn what a model takes; more than protobuf holds is refused."""
    weights = b"\x42\x01w\x4a" + _varint(1 << 30)  # TensorProto: name "w", then raw_data of 1 GiB
    body = b"\x2a" + _varint(len(weights) + (1 << 30)) + weights
    path = tmp_path / "model.onnx"
    values = _graph_fields(onnx_bytes())
    with path.open("wb") as file:
        file.write(b"\x3a" + _varint(len(values) + len(body) + (1 << 30)) + values + body)
        file.truncate(file.tell() + (1 << 30))
    tracemalloc.start()
    try:
        graph = read_graph(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [tensor.name for tensor in graph.inputs] == ["x"]
    assert peak < 1 << 20
    with path.open("r+b") as file:
        file.truncate(1 << 31)
    with pytest.raises(ModelRepositoryError, match="ends at 2147483647"):
        read_graph(path)


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _graph_fields(content: bytes) -> bytes:
    model = onnx.load_from_string(content)
    return bytes(model.graph.SerializeToString())


sizes = st.lists(st.one_of(st.integers(1, 99), st.just("n")), min_size=1, max_size=4)
declared = st.tuples(st.sampled_from([1, 6, 7, 8, 9, 10, 11, 16]), sizes)


@given(st.lists(declared, min_size=1, max_size=4), st.lists(declared, min_size=1, max_size=4))
def test_generated_configuration_is_deterministic(
    tmp_path_factory: pytest.TempPathFactory, inputs: list[Any], outputs: list[Any]
) -> None:
    """The same file gives the same bytes, which read back are the same configuration, in accord with the file."""
    path = tmp_path_factory.getbasetemp() / "model.onnx"
    values = [
        [helper.make_tensor_value_info(f"{side}{index}", kind, shape) for index, (kind, shape) in enumerate(each)]
        for side, each in (("i", inputs), ("o", outputs))
    ]
    graph = helper.make_graph([], "g", values[0], values[1])
    path.write_bytes(helper.make_model(graph).SerializeToString())
    read = read_graph(path)
    config = completed(None, "m", read)
    text = config_text(config)
    assert config_text(completed(None, "m", read_graph(path))) == text
    again = parse_config(text)
    assert again.config == config
    assert config_text(completed(again, "m", read)) == text
    assert graph_findings(config, read, again.lines) == []
    assert findings(config, "m", again.lines) == []


def test_least_declaration_of_a_python_model() -> None:
    """Inputs and outputs are all that the owner of a Python model must write."""
    text = 'input { name: "x" data_type: TYPE_STRING dims: 1 } output { name: "y" data_type: TYPE_FP32 dims: [ 4 ] } '
    config = completed(parse_config(text), "m", None, "python")
    assert findings(config, "m") == []
    assert (config.name, config.backend, config.max_batch_size, config.instance_group[0].count) == ("m", "python", 0, 1)
