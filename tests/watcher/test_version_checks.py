"""A server's own view of a configuration against ours, and what its files speak for."""

import pytest

from pipeline.core.model_config import parse_config, without_batching
from pipeline.watcher.repository.version_checks import chosen_backend, config_differences, required_file

OURS = """name: "m" backend: "python" max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ] output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ] default_model_filename: "run.py"
parameters { key: "threads" value { string_value: "2" } } """


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("max_batch_size: 8", "max_batch_size: 4", "max_batch_size is 4 there, 8 here"),
        ('backend: "python"', 'backend: "onnxruntime"', "backend is 'onnxruntime'"),
        ('"run.py"', '"model.py"', "default_model_filename is 'model.py'"),
        ("TYPE_FP32", "TYPE_FP16", "input 'x' differs"),
        ('"y"', '"z"', "output 'y' differs"),
        ("dims: [ 2 ]", "dims: [ -1 ]", "input 'x' differs"),
        ("dims: [ 2 ]", "dims: [ 2 ] optional: true", "input 'x' differs"),
        ("dims: [ 2 ] } ] inst", "dims: [ 2 ] reshape { shape: [ 1, 2 ] } } ] inst", "output 'y' differs"),
        ('"2"', '"3"', "parameter threads is '3'"),
        ("parameters", "metric_tags", "parameter threads is None"),
        ("KIND_CPU", "KIND_GPU", "other devices"),
        ("name:", "model_transaction_policy { decoupled: true } name:", "decoupled differs"),
        ("name:", "response_cache { enable: true } name:", "response_cache is on"),
        ("name:", "sequence_batching { } name:", "sequence_batching differs"),
    ],
)
def test_difference_of_the_servers_view_is_told(old: str, new: str, words: str) -> None:
    """Whatever lets a server answer otherwise than the file says is found after the load."""
    text = OURS.replace("\n", " ")
    assert old in text
    changed = text.replace(old, new, 1)
    if new == "metric_tags":
        changed = text[: text.index("parameters")]
    found = config_differences(parse_config(text).config, parse_config(changed).config)
    assert [reason for reason in found if words in reason], found


def test_what_a_server_fills_in_is_no_difference() -> None:
    """Names of instances, file names and parameters that we left out are the server's to choose."""
    ours = parse_config(OURS.replace('default_model_filename: "run.py"', "")).config
    theirs = parse_config(
        OURS.replace("count: 1", 'count: 1 name: "m_0"')
        + "version_policy { latest { num_versions: 1 } } dynamic_batching { } optimization { }"
        + 'parameters { key: "TRITON_BATCH_STRATEGY_PATH" value { string_value: "x" } }'
    ).config
    assert config_differences(ours, theirs) == []
    anywhere = parse_config(OURS.replace("kind: KIND_CPU", "kind: KIND_AUTO")).config
    assert config_differences(anywhere, parse_config(OURS).config) == []


def test_server_that_joins_requests_all_the_same_is_told() -> None:
    """Where requests must not meet, a server that completes its configuration with a batcher is no server for it."""
    ours = without_batching(parse_config(OURS).config, ["1"])
    theirs = without_batching(parse_config(OURS).config, ["1"])
    assert config_differences(ours, theirs) == []
    theirs.dynamic_batching.SetInParent()
    assert "dynamic_batching is on there" in config_differences(ours, theirs)[0]


@pytest.mark.parametrize(
    ("text", "names", "backend", "file"),
    [
        ("", ["model.onnx"], "onnxruntime", "model.onnx"),
        ("", ["model.onnx/model.onnx", "model.onnx/weights"], "onnxruntime", "model.onnx"),
        ("", ["model.py", "weights.bin"], "python", "model.py"),
        ("", ["model.plan"], "tensorrt", "model.plan"),
        ("", ["model.py", "model.onnx"], "", "model.onnx"),
        ("", ["model.json"], "", "model.onnx"),
        ("", [], "", "model.onnx"),
        ('backend: "python"', ["model.onnx"], "python", "model.py"),
        ('platform: "tensorrt_plan"', [], "tensorrt", "model.plan"),
        ('backend: "mine"', ["model.onnx"], "mine", ""),
        ('backend: "python" default_model_filename: "run.py"', [], "python", "run.py"),
    ],
)
def test_files_speak_for_a_backend_where_the_owner_does_not(
    text: str, names: list[str], backend: str, file: str
) -> None:
    """The backend is the owner's, else the one whose file is there; of two, none is guessed."""
    config = parse_config(text).config
    assert chosen_backend(config, names) == backend
    assert required_file(config, names) == file
