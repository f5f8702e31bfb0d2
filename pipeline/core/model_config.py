"""`config.pbtxt`: read strictly, checked for what Triton would only find at a load, completed where it is silent.

Text in, values out; nothing here touches a file.

    parse_config(text) ──> ConfigText ──> watcher/completion.py ──> findings(...) ──> signature(...)
                                                                └──> serving_config(versions) ──> config_text(...)

Source: Triton's `model_config.proto` (tritonclient carries it) and its `model_configuration.md`.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from pipeline.errors import PipelineError
from schemas.registry import ModelSignature, TensorSpec
from schemas.tensor import Datatype

ModelConfig = Any
"""A `model_config_pb2.ModelConfig`; tritonclient ships no types."""

# The parameters that speak to this pipeline and not to the model: they change no answer.
PIPELINE_PARAMETERS = frozenset({"cache", "cache_ttl_seconds", "client_batching", "promotion"})

BACKEND_OF_PLATFORM = {
    "onnxruntime_onnx": "onnxruntime",
    "tensorrt_plan": "tensorrt",
    "pytorch_libtorch": "pytorch",
    "tensorflow_graphdef": "tensorflow",
    "tensorflow_savedmodel": "tensorflow",
}
_SWITCH = {"true": True, "on": True, "false": False, "off": False}


class ModelConfigError(PipelineError):
    """A `config.pbtxt` that is no model configuration.

    Args:
        line: where, from 1.
        column: where in the line, from 1.
        reason: what the parser met there.
    """

    def __init__(self, line: int | None, column: int | None, reason: str) -> None:
        super().__init__(f"{line}:{column}: {reason}" if line else reason)
        self.line = line
        self.column = column
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing Triton would refuse; `line` where the text shows which field it is."""

    reason: str
    line: int | None = None


@dataclass(frozen=True, slots=True)
class ConfigText:
    """A parsed configuration, and the line of each top-level field it states (proto3 cannot tell 0 from silence)."""

    config: ModelConfig
    lines: Mapping[str, int] = field(default_factory=dict)


_TOKEN = re.compile(r"""(?P<skip>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|\#[^\n]*)|(?P<open>[{<\[])|(?P<close>[}>\]])"""
                    r"""|(?P<name>[A-Za-z_]\w*)""")  # fmt: skip


def parse_config(text: str) -> ConfigText:
    """Reads a `config.pbtxt`; an unknown field, a wrong type or a field given twice is an error.

    Raises:
        ModelConfigError: with line and column.
    """
    config = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        line, column = error.GetLine(), error.GetColumn()
        # The parser's text begins with the place again: "3:5 : 'input {': Message type ...".
        reason = re.sub(r"^\d+:\d+ : ", "", str(error))
        raise ModelConfigError(line, column, reason) from None
    return ConfigText(config, _field_lines(text))


def _field_lines(text: str) -> dict[str, int]:
    lines: dict[str, int] = {}
    depth = 0
    for match in _TOKEN.finditer(text):
        if match["open"]:
            depth += 1
        elif match["close"]:
            depth -= 1
        elif match["name"] and depth == 0:
            lines.setdefault(match["name"], text.count("\n", 0, match.start()) + 1)
    return lines


def backend_of(config: ModelConfig) -> str:
    """The backend that runs the model; empty when the configuration names none."""
    return str(config.backend or BACKEND_OF_PLATFORM.get(config.platform, ""))


def datatype_name(value: int) -> str:
    """The protocol's name of a `data_type`: TYPE_STRING is BYTES there."""
    name = model_config_pb2.DataType.Name(value).removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else str(name)


def serving_config(config: ModelConfig, versions: Iterable[str]) -> ModelConfig:
    """The configuration of the serving copy: exactly these versions, and Triton's own response cache off.

    (Its key leaves out shapes, parameters and requested outputs: it answers wrongly.)
    """
    serving = model_config_pb2.ModelConfig()
    serving.CopyFrom(config)
    serving.version_policy.Clear()
    serving.version_policy.specific.versions.extend(sorted(int(version) for version in versions))
    serving.ClearField("response_cache")
    return serving


def config_text(config: ModelConfig) -> str:
    """The configuration as text: the same configuration gives the same bytes."""
    return str(text_format.MessageToString(config, as_utf8=True))


# --- What Triton finds only at a load ---------------------------------------------------------------------------------


def findings(config: ModelConfig, model_name: str, lines: Mapping[str, int] | None = None) -> list[Finding]:
    """Everything in a completed configuration that Triton, or this pipeline, would refuse."""
    lines = lines or {}
    checks = (*_identity(config, model_name), *_tensors(config), *_scheduling(config), *_parameters(config))
    return [Finding(reason, lines.get(name)) for name, reason in checks]


