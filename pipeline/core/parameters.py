"""A request's parameters, sorted by what they do: reach the model, steer the server, concern transport alone."""

from typing import NamedTuple

from schemas.decoded import DecodedInput, DecodedOutput
from schemas.errors import ErrorCode, WireError
from schemas.request import Parameters

# Triton's own arguments of an inference, not the model's: they change when it runs, not what it answers.
_SERVER = frozenset({"priority", "timeout"})
_EMPTY: Parameters = {}


class SortedParameters(NamedTuple):
    """What `sort_parameters` found.

    Attributes:
        keyed: reach the model and are part of the key.
        server: reach the server by its own arguments, not keyed.
        sequenced: the request belongs to a sequence: its answer depends on earlier ones, so it is never cached.
    """

    keyed: Parameters
    server: Parameters
    sequenced: bool


_NONE = SortedParameters(_EMPTY, _EMPTY, sequenced=False)


def sort_parameters(parameters: Parameters) -> SortedParameters:
    """Sorts a request's parameters.

    Raises:
        WireError: INVALID_REQUEST for one that a client may not set.
    """
    if not parameters:
        return _NONE
    keyed: Parameters = {}
    server: Parameters = {}
    sequenced = False
    for name, value in parameters.items():
        if name.startswith(("shared_memory_", "triton_")) or name == "headers":
            raise WireError(
                ErrorCode.INVALID_REQUEST, f"parameters.{name:.80}: not allowed from a client, got {value!r:.80}"
            )
        if name.startswith("binary_"):
            continue
        if name in _SERVER:
            if type(value) is not int or value < 0:
                raise WireError(
                    ErrorCode.INVALID_REQUEST, f"parameters.{name}: needs an integer of 0 or more, got {value!r:.40}"
                )
            server[name] = value
        elif name.startswith("sequence_"):
            server[name] = value
            sequenced = True
        else:
            keyed[name] = value
    return SortedParameters(keyed, server, sequenced)


def check_input_parameters(tensor: DecodedInput) -> None:
    """Refuses an input's parameters that nothing here understands.

    Raises:
        WireError: INVALID_REQUEST naming the parameter.
    """
    for name in tensor.parameters:
        if name != "binary_data_size":
            raise WireError(
                ErrorCode.INVALID_REQUEST, f"inputs: parameter {name!r:.80} of {tensor.name!r:.80} is not supported"
            )


def kept_output_parameters(output: DecodedOutput) -> Parameters:
    """An output's parameters without those of transport.

    Raises:
        WireError: INVALID_REQUEST for one that a client may not set.
    """
    for name in output.parameters:
        if name.startswith("shared_memory_"):
            raise WireError(
                ErrorCode.INVALID_REQUEST, f"outputs: parameter {name!r:.80} of {output.name!r:.80} is not allowed"
            )
    return {name: value for name, value in output.parameters.items() if not name.startswith("binary_")}
