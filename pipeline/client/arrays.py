"""Answers as numpy arrays."""

from typing import Any

import numpy.typing as npt

from schemas.result import InferenceResult
from schemas.tensor import to_numpy


def outputs_as_numpy(result: InferenceResult) -> dict[str, npt.NDArray[Any]]:
    """An answer's outputs by name; BYTES as objects, BF16 widened to FP32 (numpy has no bfloat16)."""
    tensors = (output.to_tensor() for output in result.outputs or ())
    return {tensor.name: to_numpy(tensor) for tensor in tensors}
