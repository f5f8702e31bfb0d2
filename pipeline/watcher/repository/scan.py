"""The owners' model repository: which versions are whole, which are not, and why. Reads only.

    <repository>/<model>/config.pbtxt           optional for ONNX models
    <repository>/<model>/<version>/...          1, 2, 3 ...; model.onnx, model.py or what the backend asks for
    <repository>/<model>/<version>/MANIFEST.json    optional: what is in the version (manifest.py)
    <repository>/<model>/sample.json            optional: a request with its expected answer (sample.py)
    <repository>/<model>/build.py               optional: `build(version_folder)` makes `parameters.built_files`

Other files beside the version folders are part of every version (Triton resolves label files there, and puts the
folder on the python backend's import path). Notes, scripts and names that begin with a dot never reach a server.

Source: Triton's `model_repository.md`.
"""

import os
import stat
from pathlib import Path

from pipeline.core.model_config import CONFIG_BYTES_MAX, ConfigText, ModelConfigError, findings, parse_config
from pipeline.errors import ModelRepositoryError
from pipeline.watcher.repository.completion import completed
from pipeline.watcher.repository.model_folder import (
    BUILD_NAME,
    CONFIG_NAME,
    SAMPLE_NAME,
    Fault,
    ModelFolder,
    RepositoryScan,
)
from pipeline.watcher.repository.names import (
    beside_versions_fault,
    is_hidden,
    is_left_out,
    is_temporary,
    is_version,
    model_name_fault,
)
from pipeline.watcher.repository.sample import SampleError, read_sample
from pipeline.watcher.repository.version_checks import (
    REQUIRED_FILE,
    chosen_backend,
    completed_config,
    config_files_missing,
    sample_faults,
    select_versions,
)
from pipeline.watcher.repository.version_scan import (
    QuietTime,
    ScannedVersion,
    may,
    scan_version,
    seen,
    unsafe,
    walk,
)

# Triton's repository index, and one look of ours, list all of them; a folder with more is no model repository.
MODELS_MAX = 10_000
VERSIONS_MAX = 1_000


def check_repository(path: Path) -> None:
    """Refuses a repository that a process should not start with.

    Raises:
        ModelRepositoryError: it is not there, no folder, or this user may not read it or write into it.
    """
    if not path.is_dir():
        found = "a file" if path.exists() else "not there"
        raise ModelRepositoryError(
            path, f"the model repository is {found}, PIPELINE_MODEL_REPOSITORY is to name a folder of models"
        )
    for right, mode in (("read", os.R_OK | os.X_OK), ("write into", os.W_OK)):
        if not may(path, mode):
            reason = f"this user may not {right} the model repository that PIPELINE_MODEL_REPOSITORY names"
            raise ModelRepositoryError(path, reason)


def scan(path: Path, quiet: QuietTime | None = None) -> RepositoryScan:
    """Looks at every model folder. Blocks on the disk.

    Args:
        path: the repository.
        quiet: what earlier looks saw; what changes is unfinished. None: everything is taken for complete, except what
            its own manifest or its names say of it.

    Raises:
        ModelRepositoryError: the repository does not exist, is no folder, or cannot be read.
    """
    if not path.is_dir():
        raise ModelRepositoryError(path, "the model repository is no folder; PIPELINE_MODEL_REPOSITORY names it")
    if not may(path, os.R_OK | os.X_OK):
        raise ModelRepositoryError(path, "the model repository cannot be read by this user")
    faults: list[Fault] = []
    models: list[ModelFolder] = []
    names: set[str] = set()
    try:
        folders = _folders(path, faults)
    except OSError as error:
        raise ModelRepositoryError(path, f"the model repository cannot be read: {error.strerror}") from None
    for folder in folders:
        names.add(folder.name)
        try:
            model = scan_model(path, folder, faults, quiet)
        except (OSError, ModelRepositoryError) as error:
            faults.append(_unreadable(folder, error))
            continue
        if model is not None:
            models.append(model)
    if quiet is not None:
        quiet.forget_others()
    return RepositoryScan(path, may(path, os.W_OK), tuple(models), tuple(dict.fromkeys(faults)), frozenset(names))


def _unreadable(folder: Path, error: OSError | ModelRepositoryError) -> Fault:
    if isinstance(error, ModelRepositoryError):
        return Fault(Path(str(error.path)), None, error.reason)
    return Fault(Path(os.fsdecode(error.filename or folder)), None, f"cannot be read: {error.strerror}")


def _folders(path: Path, faults: list[Fault]) -> list[Path]:
    """The folders that are models by their names; the rest is told where it looks like one that was misplaced."""
    found: list[Path] = []
    with os.scandir(path) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        if is_temporary(entry.name) or is_hidden(entry.name):
            continue
        place = path / entry.name
        if entry.is_symlink():
            faults.append(Fault(place, None, "a model folder cannot be a link: its content could change unseen"))
        elif not entry.is_dir(follow_symlinks=False):
            if entry.name in (*REQUIRED_FILE.values(), CONFIG_NAME) or entry.name.endswith(".onnx"):
                faults.append(Fault(place, None, "lies beside the models: <model>/<version>/model.onnx is expected"))
        elif (reason := model_name_fault(entry.name)) is not None:
            faults.append(Fault(place, None, reason))
        else:
            found.append(place)
    if len(found) > MODELS_MAX:
        raise ModelRepositoryError(path, f"has {len(found)} folders, a model repository has {MODELS_MAX} at most")
    return found


