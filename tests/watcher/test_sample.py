"""The sample a version is judged by."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ModelRepositoryError
from pipeline.watcher.repository.sample import read_sample
from schemas.registry import ModelSignature, TensorSpec
from schemas.tensor import from_numpy

SIGNATURE = ModelSignature(
    inputs=(TensorSpec(name="x", datatype="FP32", dims=(2,)),),
    outputs=(TensorSpec(name="y", datatype="FP32", dims=(2,)), TensorSpec(name="n", datatype="INT64", dims=(1,))),
    max_batch_size=8,
)


def sample_file(folder: Path, **changes: Any) -> Path:
    record: dict[str, Any] = {
        "model_name": "m",
        "model_version": "2",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}],
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [3, 4], "parameters": {"tolerance": 0.5}},
            {"name": "n", "datatype": "INT64", "shape": [1, 1], "data": [7]},
        ],
    }
    path = folder / "sample.json"
    path.write_text(json.dumps({**record, **changes}), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("version", "y", "n", "words"),
    [
        ("2", [3.5, 4.0], 7, None),
        ("2", [3.6, 4.0], 7, "differs by 0.6"),
        ("2", [float("nan"), 4.0], 7, "differs"),
        ("2", [3.0, 4.0], 8, "differs by 1"),
        ("1", [30.0, 40.0], 8, None),
        ("1", [1.0, 2.0, 3.0], 7, "declared is"),
    ],
)
def test_sample_is_compared_within_its_tolerance(
    tmp_path: Path, version: str, y: list[float], n: int, words: str | None
) -> None:
    """The version a sample names must give its answer; others must give one of the same form."""
    sample = read_sample(sample_file(tmp_path), "m")
    outputs = [from_numpy("y", np.array([y], np.float32)), from_numpy("n", np.array([[n]], np.int64))]
    found = sample.differences(version, SIGNATURE, outputs)
    assert (words in found[0]) if words else not found


def test_missing_output_is_a_difference(tmp_path: Path) -> None:
    """A version that leaves an expected output out is not good."""
    sample = read_sample(sample_file(tmp_path), "m")
    assert "is missing" in sample.differences("1", SIGNATURE, [from_numpy("y", np.zeros((1, 2), np.float32))])[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_name": "other"}, "a sample of 'other'"),
        ({"inputs": []}, "inputs"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1]}]}, "1 elements"),
    ],
)
def test_wrong_sample_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    """A sample that is no request of this model is told as a fault of the repository."""
    with pytest.raises(ModelRepositoryError, match=words):
        read_sample(sample_file(tmp_path, **changes), "m")
