"""The committed digits models: how good they are, and that they are what config.pbtxt says."""

from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from .folders import DIGITS, load_module, read_config, read_sample

VERSIONS = ["1", "2"]


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """Returns the script that made the models."""
    return load_module(DIGITS / "build.py")


def open_version(version: str) -> onnxruntime.InferenceSession:
    """Opens a committed file with nothing but onnxruntime."""
    return onnxruntime.InferenceSession(str(DIGITS / version / "model.onnx"), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(("version", "accuracy"), [("1", 0.944), ("2", 0.976)])
def test_each_version_keeps_its_accuracy(build: ModuleType, version: str, accuracy: float) -> None:
    """A committed version labels as many of the 540 test rows correctly as the model card says."""
    split = build.load_split()
    (labels,) = open_version(version).run(["label"], {"image": split.test_images})
    assert len(split.test_labels) == 540
    assert np.mean(labels[:, 0] == split.test_labels) == pytest.approx(accuracy, abs=0.001)


@pytest.mark.parametrize("version", VERSIONS)
def test_graph_matches_config(version: str) -> None:
    """A committed graph has exactly the inputs and outputs of config.pbtxt, behind a batch axis."""
    types = {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64"}

    def of_graph(arguments: list[Any]) -> dict[str, object]:
        return {argument.name: (types[argument.type], ["batch", *argument.shape[1:]]) for argument in arguments}

    def of_config(entries: list[Any]) -> dict[str, object]:
        return {entry["name"]: (entry["data_type"], ["batch", *map(int, entry["dims"])]) for entry in entries}

    session, config = open_version(version), read_config(DIGITS)
    assert of_graph(session.get_inputs()) == of_config(config["input"])
    assert of_graph(session.get_outputs()) == of_config(config["output"])


@pytest.mark.parametrize("version", VERSIONS)
def test_graph_loads_on_older_runtimes(version: str) -> None:
    """A committed graph uses only standard operators of opset 17 in IR 8, which current Triton images can read."""
    model = onnx.load(DIGITS / version / "model.onnx")
    assert model.ir_version == 8
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]


def test_config_serves_both_versions() -> None:
    """The version policy keeps every committed version loaded, so that there is one to roll back to."""
    folders = sorted(folder.name for folder in DIGITS.iterdir() if folder.name.isdigit())
    assert folders == VERSIONS
    assert read_config(DIGITS)["version_policy"] == {"latest": {"num_versions": len(folders)}}


def test_sample_gets_its_expected_answer() -> None:
    """The version that sample.json names answers its input with its outputs, within their tolerances."""
    sample = read_sample(DIGITS)
    (image,) = sample["inputs"]
    feed = {image["name"]: np.array(image["data"], np.float32).reshape(image["shape"])}
    names = [output["name"] for output in sample["outputs"]]
    for output, actual in zip(sample["outputs"], open_version(sample["model_version"]).run(names, feed), strict=True):
        tolerance = output.get("parameters", {}).get("tolerance", 0)
        assert list(actual.shape) == output["shape"]
        np.testing.assert_allclose(actual.reshape(-1), output["data"], rtol=0, atol=tolerance)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("batch", [2, 8, 64])
def test_answer_ignores_batch_neighbours(build: ModuleType, version: str, batch: int) -> None:
    """A row has the same bits alone and in a batch, so batching on the client and in Triton is safe."""
    images = build.load_split().test_images[:batch]
    session = open_version(version)
    (together,) = session.run(["probabilities"], {"image": images})
    alone = [session.run(["probabilities"], {"image": image[None]})[0][0] for image in images]
    np.testing.assert_array_equal(together, alone)


def test_training_writes_the_same_classifier(build: ModuleType) -> None:
    """Training again gives the committed version 1 back, up to the order in which a CPU sums."""
    graph = build.classifier_graph(build.train_logistic_regression(build.load_split()), "digits-1")
    committed = onnx.load(DIGITS / "1" / "model.onnx")
    assert [node.op_type for node in graph.graph.node] == [node.op_type for node in committed.graph.node]
    for trained, kept in zip(graph.graph.initializer, committed.graph.initializer, strict=True):
        np.testing.assert_allclose(onnx.numpy_helper.to_array(trained), onnx.numpy_helper.to_array(kept), atol=1e-3)
