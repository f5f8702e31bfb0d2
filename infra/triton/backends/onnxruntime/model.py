"""Runs `model.onnx` where Triton's own onnxruntime backend is not installed.

This is a *Python-based backend*: put it into Triton's backend directory as `onnxruntime/model.py`, beside `python/`,
and every model with `backend: "onnxruntime"` (or `platform: "onnxruntime_onnx"`) is served by it. The model folders
are those of the real backend, unchanged: config.pbtxt and `<version>/model.onnx`. Its Python needs numpy and
onnxruntime.

Read from config.pbtxt, with the meaning and the defaults of the real backend:

* `default_model_filename`;
* `optimization { graph { level } }`: -1 basic, 1 extended, 2 none, else all;
* parameters `intra_op_thread_count` and `inter_op_thread_count` (0: onnxruntime chooses), `execution_mode`
  (0 sequential, 1 parallel), `enable_mem_arena`, `enable_mem_pattern`.

Not here: GPUs and execution accelerators, configurations completed from the graph, `reshape`, sequence states,
BF16 (numpy has no such type), and strings that are not UTF-8 (the Python interface of onnxruntime takes text).

Sources: Triton's documentation of Python-based backends; parameters in the README of onnxruntime_backend.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime
import triton_python_backend_utils as pb_utils
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

Array = npt.NDArray[Any]
Config = Mapping[str, Any]

GRAPH_TYPES = {
    "TYPE_BOOL": "tensor(bool)",
    "TYPE_UINT8": "tensor(uint8)",
    "TYPE_UINT16": "tensor(uint16)",
    "TYPE_UINT32": "tensor(uint32)",
    "TYPE_UINT64": "tensor(uint64)",
    "TYPE_INT8": "tensor(int8)",
    "TYPE_INT16": "tensor(int16)",
    "TYPE_INT32": "tensor(int32)",
    "TYPE_INT64": "tensor(int64)",
    "TYPE_FP16": "tensor(float16)",
    "TYPE_FP32": "tensor(float)",
    "TYPE_FP64": "tensor(double)",
    "TYPE_STRING": "tensor(string)",
}
"""Data types of config.pbtxt and what onnxruntime calls them."""

OPTIMIZATION_LEVELS = {
    -1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}

EXECUTION_MODES = {
    "0": onnxruntime.ExecutionMode.ORT_SEQUENTIAL,
    "1": onnxruntime.ExecutionMode.ORT_PARALLEL,
}


class InvalidTensorError(ValueError):
    """An input that the graph cannot take; the request's own fault."""


class WrongBatchError(RuntimeError):
    """An output has not one row for each row of the inputs, so it cannot be given back in parts."""


