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

from pipeline.core.text_lines import json_line
from pipeline.errors import ModelRepositoryError
from pipeline.watcher.repository.manifest import invalid_json_line
from schemas.errors import WireError
from schemas.registry import ModelSignature, TensorSpec
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


class SampleError(ModelRepositoryError):
    """A `sample.json` that is no sample of its model.

    Args:
        path: the file.
        line: where in it, from 1; None where no place is at fault.
        reason: what is wrong and what was expected.
    """

    def __init__(self, path: Path, line: int | None, reason: str) -> None:
        super().__init__(f"{path}:{line}" if line else path, reason)
        self.line = line


class Sample:
    """A sample request, ready to be sent and to be compared with what comes back.

    Args:
        request: what the file holds.
        text: the file, for the lines of what is wrong.

    Raises:
        WireError: data that is no tensor.
    """

    def __init__(self, request: SampleRequest, text: str = "") -> None:
        self._text = text
        self.version = request.model_version
        self.parameters = request.parameters
        self.inputs: Sequence[Tensor] = tuple(tensor.to_tensor() for tensor in request.inputs)
        self._expected: Mapping[str, Tensor] = {tensor.name: tensor.to_tensor() for tensor in request.outputs}
        self._tolerances = {tensor.name: tensor.parameters.get("tolerance") for tensor in request.outputs}

    def contradictions(self, signature: ModelSignature) -> Iterator[tuple[int | None, str]]:
        """Where a request like this is not what a model takes: lines of the file, and what was expected."""
        for kind, tensors, specs in (
            ("inputs", self.inputs, signature.inputs),
            ("outputs", list(self._expected.values()), signature.outputs),
        ):
            by_name = {spec.name: spec for spec in specs}
            for index, tensor in enumerate(tensors):
                for member, reason in _contradictions(tensor, by_name, signature.max_batch_size):
                    yield json_line(self._text, (kind, index, member)), f"{kind[:-1]} {tensor.name!r} {reason}"
        given = {tensor.name for tensor in self.inputs}
        if missing := [spec.name for spec in signature.inputs if not spec.optional and spec.name not in given]:
            yield json_line(self._text, ("inputs",)), f"input {missing[0]!r} is missing"

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
        SampleError: it is no sample of this model.
        OSError: it cannot be read.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        request = SampleRequest.model_validate_json(text)
        sample = Sample(request, text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        line = invalid_json_line(text) or json_line(text, first["loc"])
        raise SampleError(path, line, f"{place}: {first['msg']}" if place else first["msg"]) from None
    except WireError as error:
        raise SampleError(path, _line_of_wrong_data(request, text), error.message) from None
    if request.model_name != model_name:
        reason = f"is a sample of {request.model_name!r}, the folder is {model_name!r}"
        raise SampleError(path, json_line(text, ("model_name",)), reason)
    return sample


def _line_of_wrong_data(request: SampleRequest, text: str) -> int | None:
    for kind, tensors in (("inputs", request.inputs), ("outputs", request.outputs)):
        for index, tensor in enumerate(tensors):
            try:
                tensor.to_tensor()
            except WireError:
                return json_line(text, (kind, index, "data"))
    return None


def _contradictions(tensor: Tensor, specs: Mapping[str, TensorSpec], rows_max: int) -> Iterator[tuple[str, str]]:
    spec = specs.get(tensor.name)
    if spec is None:
        yield "name", f"is not declared, declared are {', '.join(specs)}"
        return
    if tensor.datatype != spec.datatype:
        yield "datatype", f"is {tensor.datatype}, declared is {spec.datatype}"
    dims = (-1, *spec.dims) if rows_max else spec.dims
    fits = len(dims) == len(tensor.shape) and all(
        dim in (-1, size) for dim, size in zip(dims, tensor.shape, strict=True)
    )
    if not fits or (rows_max and not 1 <= tensor.shape[0] <= rows_max):
        declared = [*([f"1..{rows_max}"] if rows_max else []), *spec.dims]
        yield "shape", f"has shape {list(tensor.shape)}, declared is [{', '.join(map(str, declared))}]"


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
