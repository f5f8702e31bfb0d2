"""The answer to an inference request: the record on the results topic, the same bytes on every route."""

import json
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from schemas.errors import InferenceFailure
from schemas.request import BINARY_HEADER, Parameters, binary_header_length
from schemas.tensor import Datatype, Tensor, check_raw, raw_from_json, to_numpy

Status = Literal["succeeded", "failed", "expired"]
CacheStatus = Literal["hit", "miss", "coalesced", "refresh", "bypass"]


class _Wire(BaseModel):
    """Readers accept members that a newer writer adds."""

    model_config = ConfigDict(extra="ignore")


class OutputTensor(_Wire):
    """One output: flat JSON `data`, or bytes behind the JSON when `parameters.binary_data_size` is there."""

    name: str
    datatype: Datatype
    shape: list[int]
    data: Any = Field(default=None, description="Elements, flat, row-major.", json_schema_extra={"type": "array"})
    parameters: Parameters = Field(default_factory=dict)

    def to_tensor(self) -> Tensor:
        """The tensor in raw form.

        Raises:
            WireError: INVALID_INPUT when data, datatype and shape do not fit together.
        """
        data = self.data
        if type(data) is bytes:
            check_raw(self.name, self.datatype, self.shape, data)
        else:
            data = raw_from_json(self.name, self.datatype, self.shape, data)
        return Tensor(self.name, self.datatype, tuple(self.shape), data)


class ResultParameters(_Wire):
    """How the answer came about. A member is absent where there is nothing to say, never null."""

    model_config = ConfigDict(extra="allow")

    cache_status: CacheStatus | None = None
    cache_key: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    cache_age_ms: int | None = Field(default=None, ge=0)
    queue_ms: float | None = Field(default=None, description="From the record's append to the worker's taking it.")
    inference_ms: float | None = Field(default=None, description="In the model's server, batching included.")
    total_ms: float | None = Field(default=None, description="From the record's append to this answer.")
    instance: str | None = Field(default=None, description="The Triton that computed the answer.")
    worker: str | None = None


class InferenceResult(_Wire):
    """One answer. The answer of an id is the first result with it in its partition's order."""

    id: str
    model_name: str
    model_version: str | None = None
    status: Status
    outputs: list[OutputTensor] | None = None
    error: InferenceFailure | None = None
    parameters: ResultParameters = Field(default_factory=ResultParameters)
    requested_at: AwareDatetime | None = None
    completed_at: AwareDatetime

    def output(self, name: str) -> Tensor:
        """The named output in raw form.

        Raises:
            KeyError: the answer has no such output.
        """
        for tensor in self.outputs or ():
            if tensor.name == name:
                return tensor.to_tensor()
        raise KeyError(name)

    def as_numpy(self, name: str) -> np.ndarray[Any, Any]:
        """The named output as an array of its shape; BYTES as objects, BF16 widened to FP32.

        Raises:
            KeyError: the answer has no such output.
        """
        return to_numpy(self.output(name))


class ResultChunk(_Wire):
    """A part of a streamed answer, at least once. A higher attempt starts over."""

    id: str = Field(description="The request's id.")
    index: int = Field(ge=0, description="Counts the chunks of one attempt.")
    attempt: int = Field(ge=0)
    outputs: list[OutputTensor]


def decode_result(body: bytes, headers: Iterable[tuple[str, bytes]] = ()) -> InferenceResult:
    """A result record's bytes; binary outputs' bytes are put into their `data`.

    Raises:
        ValueError: not a result record.
    """
    length: int | None = len(body)
    for name, value in headers:
        if name.lower() == BINARY_HEADER:
            length = binary_header_length(value, len(body))
            if length is None:
                raise ValueError(f"Inference-Header-Content-Length is {value!r:.40}, the record has {len(body)} bytes")
            break
    result = InferenceResult.model_validate_json(body[:length])
    position = length or 0
    for tensor in result.outputs or ():
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            continue
        if type(size) is not int or not 0 <= size <= len(body) - position:
            raise ValueError(f"result {result.id!r}: {tensor.name!r} claims {size!r} bytes of binary data")
        tensor.data = body[position : position + size]
        position += size
    if position != len(body):
        raise ValueError(f"result {result.id!r}: {len(body) - position} bytes follow the last binary tensor")
    return result


def json_object_length(body: bytes) -> int:
    """How many bytes of a stored result are its JSON object; raw tensors may follow it.

    Raises:
        ValueError: the bytes do not begin with a JSON object.
    """
    if body[:1] != b"{":
        raise ValueError("the bytes do not begin with a JSON object")
    # Latin-1 maps each byte to one character, so the decoder's position is a byte count.
    try:
        return json.JSONDecoder().raw_decode(body.decode("latin-1"))[1]
    except RecursionError:
        raise ValueError("the JSON object is nested too deep") from None
