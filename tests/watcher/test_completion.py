"""A configuration completed from an ONNX file."""

from pathlib import Path

import pytest

from pipeline.core.model_config import config_text, findings, parse_config, signature
from pipeline.errors import ModelRepositoryError
from pipeline.watcher.completion import Graph, GraphTensor, completed, graph_findings
from pipeline.watcher.onnx_graph import read_graph
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
    config = completed(parse_config("max_batch_size: 8 " + text), "m", GRAPH)
    assert [reason for reason in graph_findings(config, GRAPH) if words in reason]


def test_batch_size_without_a_batch_axis_is_found() -> None:
    """max_batch_size above 0 needs an open first dimension everywhere."""
    graph = Graph((GraphTensor("x", "FP32", (4, 2)),), GRAPH.outputs)
    assert graph_findings(completed(parse_config("max_batch_size: 8"), "m", graph), graph)
