"""One version against its configuration, its own graph, and the rules of its backend."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from pipeline.core.model_config import (
    ConfigText,
    ModelConfig,
    backend_of,
    findings,
    is_inside,
    parameter,
    signature,
    stated_batching,
)
from pipeline.core.text_lines import indexed, line_of
from pipeline.errors import ModelRepositoryError
from pipeline.watcher.repository.completion import completed, graph_findings
from pipeline.watcher.repository.model_folder import CONFIG_NAME, Fault, ModelFolder
from pipeline.watcher.repository.onnx_graph import read_graph
from pipeline.watcher.repository.sample import read_sample

# What the backend opens where `default_model_filename` is silent. A python model without it hangs Triton 2.51 at its
# load for ever, so this is checked before any server sees the folder.
REQUIRED_FILE = {
    "onnxruntime": "model.onnx",
    "python": "model.py",
    "pytorch": "model.pt",
    "tensorrt": "model.plan",
    "openvino": "model.xml",
    "vllm": "model.json",
}


def required_file(config: ModelConfig | None, names: Collection[str] = ()) -> str:
    """The file that the backend opens in a version folder; empty where Triton leaves it to the backend.

    Args:
        config: what the owner wrote; None for nothing.
        names: the version's files, which speak for a backend where the owner does not.
    """
    backend = chosen_backend(config, names) or "onnxruntime"
    return str(config.default_model_filename if config else "") or REQUIRED_FILE.get(backend, "")


def chosen_backend(config: ModelConfig | None, names: Collection[str]) -> str:
    """The backend the owner names, else the one whose file is there; empty for none, or several."""
    if config is not None and (config.backend or config.platform):
        return backend_of(config) or str(config.platform)
    tops = {name.partition("/")[0] for name in names}
    found = [backend for backend, file in REQUIRED_FILE.items() if file in tops and backend != "vllm"]
    return found[0] if len(found) == 1 else ""


def completed_config(model: ModelFolder, version_folder: Path) -> ModelConfig:
    """The model's configuration, completed from the ONNX file in a version folder that has all its files.

    Raises:
        ModelRepositoryError: the ONNX file cannot be read.
        OSError: likewise.
    """
    source = model.config
    names = [entry.name for entry in version_folder.iterdir()]
    backend = chosen_backend(source.config if source else None, names) or "onnxruntime"
    graph = read_graph(_onnx_path(source, version_folder)) if backend == "onnxruntime" else None
    return completed(source, model.name, graph, backend)


def _onnx_path(source: ConfigText | None, version_folder: Path) -> Path:
    path = version_folder / (str(source.config.default_model_filename if source else "") or "model.onnx")
    # Triton takes a folder of that name too, for a graph with its weights beside it.
    return path / "model.onnx" if path.is_dir() else path


def version_faults(model: ModelFolder, version_folder: Path, config: ModelConfig | None = None) -> list[Fault]:
    """What is wrong with a version that has all its files, by its own graph and a configuration.

    Args:
        model: the owner's folder.
        version_folder: the version's files, wherever they are.
        config: a completed configuration that several versions share; absent: completed from this version.
    """
    try:
        if config is None:
            config = completed_config(model, version_folder)
        lines = model.config.lines if model.config else {}
        config_path = model.path / CONFIG_NAME
        found = [Fault(config_path, each.line, each.reason) for each in findings(config, model.name, lines)]
        if not found and backend_of(config) == "onnxruntime":
            path = _onnx_path(model.config, version_folder)
            # What the owner wrote is told where he wrote it, the rest by the file that says otherwise.
            found = [
                Fault(config_path if each.line else path, each.line, each.reason)
                for each in graph_findings(config, read_graph(path), lines)
            ]
    except ModelRepositoryError as error:
        return [Fault(Path(str(error.path)), None, error.reason)]
    return found


def config_files_missing(model: ModelFolder) -> list[Fault]:
    """The files that a configuration names beside the version folders, and that are not there."""
    if model.config is None:
        return []
    config, lines = model.config.config, model.config.lines
    named = [
        (f"{indexed('output', index)}.label_filename", entry.label_filename)
        for index, entry in enumerate(config.output)
        if entry.label_filename
    ]
    named += [
        (f"{indexed('model_warmup', index)}.inputs", f"warmup/{entry.input_data_file}")
        for index, warmup in enumerate(config.model_warmup)
        for _, entry in sorted(warmup.inputs.items())
        if entry.input_data_file
    ]
    return [
        Fault(model.path / CONFIG_NAME, line_of(lines, path), f"names the file {name!r}, which is not there")
        for path, name in named
        if not (is_inside(name) and (model.path / name).is_file())
    ]


def sample_faults(model: ModelFolder, config: ModelConfig) -> list[Fault]:
    """Where a model's sample is no request that its configuration takes."""
    if model.sample is None:
        return []
    sample = read_sample(model.sample, model.name)
    return [Fault(model.sample, line, reason) for line, reason in sample.contradictions(signature(config))]


