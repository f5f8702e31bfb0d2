"""A configuration completed from the model file, and compared with it. Pure: values in, values out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import model_config_pb2

from pipeline.core.model_config import ConfigText, Finding, ModelConfig, backend_of, datatype_name
from pipeline.core.text_lines import indexed, line_of

# What the largest batch is where nobody said. Measured on 2 cores with a small model: batches of 64 reach 1.7 times
# the throughput of 32, and wait no longer.
BATCH_SIZE_DEFAULT = 64


@dataclass(frozen=True, slots=True)
class GraphTensor:
    """One input or output as a model file declares it: a None in its shape is any size, no shape at all is any rank."""

    name: str
    datatype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True, slots=True)
class Graph:
    """What a model file declares of itself."""

    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]

    @property
    def has_batch_axis(self) -> bool:
        """Whether the first dimension of every input and output is open: what Triton takes for a batch axis too."""
        return all(tensor.shape and tensor.shape[0] is None for tensor in (*self.inputs, *self.outputs))

    @property
    def refuses_batch_axis(self) -> bool:
        """Whether an input or output is known to have none."""
        tensors = (*self.inputs, *self.outputs)
        return any(tensor.shape is not None and tensor.shape[:1] != (None,) for tensor in tensors)


def completed(
    source: ConfigText | None, model_name: str, graph: Graph | None = None, backend: str = "onnxruntime"
) -> ModelConfig:
    """The owner's configuration with what it leaves out; all of it from the graph where there is none.

    Written where silent: the name; the backend; inputs, outputs and batch size from the ONNX graph; one instance on
    the CPU (Triton's own default for KIND_CPU is two). Batching on the server is switched on only together with a
    batch size that was found here. What is written stays, also `max_batch_size: 0`. The same arguments give the same
    configuration, and `config_text` the same bytes of it.

    Args:
        source: what the owner wrote; None for nothing.
        model_name: the model's folder.
        graph: what the model file declares, where it is one that can be read.
        backend: the backend that the names of the version's files speak for; empty where they speak for none.
    """
    config = model_config_pb2.ModelConfig()
    if source is not None:
        config.CopyFrom(source.config)
    config.name = config.name or model_name
    if not config.backend and not config.platform:
        config.backend = backend
    if graph is not None and backend_of(config) == "onnxruntime":
        _complete_tensors(config, graph, batch_stated=source is not None and "max_batch_size" in source.lines)
    if not config.instance_group:
        config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=1)
    for group in config.instance_group:
        group.count = group.count or 1
    return config


def _complete_tensors(config: ModelConfig, graph: Graph, *, batch_stated: bool) -> None:
    if not batch_stated and graph.has_batch_axis and not _dims_include_batch(config, graph):
        config.max_batch_size = BATCH_SIZE_DEFAULT
        if config.WhichOneof("scheduling_choice") is None:
            config.dynamic_batching.max_queue_delay_microseconds = 0
    for declared, tensors in ((config.input, graph.inputs), (config.output, graph.outputs)):
        if not declared:
            for tensor in tensors:
                declared.add(name=tensor.name)
        by_name = {tensor.name: tensor for tensor in tensors}
        for entry in declared:
            if entry.name in by_name:
                _complete_tensor(entry, by_name[entry.name], batched=config.max_batch_size > 0)


def _dims_include_batch(config: ModelConfig, graph: Graph) -> bool:
    """Whether the owner wrote dims of the graph's full rank: then they mean a model without a batch axis."""
    ranks = {tensor.name: len(tensor.shape or ()) for tensor in (*graph.inputs, *graph.outputs)}
    written = [entry for entry in (*config.input, *config.output) if entry.dims]
    return any(len(entry.dims) == ranks.get(entry.name) for entry in written)


def _complete_tensor(entry: Any, tensor: GraphTensor, *, batched: bool) -> None:
    if not entry.data_type:
        entry.data_type = _datatype_value(tensor.datatype)
    if not entry.dims and tensor.shape is not None:
        shape = tensor.shape[1:] if batched else tensor.shape
        if shape:
            entry.dims.extend(-1 if size is None else size for size in shape)
        else:
            # Triton has no scalars: it shows [1] to clients and reshapes for the model.
            entry.dims.append(1)
            entry.reshape.SetInParent()


def _datatype_value(name: str) -> int:
    return int(model_config_pb2.DataType.Value(f"TYPE_{'STRING' if name == 'BYTES' else name}"))


def graph_findings(config: ModelConfig, graph: Graph, lines: Mapping[str, int] | None = None) -> list[Finding]:
    """Where a completed configuration and the model file it is for contradict each other, by `lines` of its text."""
    return [Finding(reason, line_of(lines or {}, path)) for path, reason in _all_contradictions(config, graph)]


def _all_contradictions(config: ModelConfig, graph: Graph) -> Iterator[tuple[str, str]]:
    batched = config.max_batch_size > 0
    if batched and graph.refuses_batch_axis:
        reason = "max_batch_size is above 0, and not every tensor of the graph begins with an open dimension"
        yield "max_batch_size", reason
    for kind, entries, tensors in (("input", config.input, graph.inputs), ("output", config.output, graph.outputs)):
        by_name = {tensor.name: tensor for tensor in tensors}
        for index, entry in enumerate(entries):
            path = indexed(kind, index)
            if (tensor := by_name.get(entry.name)) is None:
                yield f"{path}.name", f"{kind} {entry.name!r} is not in the graph, which has {', '.join(by_name)}"
            else:
                yield from _contradictions(path, f"{kind} {entry.name!r}", entry, tensor, batched=batched)
        if kind == "input" and (missing := by_name.keys() - {entry.name for entry in entries}):
            yield "input", f"the graph's inputs {sorted(missing)} are not declared"


def _contradictions(
    path: str, name: str, entry: Any, tensor: GraphTensor, *, batched: bool
) -> Iterator[tuple[str, str]]:
    datatype = datatype_name(entry.data_type)
    if datatype != tensor.datatype:
        yield f"{path}.data_type", f"{name} is {datatype}, the graph says {tensor.datatype}"
    if tensor.shape is None:
        return
    reshaped = entry.HasField("reshape")
    dims = entry.reshape.shape if reshaped else entry.dims
    shape = tensor.shape[1:] if batched else tensor.shape
    if len(dims) != len(shape) or not all(map(_meets, dims, shape)):
        shown = ["any" if size is None else size for size in shape]
        place = f"{path}.reshape.shape" if reshaped else f"{path}.dims"
        yield place, f"{name} has dims {list(dims)}, the graph says {shown}"


def _meets(dim: int, size: int | None) -> bool:
    return dim == -1 or size is None or dim == size
