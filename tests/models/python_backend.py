"""A stand-in for `triton_python_backend_utils`, which exists only inside Triton.

It has what the models here use, with the signatures of Triton 2.51. It does not batch, prune outputs, or check
datatypes and shapes as the server does: those are tested on a real server.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from .folders import load_module

Array = npt.NDArray[Any]


class TritonModelException(Exception):  # noqa: N818 - Triton's name
    """A model that cannot be loaded."""


class TritonError:
    """The error of one response."""

    INTERNAL = 1
    INVALID_ARG = 3

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        """Takes the text and the code."""
        self.message = message
        self.code = code


class Tensor:
    """A named array on the CPU."""

    def __init__(self, name: str, array: Array) -> None:
        """Takes the name and the elements; BYTES are an object array."""
        self._name = name
        self._array = array

    def name(self) -> str:
        """Returns the tensor's name."""
        return self._name

    def as_numpy(self) -> Array:
        """Returns the elements."""
        return self._array

    def to_dlpack(self) -> Array:
        """Returns what `from_dlpack` takes; here the array itself."""
        return self._array

    @staticmethod
    def from_dlpack(name: str, elements: Array) -> "Tensor":
        """Returns a tensor of the elements of another."""
        return Tensor(name, elements)


@dataclass
class InferenceResponse:
    """The outputs of one request, or its error."""

    output_tensors: Sequence[Tensor] = ()
    error: TritonError | None = None


@dataclass
class InferenceRequest:
    """A request as a model sees it."""

    arrays: Mapping[str, Array]
    request_parameters: Mapping[str, object] = field(default_factory=dict)

    def inputs(self) -> list[Tensor]:
        """Returns the inputs in the order they were sent."""
        return [Tensor(name, array) for name, array in self.arrays.items()]

    def parameters(self) -> str:
        """Returns the parameters in JSON."""
        return json.dumps(self.request_parameters)


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    """Returns one input, or None."""
    return Tensor(name, request.arrays[name]) if name in request.arrays else None


class LoadedModel:
    """A Python model as Triton holds it: initialized, called with lists of requests."""

    def __init__(self, model: Any) -> None:
        """Takes an initialized TritonPythonModel."""
        self._model = model

    def execute(self, *inputs: Mapping[str, Array]) -> list[dict[str, Array] | TritonError]:
        """Runs requests, given by their inputs, as one batch; returns the outputs or the error of each."""
        return self.execute_requests(*(InferenceRequest(arrays) for arrays in inputs))

    def execute_requests(self, *requests: InferenceRequest) -> list[dict[str, Array] | TritonError]:
        """Runs requests as one batch; returns the outputs or the error of each."""
        responses = self._model.execute(list(requests))
        return [response.error or outputs_of(response) for response in responses]


def outputs_of(response: InferenceResponse) -> dict[str, Array]:
    """Returns the outputs of a response by name."""
    return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors}


def load_python_model(
    monkeypatch: pytest.MonkeyPatch, source: Path, config: Mapping[str, Any], version_folder: Path
) -> LoadedModel:
    """Loads a model's Python file as Triton does, on this stand-in.

    Args:
        monkeypatch: takes the stand-in and the import path back after the test.
        source: the file with TritonPythonModel: `model.py` of a version or of a Python-based backend.
        config: the model's configuration.
        version_folder: the version to load.

    Raises:
        TritonModelException: the model refuses to load.
    """
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stand_in())
    monkeypatch.syspath_prepend(version_folder)
    model = load_module(source).TritonPythonModel()
    arguments = {
        "model_config": json.dumps(config),
        "model_repository": str(version_folder.parent),
        "model_version": version_folder.name,
    }
    if hasattr(model, "initialize"):  # a model need not have it
        model.initialize(arguments)
    return LoadedModel(model)


def stand_in() -> ModuleType:
    """Returns the module that models import."""
    module = ModuleType("triton_python_backend_utils")
    for name in (TritonModelException, TritonError, Tensor, InferenceResponse, get_input_tensor_by_name):
        setattr(module, name.__name__, name)
    return module


def byte_strings(*rows: bytes) -> Array:
    """Returns a BYTES tensor of shape [rows, 1] as Triton hands it over."""
    return np.array(rows, np.object_).reshape(-1, 1)
