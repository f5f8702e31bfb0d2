"""A request against what its model declares: Triton would refuse it too, later and for the whole batch."""

from collections.abc import Sequence

from pipeline.core.catalog import ServedVersion
from pipeline.core.parameters import check_input_parameters, kept_output_parameters
from schemas.decoded import DecodedRequest
from schemas.errors import ErrorCode, WireError
from schemas.registry import TensorSpec
from schemas.request import Parameters
from schemas.tensor import Tensor

Layout = tuple[tuple[str | int, ...], ...]
_NO_PARAMETERS: Parameters = {}
# Layouts differ by batch size and by free dimensions; past this many the check is simply made again.
_LAYOUTS_REMEMBERED = 4096


def check_inputs(version: ServedVersion, request: DecodedRequest) -> tuple[Tensor, ...]:
    """The request's inputs in raw form, in its own order.

    Raises:
        WireError: INVALID_INPUT naming the input, its value and what the model expects; INVALID_REQUEST for tensor
            parameters that are not allowed.
    """
    layout: Layout = tuple([(given.name, given.datatype, *given.shape) for given in request.inputs])
    if layout not in version.accepted:
        _check_layout(version, request)
        if len(version.accepted) < _LAYOUTS_REMEMBERED:
            version.accepted.add(layout)
    for given in request.inputs:
        if given.parameters:
            check_input_parameters(given)
    return tuple([given.to_tensor() for given in request.inputs])


def _check_layout(version: ServedVersion, request: DecodedRequest) -> None:
    """Names, datatypes and shapes: most requests of a model have one of a few layouts, which are remembered."""
    max_batch_size = version.signature.max_batch_size
    rows = -1
    for given in request.inputs:
        spec = version.inputs.get(given.name)
        if spec is None:
            raise _invalid(given.name, f"is no input of {_name(version)}, expected {_names(version)}")
        if given.datatype != spec.datatype:
            raise _invalid(given.name, f"has datatype {given.datatype}, {_name(version)} expects {spec.datatype}")
        shape = given.shape
        if not _fits(shape, spec, max_batch_size):
            raise _invalid(given.name, f"has shape {shape}, {_name(version)} expects {_expected(spec, max_batch_size)}")
        if max_batch_size:
            if rows not in (-1, shape[0]):
                raise _invalid(given.name, f"has {shape[0]} rows, another input has {rows}")
            rows = shape[0]
    _check_names(version, [given.name for given in request.inputs])


def _fits(shape: Sequence[int], spec: TensorSpec, max_batch_size: int) -> bool:
    dims: Sequence[int] = shape
    if max_batch_size:
        if not shape or not 1 <= shape[0] <= max_batch_size:
            return False
        dims = shape[1:]
    if len(dims) != len(spec.dims):
        return False
    return all(want in (-1, size) for size, want in zip(dims, spec.dims, strict=True))


def _check_names(version: ServedVersion, names: Sequence[str]) -> None:
    given = set(names)
    if len(given) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise _invalid(twice, "is given twice")
    if len(given) < version.required_inputs or any(
        name not in given and not spec.optional for name, spec in version.inputs.items()
    ):
        missing = next(name for name, spec in version.inputs.items() if name not in given and not spec.optional)
        raise _invalid(missing, f"is missing, {_name(version)} expects {_names(version)}")


def requested_outputs(version: ServedVersion, request: DecodedRequest) -> tuple[tuple[str, Parameters], ...]:
    """The outputs to compute, each with the parameters that reach the server; all of them where none is named.

    Raises:
        WireError: INVALID_REQUEST for an output that the model has not, or one named twice.
    """
    if request.outputs is None:
        return version.all_outputs
    asked: dict[str, Parameters] = {}
    for output in request.outputs:
        if output.name not in version.output_names:
            raise WireError(
                ErrorCode.INVALID_REQUEST,
                f"outputs: {output.name!r:.80} is no output of {_name(version)}, "
                f"expected some of {', '.join(version.output_names)}",
            )
        if output.name in asked:
            raise WireError(ErrorCode.INVALID_REQUEST, f"outputs: {output.name!r} is asked for twice")
        asked[output.name] = kept_output_parameters(output) if output.parameters else _NO_PARAMETERS
    return tuple(asked.items()) or version.all_outputs


def _name(version: ServedVersion) -> str:
    return f"{version.model_name} version {version.version}"


def _names(version: ServedVersion) -> str:
    return ", ".join(version.inputs)


def _expected(spec: TensorSpec, max_batch_size: int) -> str:
    dims = [*([f"1..{max_batch_size}"] if max_batch_size else []), *("any" if d == -1 else str(d) for d in spec.dims)]
    return f"[{', '.join(dims)}]"


def _invalid(name: str, what: str) -> WireError:
    return WireError(ErrorCode.INVALID_INPUT, f"tensor {name!r:.80}: {what}")