def scan_model(
    repository: Path, folder: Path, faults: list[Fault], quiet: QuietTime | None = None
) -> ModelFolder | None:
    """One model folder; None where a fault keeps all of it from being served.

    Raises:
        ModelRepositoryError: it has more than a model can have.
        OSError: it cannot be read.
    """
    root = Path(os.path.realpath(repository))
    model = read_model(root, folder, faults)
    if model is None:
        return None
    model, numbers = _sort_entries(root, model, faults)
    if not numbers:
        faults.append(Fault(folder, None, "no version folder: 1, 2, 3 ..., without leading zeros"))
        return None
    around = {f"../{name}": seen(folder / name) for name in _own_files(model)} if quiet else {}
    scanned = [scan_version(root, model, number, faults, quiet, around) for number in numbers]
    return _judged(model, scanned, numbers, faults)


def _own_files(model: ModelFolder) -> list[str]:
    names = (CONFIG_NAME, SAMPLE_NAME, BUILD_NAME)
    return [*model.shared_files, *(name for name in names if (model.path / name).is_file())]


def _judged(
    model: ModelFolder, scanned: list[ScannedVersion], numbers: list[str], faults: list[Fault]
) -> ModelFolder | None:
    whole = [each.version for each in scanned if each.version is not None]
    unfinished = [each.unfinished for each in scanned if each.unfinished is not None]
    config = model.config.config if model.config else None
    if model.config is not None:
        faults += [
            Fault(
                model.path / CONFIG_NAME,
                model.config.lines.get("version_policy.specific.versions", model.config.lines.get("version_policy")),
                f"version_policy names {number}, which is not there",
            )
            for number in model.config.config.version_policy.specific.versions
            if str(number) not in numbers
        ]
    if not whole and not unfinished:
        return None
    if whole and model.sample is not None and not whole[-1].built_files:
        found = sample_faults(model, completed_config(model, whole[-1].path))
        faults += found
        if found:
            return None
    selected = select_versions(config, [version.number for version in whole])
    return ModelFolder(
        model.name, model.path, model.config, tuple(whole), selected, model.shared_files, tuple(unfinished)
    )


def read_model(root: Path, folder: Path, faults: list[Fault]) -> ModelFolder | None:
    """What a model folder says of itself, without its versions; None where that is at fault.

    Raises:
        OSError: it cannot be read.
    """
    before = len(faults)
    for name, bytes_max in ((CONFIG_NAME, CONFIG_BYTES_MAX), (SAMPLE_NAME, 1 << 28), (BUILD_NAME, 1 << 24)):
        path = folder / name
        if not os.path.lexists(path):
            continue
        if (reason := unsafe(root, path)) is not None:
            faults.append(Fault(path, None, reason))
        elif (size := path.stat().st_size) > bytes_max:
            faults.append(Fault(path, None, f"has {size} bytes, {bytes_max} are the most"))
    if len(faults) > before:
        return None
    config = None
    if (config_path := folder / CONFIG_NAME).exists():
        config = _read_config(config_path, faults)
        if config is None:
            return None
    model = ModelFolder(folder.name, folder, config, (), ())
    if model.sample is not None:
        try:
            read_sample(model.sample, folder.name)
        except SampleError as error:
            faults.append(Fault(model.sample, error.line, error.reason))
            return None
    found = config_files_missing(model)
    faults += found
    return None if found else model


def _read_config(path: Path, faults: list[Fault]) -> ConfigText | None:
    try:
        config = parse_config(path.read_text(encoding="utf-8"))
    except ModelConfigError as error:
        faults.append(
            Fault(path, error.line, f"column {error.column}: {error.reason}" if error.column else error.reason)
        )
        return None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        faults.append(Fault(path, line, f"is not UTF-8: {error.reason} at byte {error.start}"))
        return None
    backend = chosen_backend(config.config, ())
    if backend in ("", "onnxruntime"):
        # The files of a version complete it, so it is judged with each version (version_faults).
        return config
    found = findings(completed(config, path.parent.name), path.parent.name, config.lines)
    faults += [Fault(path, finding.line, finding.reason) for finding in found]
    return None if found else config


def shared_files(root: Path, model: ModelFolder, faults: list[Fault]) -> ModelFolder:
    """A model with the files that all of its versions share.

    Raises:
        ModelRepositoryError: it has more than a model can have.
        OSError: its folder cannot be read.
    """
    return _sort_entries(root, model, faults)[0]


def _sort_entries(root: Path, model: ModelFolder, faults: list[Fault]) -> tuple[ModelFolder, list[str]]:
    """The model with its shared files, and the version numbers in rising order."""
    folder = model.path
    shared: list[str] = []
    numbers: list[str] = []
    for entry in sorted(folder.iterdir()):
        name = entry.name
        if is_left_out(name):
            continue
        is_folder = stat.S_ISDIR(entry.lstat().st_mode)
        if is_version(name) and (entry.is_symlink() or is_folder):
            numbers.append(name)
        elif (reason := beside_versions_fault(name)) is not None:
            faults.append(Fault(entry, None, reason))
        else:
            for path in walk(entry) if is_folder else [entry]:
                if (reason := unsafe(root, path)) is not None:
                    faults.append(Fault(path, None, reason))
                else:
                    shared.append(path.relative_to(folder).as_posix())
    if len(numbers) > VERSIONS_MAX:
        raise ModelRepositoryError(folder, f"has {len(numbers)} versions, a model has {VERSIONS_MAX} at most")
    sorted_model = ModelFolder(model.name, folder, model.config, (), (), tuple(shared))
    return sorted_model, sorted(numbers, key=int)