def select_versions(config: ModelConfig | None, numbers: list[str]) -> tuple[str, ...]:
    """The versions the owner's version_policy names, in rising order; the highest where it is silent, as in Triton."""
    numbers = sorted(numbers, key=int)
    policy = config.version_policy if config is not None else None
    choice = policy.WhichOneof("policy_choice") if policy is not None else None
    if policy is None or choice is None:
        return tuple(numbers[-1:])
    if choice == "all":
        return tuple(numbers)
    if choice == "latest":
        return tuple(numbers[-policy.latest.num_versions :])
    return tuple(number for number in numbers if int(number) in policy.specific.versions)


def config_differences(ours: ModelConfig, theirs: ModelConfig) -> list[str]:
    """Where a server's own configuration answers other requests than ours, or answers them otherwise.

    A server fills in what we leave out (file names, instances' names); that is no difference.
    """
    found: list[str] = []
    if ours.max_batch_size != theirs.max_batch_size:
        found.append(f"max_batch_size is {theirs.max_batch_size} there, {ours.max_batch_size} here")
    for name in ("backend", "platform", "default_model_filename"):
        mine, its = getattr(ours, name), getattr(theirs, name)
        if mine and mine != its:
            found.append(f"{name} is {its!r} there, {mine!r} here")
    if ours.model_transaction_policy.decoupled != theirs.model_transaction_policy.decoupled:
        found.append("decoupled differs")
    found += _scheduling_differences(ours, theirs)
    for name in sorted(ours.parameters):
        mine, its = parameter(ours, name), parameter(theirs, name)
        if mine != its:
            found.append(f"parameter {name} is {its!r} there, {mine!r} here")
    for kind, mine, its in (("input", ours.input, theirs.input), ("output", ours.output, theirs.output)):
        here, there = ({entry.name: _form(entry) for entry in side} for side in (mine, its))
        found += [
            f"{kind} {name!r} differs" for name in sorted(here.keys() | there) if here.get(name) != there.get(name)
        ]
    return found


def _scheduling_differences(ours: ModelConfig, theirs: ModelConfig) -> Iterator[str]:
    if theirs.response_cache.enable:
        yield "response_cache is on there: its key leaves out shapes and parameters, it answers wrongly"
    if ours.HasField("sequence_batching") != theirs.HasField("sequence_batching"):
        yield "sequence_batching differs"
    alone = stated_batching(ours) is False and not ours.HasField("dynamic_batching")
    if alone and theirs.HasField("dynamic_batching"):
        yield "dynamic_batching is on there, and off here (--disable-auto-complete-config keeps a server from it)"
    here, there = ({group.kind for group in side.instance_group} for side in (ours, theirs))
    if 0 not in here and here != there:  # 0 is KIND_AUTO: the server chooses
        yield "instances are on other devices there than here"


def _form(entry: Any) -> tuple[object, ...]:
    reshape = tuple(entry.reshape.shape) if entry.HasField("reshape") else None
    return entry.data_type, tuple(entry.dims), reshape, bool(getattr(entry, "optional", False))
