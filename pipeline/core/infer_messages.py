"""ModelInfer's messages (KServe Open Inference Protocol v2, gRPC): a call as bytes, and an answer's bytes as outputs.

Tensors never pass through protobuf objects, which copy what is put in and what is taken out: a request is its head,
written by protobuf, and the raw tensors behind it, and an answer is taken apart the same way. Protobuf allows that:
the fields of a message stand one after the other, in any order. A call of 8 MB each way takes 21 ms instead of 54, of
600 kB 1.4 instead of 3.0 (measured on Triton 2.51), and two copies less.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from tritonclient.grpc import model_config_pb2, service_pb2

from pipeline.errors import ModelFailed, ModelNotReady
from schemas.errors import WireError
from schemas.tensor import DATATYPES, Tensor, check_raw, element_count, element_size

# Protobuf's wire format: a field's number, and 2 for "a length, then so many bytes".
_SIZED = 2
# Up to here protobuf's copies cost less than the 5 us that it takes to find the fields.
SMALL_BYTES_MAX = 64 << 10
# Requests' limit too (numpy's own): the product of a million sizes takes seconds.
_DIMENSIONS_MAX = 32
_RAW_INPUT = bytes([service_pb2.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | _SIZED])
_RAW_OUTPUT = service_pb2.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER << 3 | _SIZED
_DATATYPES = {number: name.removeprefix("TYPE_") for name, number in model_config_pb2.DataType.items()}


class Place(NamedTuple):
    """Where a tensor lies that does not travel: bytes of a region of shared memory."""

    region: str
    offset: int
    size: int


def encode_request(
    model_name: str,
    model_version: str,
    inputs: Sequence[Tensor],
    outputs: Sequence[tuple[str, Mapping[str, Any]]],
    parameters: Mapping[str, Any] | None,
    *,
    input_places: Mapping[int, Place],
    output_places: Mapping[str, Place],
) -> bytes:
    """A ModelInferRequest, encoded.

    Args:
        model_name: the model.
        model_version: the version, never "latest".
        inputs: the tensors.
        outputs: names that are wanted, with their own parameters; empty for all.
        parameters: what reaches the model and the server.
        input_places: inputs that are in shared memory, by position; the others travel.
        output_places: outputs that the server is to write there, by name.
    """
    request = service_pb2.ModelInferRequest(model_name=model_name, model_version=model_version)
    parts = [b""]
    for index, tensor in enumerate(inputs):
        given = request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        place = input_places.get(index)
        if place is not None:
            _set_place(given.parameters, place)
        else:
            parts += (_RAW_INPUT, _varint(len(tensor.raw)), tensor.raw)
    for name, own in outputs:
        output = request.outputs.add(name=name)
        set_parameters(output.parameters, own)
        place = output_places.get(name)
        if place is not None:
            _set_place(output.parameters, place)
    if parameters:
        set_parameters(request.parameters, parameters)
    parts[0] = request.SerializeToString()
    return b"".join(parts)


def set_parameters(target: Any, parameters: Mapping[str, Any]) -> None:
    """Puts parameters into a request's protobuf map, each by its type."""
    for name, value in parameters.items():
        if isinstance(value, bool):
            target[name].bool_param = value
        elif isinstance(value, int):
            target[name].int64_param = value
        elif isinstance(value, float):
            target[name].double_param = value
        else:
            target[name].string_param = value


