"""One version against its configuration, its own graph, and the rules of its backend."""

from pathlib import Path

from pipeline.core.model_config import ConfigText, ModelConfig, backend_of, findings
from pipeline.errors import ModelRepositoryError
from pipeline.watcher.completion import completed, graph_findings
from pipeline.watcher.model_folder import CONFIG_NAME, Fault, ModelFolder
from pipeline.watcher.onnx_graph import read_graph

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


def required_file(config: ModelConfig | None) -> str:
    """The file that the backend opens in a version folder; empty where Triton leaves it to the backend."""
    if config is None or not (config.backend or config.platform):
        return REQUIRED_FILE["onnxruntime"]
    return str(config.default_model_filename) or REQUIRED_FILE.get(backend_of(config), "")


def completed_config(model: ModelFolder, version_folder: Path) -> ModelConfig:
    """The model's configuration, completed from the ONNX file in a version folder that has all its files.

    Raises:
        ModelRepositoryError: the ONNX file cannot be read.
        OSError: likewise.
    """
    source = model.config
    if source is not None and backend_of(source.config) not in ("", "onnxruntime"):
        return completed(source, model.name)
    return completed(source, model.name, read_graph(_onnx_path(source, version_folder)))


def _onnx_path(source: ConfigText | None, version_folder: Path) -> Path:
    path = version_folder / required_file(source.config if source else None)
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
            found = [Fault(path, None, reason) for reason in graph_findings(config, read_graph(path))]
    except ModelRepositoryError as error:
        return [Fault(Path(str(error.path)), None, error.reason)]
    return found


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
    """Where a server's own configuration answers other requests than ours."""
    found: list[str] = []
    if ours.max_batch_size != theirs.max_batch_size:
        found.append(f"max_batch_size is {theirs.max_batch_size} there, {ours.max_batch_size} here")
    if ours.model_transaction_policy.decoupled != theirs.model_transaction_policy.decoupled:
        found.append("decoupled differs")
    for kind, mine, its in (("input", ours.input, theirs.input), ("output", ours.output, theirs.output)):
        here, there = ({entry.name: (entry.data_type, tuple(entry.dims)) for entry in side} for side in (mine, its))
        found += [
            f"{kind} {name!r} differs" for name in sorted(here.keys() | there) if here.get(name) != there.get(name)
        ]
    return found
