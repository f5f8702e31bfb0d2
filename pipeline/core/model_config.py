"""`config.pbtxt`: read strictly, checked for what Triton would only find at a load, completed where it is silent.

Text in, values out; nothing here touches a file.

    parse_config(text) ──> ConfigText ──> watcher/repository/completion.py ──> findings(...) ──> signature(...)
                                                                └──> serving_config(versions) ──> config_text(...)

Source: Triton's `model_config.proto` (tritonclient carries it) and its `model_configuration.md`.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from blake3 import blake3
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from pipeline.core.text_lines import indexed, line_of, pbtxt_lines
from pipeline.errors import PipelineError
from schemas.registry import ModelSignature, TensorSpec
from schemas.tensor import Datatype

ModelConfig = Any
"""A `model_config_pb2.ModelConfig`; tritonclient ships no types."""

# What a serving configuration notes of the neighbour check (watcher/fleet/neighbour_check.py).
DEPENDENT_VERSIONS = "depends_on_neighbours"
# What a serving configuration notes of the tree it lies in: a server that shows it has loaded that very tree.
CONTENT_MARK = "served_content"
# The parameters that speak to this pipeline and not to the model: they change no answer.
PIPELINE_PARAMETERS = frozenset(
    {"cache", "cache_ttl_seconds", "client_batching", "promotion", "latency_check", DEPENDENT_VERSIONS, CONTENT_MARK}
)

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
        super().__init__(f"{line}:{column or 1}: {reason}" if line else reason)
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
    """A parsed configuration, and the line of each field it states (proto3 cannot tell 0 from silence).

    `lines` has the paths of text_lines.py: `max_batch_size`, `input[1].dims`, `parameters{cache}`.
    """

    config: ModelConfig
    lines: Mapping[str, int] = field(default_factory=dict)


# A configuration of 300 tensors has 20 kB. What has more than this is something else under its name.
CONFIG_BYTES_MAX = 1 << 20


def parse_config(text: str) -> ConfigText:
    """Reads a `config.pbtxt`; an unknown field, a wrong type, a field or a map's key given twice is an error.

    Raises:
        ModelConfigError: with line and column.
    """
    if len(text) > CONFIG_BYTES_MAX:
        raise ModelConfigError(
            None, None, f"has {len(text)} characters, a configuration has {CONFIG_BYTES_MAX} at most"
        )
    config = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        line, column = error.GetLine(), error.GetColumn()
        # The parser's text begins with the place again: "3:5 : 'input {': Message type ...".
        reason = re.sub(r"^\d+:\d+ : ", "", str(error))
        raise ModelConfigError(line, column, reason) from None
    found = pbtxt_lines(text)
    for key, line in found.repeated_keys:
        raise ModelConfigError(line, None, f"key {key!r} is given twice")
    return ConfigText(config, found.lines)


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


def with_content_mark(config: ModelConfig, content: str) -> ModelConfig:
    """The serving configuration with a mark of itself and of what is served with it; any difference is another mark.

    Triton hands out a configuration as it loaded it, so a mark that it shows says what it serves. It is no part of a
    fingerprint, and no difference between two configurations.

    Args:
        config: a serving configuration; a mark that it has already counts for nothing.
        content: everything else that is served, as text: the same content has the same text.
    """
    marked = without_content_mark(config)
    mark = blake3(f"{config_text(marked)}\0{content}".encode()).hexdigest()
    marked.parameters[CONTENT_MARK].string_value = mark
    return marked


def without_content_mark(config: ModelConfig) -> ModelConfig:
    """The same configuration without its mark."""
    bare = model_config_pb2.ModelConfig()
    bare.CopyFrom(config)
    bare.parameters.pop(CONTENT_MARK, None)
    return bare


def content_mark(config: ModelConfig) -> str | None:
    """The mark that a configuration has."""
    return parameter(config, CONTENT_MARK)


def config_text(config: ModelConfig) -> str:
    """The configuration as text: the same configuration gives the same bytes."""
    return str(text_format.MessageToString(config, as_utf8=True))


# --- What Triton finds only at a load ---------------------------------------------------------------------------------


def findings(config: ModelConfig, model_name: str, lines: Mapping[str, int] | None = None) -> list[Finding]:
    """Everything in a completed configuration that Triton, or this pipeline, would refuse, each with its line."""
    checks = (
        *_identity(config, model_name), *_tensors(config), *_scheduling(config), *_files(config), *_parameters(config)
    )  # fmt: skip
    return [Finding(reason, line_of(lines or {}, path)) for path, reason in checks]


def _identity(config: ModelConfig, model_name: str) -> Iterator[tuple[str, str]]:
    if config.name != model_name:
        yield "name", f"name is {config.name!r}, the folder is {model_name!r}: Triton wants them equal"
    if not config.backend and not config.platform:
        yield "backend", 'a backend is missing, for example backend: "onnxruntime"'
    elif config.platform == "ensemble" or config.HasField("ensemble_scheduling"):
        path = "platform" if config.platform else "ensemble_scheduling"
        yield path, "ensembles are not served: their answers change with other models' versions"
    elif not config.backend and not backend_of(config):
        yield "platform", f"platform {config.platform!r} is unknown; known: {', '.join(BACKEND_OF_PLATFORM)}"
    elif config.backend and config.platform and BACKEND_OF_PLATFORM.get(config.platform) != config.backend:
        yield "platform", f"platform {config.platform!r} does not belong to backend {config.backend!r}"


def _tensors(config: ModelConfig) -> Iterator[tuple[str, str]]:
    for kind, entries in (("input", config.input), ("output", config.output)):
        if not entries:
            yield kind, f"no {kind} is declared"
        names = [entry.name for entry in entries]
        for index, entry in enumerate(entries):
            path = indexed(kind, index)
            if names.index(entry.name) < index:
                yield f"{path}.name", f"{kind} {entry.name!r} is declared {names.count(entry.name)} times"
            for part, reason in _tensor(entry, batched=config.max_batch_size > 0):
                yield f"{path}.{part}", f"{kind} {entry.name!r}: {reason}"


def _tensor(entry: Any, *, batched: bool) -> Iterator[tuple[str, str]]:
    if not entry.name:
        yield "name", "name is missing"
    if entry.data_type not in model_config_pb2.DataType.values() or not entry.data_type:
        yield "data_type", "data_type is missing or unknown"
    if not entry.dims:
        yield "dims", "dims are missing"
    for index, size in enumerate(entry.dims):
        if size < 1 and size != -1:
            path = indexed("dims", index)
            yield path, f"dims are {list(entry.dims)}: each is at least 1, or -1 for any size"
            break
    if entry.HasField("reshape"):
        shape = list(entry.reshape.shape)
        if not shape and not batched:
            yield "reshape", "an empty reshape needs a batch axis"
        if -1 not in entry.dims and -1 not in shape and math.prod(shape) != math.prod(entry.dims):
            yield "reshape.shape", f"reshape {shape} has not as many elements as dims {list(entry.dims)}"
    if getattr(entry, "allow_ragged_batch", False) and not batched:
        yield "allow_ragged_batch", "allow_ragged_batch needs a max_batch_size above 0"
    # Enumerated in model_config.proto: 0 none, 1 NHWC, 2 NCHW.
    if getattr(entry, "format", 0) and len(entry.dims) != 3:
        yield "format", f"a format of images needs 3 dims, here are {list(entry.dims)}"


def _scheduling(config: ModelConfig) -> Iterator[tuple[str, str]]:
    largest = config.max_batch_size
    if largest < 0:
        yield "max_batch_size", f"max_batch_size is {largest}: it is 0 for a model without a batch axis, or more"
    for index, size in enumerate(config.dynamic_batching.preferred_batch_size):
        if not 0 < size <= max(largest, 0):
            path = indexed("dynamic_batching.preferred_batch_size", index)
            yield path, f"preferred_batch_size {size} is not in 1 to max_batch_size ({largest})"
    levels, chosen = config.dynamic_batching.priority_levels, config.dynamic_batching.default_priority_level
    if levels and not 1 <= chosen <= levels:
        path = "dynamic_batching.default_priority_level"
        yield path, f"default_priority_level is {chosen}, with {levels} levels it is 1 to {levels}"
    for index, group in enumerate(config.instance_group):
        if group.count < 0:
            yield (
                f"{indexed('instance_group', index)}.count",
                f"instance_group count is {group.count}, it is at least 1",
            )
        if group.gpus and group.kind == model_config_pb2.ModelInstanceGroup.KIND_CPU:
            yield f"{indexed('instance_group', index)}.gpus", f"KIND_CPU with gpus {list(group.gpus)}: one of the two"
    for index, warmup in enumerate(config.model_warmup):
        if warmup.batch_size > max(largest, 1):
            path = f"{indexed('model_warmup', index)}.batch_size"
            yield path, f"warm-up batch_size is {warmup.batch_size}, max_batch_size is {largest}"
    policy = config.version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "latest" and policy.latest.num_versions < 1:
        path = "version_policy.latest.num_versions"
        yield path, "latest needs num_versions of at least 1: Triton would serve nothing"
    if choice == "specific" and (not policy.specific.versions or min(policy.specific.versions) < 1):
        path = "version_policy.specific.versions"
        yield path, f"specific versions are {list(policy.specific.versions)}: name at least one, from 1 up"


def _files(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Names of files that Triton joins to the model's folder: none may lead out of it."""
    named = [("default_model_filename", config.default_model_filename)]
    named += [(f"cc_model_filenames{{{key}}}", name) for key, name in sorted(config.cc_model_filenames.items())]
    named += [(f"{indexed('output', index)}.label_filename", entry.label_filename)
              for index, entry in enumerate(config.output)]  # fmt: skip
    for path, name in named:
        if name and not is_inside(name):
            yield path, f"names the file {name!r}: a plain path inside the folder is expected"
    for name in built_files(config):
        if not is_inside(name):
            yield "parameters{built_files}", f"parameter built_files names {name!r}: files in the version folder only"


