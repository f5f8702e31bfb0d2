"""A model's `sample.json`: a request record whose outputs carry the answer it should have.

    {"model_name": "digits", "model_version": "2", "inputs": [...],
     "outputs": [{"name": "label", "datatype": "INT64", "shape": [1, 1], "data": [2]},
                 {"name": "probabilities", ..., "parameters": {"tolerance": 0.0001}, "data": [...]}]}

The data is compared for the version the sample names, within `tolerance` (the largest difference of one number;
absent: 1e-4 for floats, which other CPUs round differently, 0 for the rest). Of other versions the outputs' names,
datatypes and shapes are compared.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import ModelRepositoryError
from schemas.errors import WireError
from schemas.registry import ModelSignature
from schemas.request import InputTensor, Parameters
from schemas.tensor import Tensor, to_numpy

FLOAT_TOLERANCE = 1e-4
_FLOATS = frozenset({"FP16", "BF16", "FP32", "FP64"})


class SampleRequest(BaseModel):
    """What `sample.json` holds; members of a request that do not matter here are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model_name: str
    model_version: str | None = None
    parameters: Parameters = Field(default_factory=dict)
    inputs: Annotated[list[InputTensor], Field(min_length=1)]
    outputs: list[InputTensor] = Field(default_factory=list)


class Sample:
    """A sample request, ready to be sent and to be compared with what comes back."""

    def __init__(self, request: SampleRequest) -> None:
        self.version = request.model_version
        self.parameters = request.parameters
        self.inputs: Sequence[Tensor] = tuple(tensor.to_tensor() for tensor in request.inputs)
        self._expected: Mapping[str, Tensor] = {tensor.name: tensor.to_tensor() for tensor in request.outputs}
        self._tolerances = {tensor.name: tensor.parameters.get("tolerance") for tensor in request.outputs}

    def differences(self, version: str, signature: ModelSignature, outputs: Sequence[Tensor]) -> list[str]:
        """Where an answer of `version` is not the one expected; empty when it is."""
        found = list(_against_signature(signature, outputs))
        if found:
            return found
        by_name = {tensor.name: tensor for tensor in outputs}
        for name, expected in self._expected.items():
            tensor = by_name.get(name)
            if tensor is None:
                found.append(f"output {name!r} is missing")
            elif (tensor.datatype, tensor.shape) != (expected.datatype, expected.shape):
                found.append(f"output {name!r} is {_kind(tensor)}, the sample expects {_kind(expected)}")
            elif version == self.version and (difference := self._difference(expected, tensor)):
                found.append(f"output {name!r}: {difference}")
        return found

    def _difference(self, expected: Tensor, tensor: Tensor) -> str | None:
        if expected.datatype == "BYTES" or expected.datatype == "BOOL":
            return None if expected.raw == tensor.raw else "differs from the sample's answer"
        stated = self._tolerances[expected.name]
        default = FLOAT_TOLERANCE if expected.datatype in _FLOATS else 0.0
        tolerance = float(stated) if isinstance(stated, int | float) else default
        apart = np.abs(to_numpy(expected).astype(np.float64) - to_numpy(tensor).astype(np.float64))
        # `not <=` and never `>`: a NaN is no answer.
        if not bool(np.all(apart <= tolerance)):
            return f"differs by {np.max(apart):.3g} from the sample's answer, {tolerance:g} is allowed"
        return None


def read_sample(path: Path, model_name: str) -> Sample:
    """Reads a `sample.json`.

    Raises:
        ModelRepositoryError: it is no sample of this model.
        OSError: it cannot be read.
    """
    try:
        request = SampleRequest.model_validate_json(path.read_bytes())
        sample = Sample(request)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ModelRepositoryError(path, f"{place}: {first['msg']}" if place else first["msg"]) from None
    except WireError as error:
        raise ModelRepositoryError(path, error.message) from None
    if request.model_name != model_name:
        raise ModelRepositoryError(path, f"is a sample of {request.model_name!r}, the folder is {model_name!r}")
    return sample


def _against_signature(signature: ModelSignature, outputs: Sequence[Tensor]) -> Iterator[str]:
    specs = {spec.name: spec for spec in signature.outputs}
    for tensor in outputs:
        spec = specs.get(tensor.name)
        if spec is None:
            yield f"output {tensor.name!r} is not declared"
            continue
        dims = (-1, *spec.dims) if signature.max_batch_size else spec.dims
        fits = len(dims) == len(tensor.shape) and all(
            dim in (-1, size) for dim, size in zip(dims, tensor.shape, strict=True)
        )
        if tensor.datatype != spec.datatype or not fits:
            yield f"output {tensor.name!r} is {_kind(tensor)}, declared is {spec.datatype} {list(dims)}"


def _kind(tensor: Tensor) -> str:
    return f"{tensor.datatype} {list(tensor.shape)}"