class Feed(NamedTuple):
    """The inputs of one request: its place among the requests of this call, and its arrays by name."""

    number: int
    arrays: dict[str, Array]

    @property
    def rows(self) -> int:
        """The size of the batch axis, the same in every input (Triton sees to it)."""
        return len(next(iter(self.arrays.values())))

    @property
    def signature(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The inputs' names and shapes without the batch axis: feeds of one signature can run together."""
        return tuple((name, array.shape[1:]) for name, array in self.arrays.items())


@dataclass(frozen=True)
class TensorConfig:
    """One input or output of config.pbtxt, `dims` without the batch axis."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    optional: bool


class TritonPythonModel:
    """One instance of one version. Triton runs it in a process of its own and never calls it concurrently."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the graph and compares it with the configuration; called once, before any request.

        Args:
            args: `model_config` in JSON, `model_repository` (the model's own folder), `model_version`.

        Raises:
            TritonModelException: no such file, no valid graph, or not the one configured; the load fails with it.
        """
        config = json.loads(args["model_config"])
        file_name = config.get("default_model_filename") or "model.onnx"
        path = Path(args["model_repository"]) / args["model_version"] / file_name
        self._session = open_session(path, config)
        self._batched = int(config.get("max_batch_size", 0)) > 0
        self._inputs = tensor_configs(config["input"])
        self._outputs = tensor_configs(config["output"])
        refuse_difference("input", self._inputs, self._session.get_inputs(), self._batched)
        refuse_difference("output", self._outputs, self._session.get_outputs(), self._batched)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers the requests that Triton batched, requests of one signature in one run.

        Returns:
            A response for each request, in order. What one request is to blame for fails that one alone: with
            INVALID_ARG if the graph refuses its inputs, else with INTERNAL.
        """
        responses: list[Any] = [None] * len(requests)
        groups: dict[Any, list[Feed]] = {}
        for number, request in enumerate(requests):
            try:
                feed = Feed(number, self._read(request))
            except InvalidTensorError as error:
                responses[number] = refusal(error)
                continue
            groups.setdefault(feed.signature if self._batched else number, []).append(feed)
        for feeds in groups.values():
            for feed, response in zip(feeds, self._answer(feeds), strict=True):
                responses[feed.number] = response
        return responses

    def _read(self, request: Any) -> dict[str, Array]:
        """Returns the inputs of a request by name; an optional one may be missing.

        Raises:
            InvalidTensorError: an element of a BYTES input is no UTF-8.
        """
        arrays = {}
        for tensor in request.inputs():
            array = tensor.as_numpy()
            arrays[tensor.name()] = text_array(tensor.name(), array) if array.dtype == np.object_ else array
        return dict(sorted(arrays.items()))

    def _answer(self, feeds: Sequence[Feed]) -> list[Any]:
        """Returns the responses to feeds of one signature. If they cannot run together, each runs alone."""
        try:
            return self._run(feeds)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not fail the other requests
            # onnxruntime says that a batch failed, not which row: whoever fails alone is the one.
            if len(feeds) == 1:
                return [refusal(error)]
            return [response for feed in feeds for response in self._answer([feed])]

    def _run(self, feeds: Sequence[Feed]) -> list[Any]:
        """Runs feeds of one signature once and gives each its rows of the outputs.

        Raises:
            WrongBatchError: the outputs cannot be given back in parts.
            Exception: whatever onnxruntime raises.
        """
        names = [output.name for output in self._outputs]
        if len(feeds) == 1:
            joined = feeds[0].arrays
        else:
            joined = {name: np.concatenate([feed.arrays[name] for feed in feeds]) for name in feeds[0].arrays}
        outputs = self._session.run(names, joined)
        if not self._batched:
            return [answer(names, outputs)]
        rows = sum(feed.rows for feed in feeds)
        for name, output in zip(names, outputs, strict=True):
            if output.shape[:1] != (rows,):
                raise WrongBatchError(f"output {name!r} has shape {list(output.shape)} for a batch of {rows}")
        responses, start = [], 0
        for feed in feeds:
            responses.append(answer(names, [output[start : start + feed.rows] for output in outputs]))
            start += feed.rows
        return responses


def open_session(path: Path, config: Config) -> onnxruntime.InferenceSession:
    """Loads a graph on the CPU with the options of its configuration.

    Raises:
        TritonModelException: no such file, no valid graph, or an option that has no meaning.
    """
    try:
        return onnxruntime.InferenceSession(str(path), session_options(config), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise pb_utils.TritonModelException(f"failed to load {path}: {error}") from error


def session_options(config: Config) -> onnxruntime.SessionOptions:
    """Returns what the module's docstring lists from a model configuration, in onnxruntime's form.

    Raises:
        ValueError: a value has no meaning.
    """
    parameters = {name: entry["string_value"] for name, entry in config.get("parameters", {}).items()}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", 0))
    options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", 0))
    mode = parameters.get("execution_mode", "0")
    if mode not in EXECUTION_MODES:
        raise ValueError(f"parameter 'execution_mode' is 0 or 1, not {mode!r}")
    options.execution_mode = EXECUTION_MODES[mode]
    options.enable_cpu_mem_arena = is_true(parameters.get("enable_mem_arena", "1"))
    options.enable_mem_pattern = is_true(parameters.get("enable_mem_pattern", "1"))
    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    everything = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.graph_optimization_level = OPTIMIZATION_LEVELS.get(level, everything)
    return options


def is_true(value: str) -> bool:
    """Reads a boolean parameter as Triton does: "1", "true" and "on" are true, in any case of letters."""
    return value.lower() in ("1", "true", "on")


def tensor_configs(entries: Sequence[Config]) -> list[TensorConfig]:
    """Reads the `input` or `output` list of a model configuration. Its JSON has numbers of 64 bits as strings."""
    return [
        TensorConfig(
            name=entry["name"],
            data_type=entry["data_type"],
            dims=tuple(int(dim) for dim in entry["dims"]),
            optional=bool(entry.get("optional", False)),
        )
        for entry in entries
    ]


def refuse_difference(kind: str, configured: Sequence[TensorConfig], graph: Sequence[Any], batched: bool) -> None:
    """Compares the tensors of the configuration with those of the graph.

    Args:
        kind: "input" or "output". Outputs of the graph that are not configured are allowed: they are not computed.
        configured: from config.pbtxt.
        graph: onnxruntime's NodeArg: name, type, shape with names or None where a size is open.
        batched: whether the graph's shapes have a batch axis before `dims`.

    Raises:
        TritonModelException: a name, type or shape differs.
    """
    known = {argument.name: argument for argument in graph}
    for tensor in configured:
        if tensor.name not in known:
            message = f"the graph has no {kind} {tensor.name!r}; it has {', '.join(known)}"
            raise pb_utils.TritonModelException(message)
        argument = known[tensor.name]
        shape = (-1, *tensor.dims) if batched else tensor.dims
        if GRAPH_TYPES.get(tensor.data_type) != argument.type or not fits(shape, argument.shape):
            message = (
                f"{kind} {tensor.name!r} is {tensor.data_type} {list(shape)} in config.pbtxt, "
                f"{argument.type} {argument.shape} in the graph"
            )
            raise pb_utils.TritonModelException(message)
    missing = known.keys() - {tensor.name for tensor in configured}
    if kind == "input" and missing:
        raise pb_utils.TritonModelException(f"config.pbtxt has no input {', '.join(sorted(missing))}")


def fits(configured: Sequence[int], graph: Sequence[int | str | None]) -> bool:
    """Says whether a configured shape (-1 is any size) agrees with the graph's wherever both name a size."""
    if len(configured) != len(graph):
        return False
    pairs = zip(configured, graph, strict=True)
    return all(size == -1 or not isinstance(known, int) or size == known for size, known in pairs)


def text_array(name: str, array: Array) -> Array:
    """Returns the strings of a BYTES tensor, same shape.

    Raises:
        InvalidTensorError: an element is no UTF-8.
    """
    try:
        texts = [element.decode("utf-8") for element in array.reshape(-1)]
    except UnicodeDecodeError as error:
        raise InvalidTensorError(f"input {name!r} is not UTF-8: {error.reason} at byte {error.start}") from None
    return np.array(texts, np.object_).reshape(array.shape)


def answer(names: Sequence[str], outputs: Sequence[Array]) -> Any:
    """Returns the response with all outputs of one request; Triton drops those that it did not ask for."""
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, np.ascontiguousarray(output)) for name, output in zip(names, outputs, strict=True)]
    )


def refusal(error: Exception) -> Any:
    """Returns the response to a request that failed."""
    blamed_on_request = isinstance(error, InvalidTensorError | InvalidArgument)
    code = pb_utils.TritonError.INVALID_ARG if blamed_on_request else pb_utils.TritonError.INTERNAL
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
