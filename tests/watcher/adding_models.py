"""Models of the python backend that add a number: what answered is seen in the answer."""

import json
from pathlib import Path

from tests.watcher.folders import python_model

ADDS = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x + {})]) for x in inputs]
"""
SLOW = ADDS.replace("        inputs =", "        __import__('time').sleep(0.2)\n        inputs =")
FAILS = "class TritonPythonModel:\n    def initialize(self, args):\n        raise RuntimeError('no weights')\n"


def adding_model(repository: Path, name: str, amounts: dict[str, int]) -> Path:
    """Version -> what it adds to x; the sample expects the highest's answer."""
    folder = python_model(repository, name, tuple(amounts), "version_policy { latest { num_versions: 2 } }")
    for version, amount in amounts.items():
        (folder / version / "model.py").write_text(ADDS.format(amount), encoding="utf-8")
    highest = max(amounts, key=int)
    write_sample(folder, highest, [1.0 + amounts[highest], 2.0 + amounts[highest]])
    return folder


def write_sample(folder: Path, version: str, expected: list[float]) -> None:
    sample = {
        "model_name": folder.name,
        "model_version": version,
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": expected}],
    }
    (folder / "sample.json").write_text(json.dumps(sample), encoding="utf-8")
