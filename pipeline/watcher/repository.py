"""The owners' model repository: which versions are whole, which are not, and why. Reads only.

    <repository>/<model>/config.pbtxt        optional for ONNX models
    <repository>/<model>/<version>/...       1, 2, 3 ...; model.onnx, model.py or what the backend asks for
    <repository>/<model>/sample.json         optional: a request with its expected answer
    <repository>/<model>/build.py            optional: `build(version_folder)` makes `parameters.built_files`

Other files beside the version folders are part of every version (Triton resolves label files there, and puts the
folder on the python backend's import path). Notes, scripts and names that begin with a dot never reach a server.

Source: Triton's `model_repository.md`.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.core.model_config import ConfigText, ModelConfigError, backend_of, findings, parameter, parse_config
from pipeline.errors import ModelRepositoryError
from pipeline.watcher.completion import completed
from pipeline.watcher.model_folder import (
    BUILD_NAME,
    CONFIG_NAME,
    SAMPLE_NAME,
    Fault,
    ModelFolder,
    RepositoryScan,
    VersionFolder,
)
from pipeline.watcher.version_checks import required_file, select_versions, version_faults

_MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_LIKE_A_VERSION = re.compile(r"[vV]?[-+]?[0-9][0-9._]*")
# Names that copying programs give to what is not complete yet; the last is rsync's, and Python's tempfile's.
_TEMPORARY = re.compile(
    r".*(~|\.(tmp|temp|part|partial|crdownload|filepart|swp))|\.tmp.*|\..+\.[A-Za-z0-9_]{6,8}", re.IGNORECASE
)
_HIDDEN = re.compile(r"\..*|__pycache__|.*\.pyc")
# Beside the version folders only; `configs` is for `--model-config-name`, and the serving copy has one configuration.
_NOTES = re.compile(rf"(README|LICENSE|NOTICE).*|.*\.md|configs|{re.escape(BUILD_NAME)}|{re.escape(SAMPLE_NAME)}")


def scan(path: Path) -> RepositoryScan:
    """Looks at every model folder. Blocks on the disk.

    Raises:
        ModelRepositoryError: the repository does not exist, is no folder, or cannot be read.
    """
    if not path.is_dir():
        raise ModelRepositoryError(path, "the model repository is no folder; PIPELINE_MODEL_REPOSITORY names it")
    if not os.access(path, os.R_OK | os.X_OK):
        raise ModelRepositoryError(path, "the model repository cannot be read by this user")
    faults: list[Fault] = []
    models: list[ModelFolder] = []
    for folder in sorted(path.iterdir()):
        if not folder.is_dir() or _TEMPORARY.fullmatch(folder.name) or _HIDDEN.fullmatch(folder.name):
            continue
        try:
            model = _scan_model(path.resolve(), folder, faults)
        except OSError as error:
            faults.append(Fault(Path(error.filename or folder), None, f"cannot be read: {error.strerror}"))
            continue
        if model is not None:
            models.append(model)
    return RepositoryScan(path, os.access(path, os.W_OK), tuple(models), tuple(dict.fromkeys(faults)))


def _scan_model(root: Path, folder: Path, faults: list[Fault]) -> ModelFolder | None:
    if not _MODEL_NAME.fullmatch(folder.name):
        faults.append(Fault(folder, None, "a model's name has letters, digits, '.', '_' and '-', at most 255"))
        return None
    config = None
    if (config_path := folder / CONFIG_NAME).exists():
        config = _read_config(config_path, faults)
        if config is None:
            return None
    shared, numbers = _sort_entries(root, folder, faults)
    if not numbers:
        faults.append(Fault(folder, None, "no version folder: 1, 2, 3 ..., without leading zeros"))
        return None
    model = ModelFolder(folder.name, folder, config, (), (), shared)
    whole = [version for number in numbers if (version := _scan_version(root, model, number, faults))]
    selected = select_versions(config.config if config else None, [version.number for version in whole])
    if config is not None:
        policy = config.config.version_policy
        faults += [
            Fault(config_path, config.lines.get("version_policy"), f"version_policy names {number}, which is not there")
            for number in policy.specific.versions
            if str(number) not in numbers
        ]
    return ModelFolder(folder.name, folder, config, tuple(whole), selected, shared) if whole else None


def _read_config(path: Path, faults: list[Fault]) -> ConfigText | None:
    try:
        config = parse_config(path.read_text(encoding="utf-8"))
    except ModelConfigError as error:
        faults.append(Fault(path, error.line, f"column {error.column}: {error.reason}" if error.line else error.reason))
        return None
    except UnicodeDecodeError as error:
        faults.append(Fault(path, None, f"is not UTF-8: {error.reason} at byte {error.start}"))
        return None
    if backend_of(config.config) in ("", "onnxruntime"):
        # The graph of a version may complete it, so it is judged with each version (version_faults).
        return config
    found = findings(completed(config, path.parent.name), path.parent.name, config.lines)
    faults += [Fault(path, finding.line, finding.reason) for finding in found]
    return None if found else config


def _sort_entries(root: Path, folder: Path, faults: list[Fault]) -> tuple[tuple[str, ...], list[str]]:
    """The files all versions share, and the version numbers in rising order."""
    shared: list[str] = []
    numbers: list[str] = []
    for entry in sorted(folder.iterdir()):
        name = entry.name
        if name == CONFIG_NAME or any(pattern.fullmatch(name) for pattern in (_TEMPORARY, _HIDDEN, _NOTES)):
            continue
        if entry.is_dir() and _VERSION.fullmatch(name):
            numbers.append(name)
        elif _LIKE_A_VERSION.fullmatch(name):
            faults.append(Fault(entry, None, "version folders are positive integers without leading zeros"))
        else:
            inside = [entry] if not entry.is_dir() or entry.is_symlink() else list(_walk(entry))
            shared += [path.relative_to(folder).as_posix() for path in inside if not _refused(root, path, faults)]
    return tuple(shared), sorted(numbers, key=int)


def _scan_version(root: Path, model: ModelFolder, number: str, faults: list[Fault]) -> VersionFolder | None:
    folder = model.path / number
    before = len(faults)
    if folder.is_symlink():
        faults.append(Fault(folder, None, "a version folder cannot be a link: its content could change unseen"))
        return None
    files = [path for path in _walk(folder) if not _refused(root, path, faults)]
    names = tuple(path.relative_to(folder).as_posix() for path in files)
    missing = _missing_built_files(model, names)
    built = missing if model.build_script else ()
    if missing and not built:
        faults.append(Fault(folder / missing[0], None, f"is missing, and there is no {BUILD_NAME} to make it"))
    config = model.config.config if model.config else None
    required = required_file(config)
    if required and not any(name == required or name.startswith(f"{required}/") for name in (*names, *missing)):
        backend = backend_of(config) if config else ""
        asked = f"backend {backend!r} needs it" if backend else f"without it, {CONFIG_NAME} must name a backend"
        faults.append(Fault(folder / required, None, f"is missing: {asked}"))
    if len(faults) == before and not built:
        faults += version_faults(model, folder)
    return VersionFolder(number, folder, names, built) if len(faults) == before else None


def _missing_built_files(model: ModelFolder, present: tuple[str, ...]) -> tuple[str, ...]:
    stated = parameter(model.config.config, "built_files") if model.config else None
    return tuple(name for part in (stated or "").split(",") if (name := part.strip()) and name not in present)


def _walk(folder: Path) -> Iterator[Path]:
    """Every file and link below a folder, except what never reaches a server."""
    for entry in sorted(folder.iterdir()):
        if _HIDDEN.fullmatch(entry.name) and not _TEMPORARY.fullmatch(entry.name):
            continue
        if entry.is_dir() and not entry.is_symlink():
            yield from _walk(entry)
        else:
            yield entry


def _refused(root: Path, path: Path, faults: list[Fault]) -> bool:
    reason = None
    if _TEMPORARY.fullmatch(path.name):
        reason = "a temporary name: the copy is not complete"
    elif path.is_symlink() and not path.resolve().is_relative_to(root):
        reason = f"a link that leads out of the repository, to {path.readlink()}"
    elif not path.is_file():
        reason = "neither a file nor a link to one"
    if reason is not None:
        faults.append(Fault(path, None, reason))
    return reason is not None