def _set_place(parameters: Any, place: Place) -> None:
    parameters["shared_memory_region"].string_param = place.region
    parameters["shared_memory_offset"].int64_param = place.offset
    parameters["shared_memory_byte_size"].int64_param = place.size


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def decode_answer(
    instance: str,
    model_version: str,
    outputs: Sequence[tuple[str, Mapping[str, Any]]],
    body: bytes,
    placed: Callable[[str, int], bytes | None] | None = None,
) -> tuple[Tensor, ...]:
    """The outputs of a ModelInferResponse, in the order asked, or the server's own order for all.

    Args:
        instance: who answered, for the error.
        model_version: the version that was asked.
        outputs: as in the request.
        body: the answer's bytes.
        placed: the bytes of an output that was to be written to shared memory, by name and size; None for any other.

    Raises:
        ModelNotReady: another version answered.
        ModelFailed: it is not what was asked for; the reason says what is wrong.
    """
    try:
        answer, raws = _taken_apart(body)
    except DecodeError as error:
        raise ModelFailed(instance, f"its answer cannot be read: {error}") from None
    if not answer.model_version:
        raise ModelFailed(instance, "its answer names no version")
    if answer.model_version != model_version:
        raise ModelNotReady(instance, f"version {answer.model_version!r:.40} answered for {model_version!r}")
    if len(raws) != len(answer.outputs):
        raise ModelFailed(instance, f"{len(raws)} raw outputs for {len(answer.outputs)} declared")
    found: dict[str, Tensor] = {}
    for output, raw in zip(answer.outputs, raws, strict=True):
        if output.name in found:
            raise ModelFailed(instance, f"output {output.name!r:.80} is twice in its answer")
        found[output.name] = _output(instance, output, raw, placed)
    if not outputs:
        return tuple(found.values())
    for name, _ in outputs:
        if name not in found:
            raise ModelFailed(instance, f"output {name!r:.80} is missing in its answer")
    return tuple([found[name] for name, _ in outputs])


def _output(instance: str, output: Any, raw: bytes, placed: Callable[[str, int], bytes | None] | None) -> Tensor:
    """One output, its bytes out of the answer or out of shared memory."""
    name, datatype, shape = output.name, output.datatype, tuple(output.shape)
    if datatype not in DATATYPES:
        raise ModelFailed(instance, f"output {name!r:.80} has the datatype {datatype!r:.40}")
    if len(shape) > _DIMENSIONS_MAX or any(size < 0 for size in shape):
        raise ModelFailed(instance, f"output {name!r:.80} has the shape {list(shape)!s:.200}")
    if not raw and placed is not None:
        raw = placed(name, element_count(shape) * (element_size(datatype) or 0)) or raw
    try:
        check_raw(name, datatype, shape, raw)
    except WireError as error:
        raise ModelFailed(instance, f"{error.message:.500}") from None
    return Tensor(name, datatype, shape, raw)


def _taken_apart(body: bytes) -> tuple[Any, list[bytes]]:
    """A ModelInferResponse without its raw outputs, and these.

    Raises:
        DecodeError: it is none.
    """
    heads: list[bytes] = []
    raws: list[bytes] = []
    position = kept = 0
    while position < len(body):
        start, end = _sized_field(body, position)
        if end > len(body) or len(body) <= SMALL_BYTES_MAX:
            # Of another kind than Triton's fields, or broken, or small: protobuf reads it, or says what is wrong.
            whole = service_pb2.ModelInferResponse.FromString(body)
            return whole, list(whole.raw_output_contents)
        if body[position] == _RAW_OUTPUT:
            heads.append(body[kept:position])
            raws.append(body[start:end])
            kept = end
        position = end
    heads.append(body[kept:])
    return service_pb2.ModelInferResponse.FromString(b"".join(heads)), raws


def _sized_field(body: bytes, position: int) -> tuple[int, int]:
    """Where the content of the field at `position` begins and ends; an end past the body's where it has none."""
    nowhere = (0, len(body) + 1)
    if body[position] & 0x87 != _SIZED:  # another kind, or a number of two bytes
        return nowhere
    length = shift = 0
    for start in range(position + 1, min(position + 6, len(body))):
        length |= (body[start] & 0x7F) << shift
        shift += 7
        if body[start] <= 0x7F:
            return start + 1, start + 1 + length
    return nowhere


def fixed_output_sizes(config: Any) -> dict[str, int]:
    """Bytes of a row of each output that has neither a free dimension nor elements of free length.

    Args:
        config: a version's ModelConfig; without a batch axis an output is one row.
    """
    sizes: dict[str, int] = {}
    for output in config.output:
        size = element_size(_DATATYPES.get(output.data_type, ""))
        if size is not None and all(dim > 0 for dim in output.dims):
            sizes[output.name] = size * math.prod(output.dims)
    return sizes