def is_inside(name: str) -> bool:
    """Whether a relative path stays in its folder, by its letters."""
    return (
        not name.startswith("/") and all(part not in ("", ".", "..") for part in name.split("/")) and "\0" not in name
    )


def _parameters(config: ModelConfig) -> Iterator[tuple[str, str]]:
    for name in ("cache", "client_batching", "latency_check"):
        if (word := parameter(config, name)) is not None and word.lower() not in _SWITCH:
            yield f"parameters{{{name}}}", f"parameter {name} is {word!r}: true, false, on or off"
    if (word := parameter(config, "promotion")) not in (None, "auto", "manual"):
        yield "parameters{promotion}", f"parameter promotion is {word!r}: auto or manual"
    word = parameter(config, "cache_ttl_seconds")
    if word is not None and not _seconds(word):
        yield "parameters{cache_ttl_seconds}", f"parameter cache_ttl_seconds is {word!r}: a number above 0"


# --- What the rest of the pipeline needs to know ----------------------------------------------------------------------


def parameter(config: ModelConfig, name: str) -> str | None:
    """A parameter's text, or None."""
    return str(config.parameters[name].string_value) if name in config.parameters else None


def built_files(config: ModelConfig) -> tuple[str, ...]:
    """The files of a version that its build step makes."""
    return tuple(name for part in (parameter(config, "built_files") or "").split(",") if (name := part.strip()))


