"""The record on the models topic, and the sample a version is judged by."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ModelRepositoryError
from pipeline.watcher.announcement import model_record
from pipeline.watcher.sample import read_sample
from schemas.registry import ModelRecord, ModelSignature, TensorSpec
from schemas.tensor import from_numpy

NOW = datetime(2026, 1, 2, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
SIGNATURE = ModelSignature(
    inputs=(TensorSpec(name="x", datatype="FP32", dims=(2,)),),
    outputs=(TensorSpec(name="y", datatype="FP32", dims=(2,)), TensorSpec(name="n", datatype="INT64", dims=(1,))),
    max_batch_size=8,
)


def announced(good: dict[str, str], selected: set[str], before: ModelRecord | None, now: datetime = NOW) -> ModelRecord:
    record = model_record("m", good, selected, SIGNATURE, before, now)
    assert record is not None
    return record


def test_first_announcement_counts_at_once() -> None:
    """A model nobody served before is answered from now on, by its highest version."""
    record = announced({"9": "a", "10": "b"}, {"9", "10"}, None)
    assert (record.default_version, record.previous_version, record.effective_at) == ("10", None, NOW)
    assert list(record.versions) == ["9", "10"]
    assert {version.state for version in record.versions.values()} == {"ready"}


def test_promotion_counts_two_seconds_later() -> None:
    """A higher version takes over with notice, and the one before it stays ready."""
    first = announced({"1": "a"}, {"1"}, None)
    second = announced({"1": "a", "2": "b"}, {"2"}, first, LATER)
    assert (second.default_version, second.previous_version) == ("2", "1")
    assert second.effective_at == LATER + timedelta(seconds=2)
    assert second.versions["1"].state == "ready"
    third = announced({"1": "a", "2": "b", "3": "c"}, {"3"}, second, LATER)
    assert (third.previous_version, third.versions["1"].state) == ("2", "draining")


def test_nothing_new_is_the_same_record() -> None:
    """A pass that finds what is announced has nothing to publish, whatever the time."""
    first = announced({"1": "a", "2": "b"}, {"1", "2"}, None)
    assert announced({"1": "a", "2": "b"}, {"1", "2"}, first, LATER) == first
    read = ModelRecord.model_validate_json(first.model_dump_json())
    assert announced({"1": "a", "2": "b"}, {"1", "2"}, read, LATER) == read


def test_new_content_keeps_the_default() -> None:
    """New content under the same number changes the fingerprint alone."""
    first = announced({"1": "a"}, {"1"}, None)
    second = announced({"1": "b"}, {"1"}, first, LATER)
    assert second.versions["1"].fingerprint == "b"
    assert (second.default_version, second.effective_at) == ("1", NOW)


def test_failed_choice_leaves_the_live_version() -> None:
    """When no version of the owner's choice is good, what answered goes on answering."""
    first = announced({"1": "a"}, {"1"}, None)
    second = announced({"1": "a"}, {"2"}, first, LATER)
    assert (second.default_version, second.effective_at, second.versions["1"].state) == ("1", NOW, "ready")
    assert model_record("m", {}, {"2"}, SIGNATURE, first, LATER) is None


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