def _identity(config: ModelConfig, model_name: str) -> Iterator[tuple[str, str]]:
    if config.name != model_name:
        yield "name", f"name is {config.name!r}, the folder is {model_name!r}: Triton wants them equal"
    if not config.backend and not config.platform:
        yield "backend", 'a backend is missing, for example backend: "onnxruntime"'
    elif config.platform == "ensemble" or config.HasField("ensemble_scheduling"):
        yield "platform", "ensembles are not served: their answers change with other models' versions"
    elif not config.backend and not backend_of(config):
        yield "platform", f"platform {config.platform!r} is unknown; known: {', '.join(BACKEND_OF_PLATFORM)}"
    elif config.backend and config.platform and BACKEND_OF_PLATFORM.get(config.platform) != config.backend:
        yield "platform", f"platform {config.platform!r} does not belong to backend {config.backend!r}"


def _tensors(config: ModelConfig) -> Iterator[tuple[str, str]]:
    for kind, entries in (("input", config.input), ("output", config.output)):
        if not entries:
            yield kind, f"no {kind} is declared"
        names = [entry.name for entry in entries]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield kind, f"{kind} {name!r} is declared {names.count(name)} times"
        for entry in entries:
            for reason in _tensor(entry, batched=config.max_batch_size > 0):
                yield kind, f"{kind} {entry.name!r}: {reason}"


def _tensor(entry: Any, *, batched: bool) -> Iterator[str]:
    if not entry.name:
        yield "name is missing"
    if entry.data_type not in model_config_pb2.DataType.values() or not entry.data_type:
        yield "data_type is missing or unknown"
    if not entry.dims:
        yield "dims are missing"
    if any(size < 1 and size != -1 for size in entry.dims):
        yield f"dims are {list(entry.dims)}: each is at least 1, or -1 for any size"
    if entry.HasField("reshape"):
        shape = list(entry.reshape.shape)
        if not shape and not batched:
            yield "an empty reshape needs a batch axis"
        if -1 not in entry.dims and -1 not in shape and math.prod(shape) != math.prod(entry.dims):
            yield f"reshape {shape} has not as many elements as dims {list(entry.dims)}"


def _scheduling(config: ModelConfig) -> Iterator[tuple[str, str]]:
    largest = config.max_batch_size
    if largest < 0:
        yield "max_batch_size", f"max_batch_size is {largest}: it is 0 for a model without a batch axis, or more"
    for size in config.dynamic_batching.preferred_batch_size:
        if not 0 < size <= max(largest, 0):
            yield "dynamic_batching", f"preferred_batch_size {size} is not in 1 to max_batch_size ({largest})"
    for group in config.instance_group:
        if group.count < 0:
            yield "instance_group", f"instance_group count is {group.count}, it is at least 1"
    policy = config.version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "latest" and policy.latest.num_versions < 1:
        yield "version_policy", "latest needs num_versions of at least 1: Triton would serve nothing"
    if choice == "specific" and (not policy.specific.versions or min(policy.specific.versions) < 1):
        yield "version_policy", f"specific versions are {list(policy.specific.versions)}: name at least one, from 1 up"


def _parameters(config: ModelConfig) -> Iterator[tuple[str, str]]:
    for name in ("cache", "client_batching"):
        if (word := parameter(config, name)) is not None and word.lower() not in _SWITCH:
            yield "parameters", f"parameter {name} is {word!r}: true, false, on or off"
    for name in (parameter(config, "built_files") or "").split(","):
        if name.strip().startswith("/") or ".." in name.split("/"):
            yield "parameters", f"parameter built_files names {name.strip()!r}: files in the version folder only"
    if (word := parameter(config, "promotion")) not in (None, "auto", "manual"):
        yield "parameters", f"parameter promotion is {word!r}: auto or manual"
    word = parameter(config, "cache_ttl_seconds")
    if word is not None and not _seconds(word):
        yield "parameters", f"parameter cache_ttl_seconds is {word!r}: a number above 0"


# --- What the rest of the pipeline needs to know ----------------------------------------------------------------------


def parameter(config: ModelConfig, name: str) -> str | None:
    """A parameter's text, or None."""
    return str(config.parameters[name].string_value) if name in config.parameters else None


def promotes(config: ModelConfig) -> bool:
    """Whether a new version becomes the default by itself, once it has passed its checks."""
    return parameter(config, "promotion") != "manual"


def _seconds(word: str) -> float | None:
    try:
        seconds = float(word)
    except ValueError:
        return None
    return seconds if 0 < seconds < math.inf else None


def signature(config: ModelConfig) -> ModelSignature:
    """What workers must know of a configuration without findings."""
    ttl = parameter(config, "cache_ttl_seconds")
    return ModelSignature(
        inputs=_specs(config.input),
        outputs=_specs(config.output),
        max_batch_size=config.max_batch_size,
        decoupled=config.model_transaction_policy.decoupled,
        stateful=config.HasField("sequence_batching"),
        cacheable=_SWITCH[(parameter(config, "cache") or "true").lower()],
        cache_ttl_seconds=_seconds(ttl) if ttl is not None else None,
        client_batching=_SWITCH[(parameter(config, "client_batching") or "true").lower()],
    )


def _specs(entries: Sequence[Any]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            name=entry.name,
            datatype=cast("Datatype", datatype_name(entry.data_type)),
            dims=tuple(entry.dims),
            optional=bool(getattr(entry, "optional", False)),
        )
        for entry in entries
    )