def stated_batching(config: ModelConfig) -> bool | None:
    """What the owner says about batches of several requests (`client_batching`); None: he leaves it to the pipeline."""
    word = parameter(config, "client_batching")
    return _SWITCH[word.lower()] if word is not None else None


def batches_requests(config: ModelConfig) -> bool:
    """Whether requests of several callers may meet in one run: joined before they leave, or by the server."""
    if config.max_batch_size < 2:
        return False
    return stated_batching(config) is not False or config.HasField("dynamic_batching")


def without_batching(config: ModelConfig, dependent: Iterable[str]) -> ModelConfig:
    """The same configuration, with every request on its own: no joining here, and none by the server.

    Neither is part of a fingerprint (fingerprint.py): stored answers stay valid.

    Args:
        config: a completed configuration.
        dependent: the versions whose answers depend on their neighbours; they are noted in it.
    """
    alone = model_config_pb2.ModelConfig()
    alone.CopyFrom(config)
    alone.parameters["client_batching"].string_value = "off"
    alone.parameters[DEPENDENT_VERSIONS].string_value = ",".join(sorted(dependent, key=int))
    alone.ClearField("dynamic_batching")
    return alone


def dependent_versions(config: ModelConfig) -> frozenset[str]:
    """The versions that a serving configuration notes as depending on their neighbours."""
    return frozenset(filter(None, (parameter(config, DEPENDENT_VERSIONS) or "").split(",")))


def promotes(config: ModelConfig) -> bool:
    """Whether a new version becomes the default by itself, once it has passed its checks."""
    return parameter(config, "promotion") != "manual"


def checks_latency(config: ModelConfig) -> bool:
    """Whether a version that is much slower than the default is turned away."""
    return _SWITCH[(parameter(config, "latency_check") or "on").lower()]


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
        client_batching=stated_batching(config) is not False,
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
