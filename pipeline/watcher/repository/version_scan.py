"""One version folder of the repository: complete, whole, or at fault. Reads only."""

import os
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.core.completeness import FileSeen, Look, Moment, awaited, manifest_gap, next_look
from pipeline.core.model_config import built_files
from pipeline.errors import ModelRepositoryError
from pipeline.watcher.repository.manifest import read_manifest, wrong_content
from pipeline.watcher.repository.model_folder import (
    BUILD_NAME,
    CONFIG_NAME,
    Fault,
    ModelFolder,
    UnfinishedVersion,
    VersionFolder,
)
from pipeline.watcher.repository.names import file_name_fault, is_left_out_of_version, is_temporary
from pipeline.watcher.repository.version_checks import chosen_backend, required_file, version_faults

# A model of 70 billion parameters in FP32 has 280 GB, in a few hundred files.
FILES_MAX = 10_000
DEPTH_MAX = 16
VERSION_BYTES_MAX = 1 << 40


@dataclass(slots=True)
class QuietTime:
    """What earlier looks saw of each version: what still changes is not complete.

    Args:
        quiet_s: how long nothing may have changed, in seconds.
        now: the wall clock, Unix seconds, as the repository's file system has it.
        steady: a clock that nobody sets, in seconds: how long looks agreed is counted by it.
    """

    quiet_s: float
    now: Callable[[], float]
    steady: Callable[[], float] = time.monotonic
    _looks: dict[Path, Look] = field(default_factory=dict)
    _current: dict[Path, Look] = field(default_factory=dict)

    def look(self, folder: Path, files: Mapping[str, FileSeen]) -> str | None:
        """Remembers what is in a version's folder now; what is awaited before it is complete."""
        now, last = Moment(self.now(), self.steady()), self._looks.get(folder)
        self._current[folder] = next_look(files, last, now)
        return awaited(files, last, now, self.quiet_s)

    def forget_others(self) -> None:
        """Ends a look: versions that it did not meet are gone."""
        self._looks, self._current = self._current, {}


@dataclass(frozen=True, slots=True)
class ScannedVersion:
    """One of two, or none of them where the version is at fault."""

    version: VersionFolder | None = None
    unfinished: UnfinishedVersion | None = None


def scan_version(
    root: Path,
    model: ModelFolder,
    number: str,
    faults: list[Fault],
    quiet: QuietTime | None = None,
    around: Mapping[str, FileSeen] | None = None,
    folder: Path | None = None,
) -> ScannedVersion:
    """Looks at one version.

    Args:
        root: the repository, without links; nothing may lead out of it.
        model: its model, as far as it is known without versions.
        number: the version.
        faults: takes what is wrong.
        quiet: what earlier looks saw; None: nobody is copying.
        around: the model's own files, which may be changing, too.
        folder: where the version's files are, if not in the model's folder yet.
    """
    folder = folder or model.path / number
    if folder.is_symlink():
        faults.append(Fault(folder, None, "a version folder cannot be a link: its content could change unseen"))
        return ScannedVersion()
    try:
        paths = walk(folder)
        files = {path.relative_to(folder).as_posix(): path for path in paths}
        waits = _waits(folder, {name: seen(path) for name, path in files.items()}, faults, quiet, around or {})
        if waits is not None:
            return ScannedVersion(unfinished=UnfinishedVersion(number, folder, waits)) if waits else ScannedVersion()
        return ScannedVersion(_whole(root, model, number, folder, files, faults))
    except OSError as error:
        place = Path(os.fsdecode(error.filename)) if error.filename else folder
        faults.append(Fault(place, None, f"cannot be read: {error.strerror}"))
    except ModelRepositoryError as error:
        faults.append(Fault(Path(str(error.path)), None, error.reason))
    return ScannedVersion()


def _waits(
    folder: Path,
    files: Mapping[str, FileSeen],
    faults: list[Fault],
    quiet: QuietTime | None,
    around: Mapping[str, FileSeen],
) -> str | None:
    """What is awaited; empty where the folder's manifest is at fault, None where the version is complete."""
    manifest = read_manifest(folder)
    still = quiet.look(folder, {**files, **around}) if quiet is not None else None
    if manifest is None:
        return still
    if isinstance(manifest, Fault):
        problem = manifest
    elif (gap := manifest_gap(files, manifest)) is not None:
        problem = Fault(folder, None, gap)
    elif (wrong := wrong_content(folder, manifest)) is not None:
        problem = wrong
    else:
        return None
    if still is not None:  # somebody may be copying it right now
        return problem.reason
    faults.append(problem)
    return ""


def _whole(
    root: Path, model: ModelFolder, number: str, folder: Path, files: Mapping[str, Path], faults: list[Fault]
) -> VersionFolder | None:
    before = len(faults)
    faults += [Fault(path, None, reason) for path in files.values() if (reason := unsafe(root, path)) is not None]
    names = tuple(files)
    missing = tuple(name for name in built_files(model.config.config) if name not in files) if model.config else ()
    built = missing if model.build_script else ()
    if missing and not built:
        line = model.config.lines.get("parameters{built_files}") if model.config else None
        place = model.path / CONFIG_NAME if line else folder / missing[0]
        faults.append(Fault(place, line, f"{missing[0]} is missing, and there is no {BUILD_NAME} to make it"))
    if (lacks := _lacks_required(model, (*names, *missing))) is not None:
        required, reason = lacks
        faults.append(Fault(folder / required, None, reason))
    elif not names:
        faults.append(Fault(folder, None, "the version has no files"))
    if len(faults) == before and not built:
        faults += version_faults(model, folder)
    return VersionFolder(number, folder, names, built) if len(faults) == before else None


def _lacks_required(model: ModelFolder, names: tuple[str, ...]) -> tuple[str, str] | None:
    config = model.config.config if model.config else None
    required = required_file(config, names)
    if not required or any(name == required or name.startswith(f"{required}/") for name in names):
        return None
    backend = chosen_backend(config, names)
    asked = f"backend {backend!r} needs it" if backend else f"without it, {CONFIG_NAME} must name a backend"
    alike = next((name for name in names if _looks_like(name, required)), None)
    hint = f"; {alike!a} has letters that only look like its own" if alike else ""
    return required, f"is missing: {asked}{hint}"


def _looks_like(name: str, required: str) -> bool:
    if len(name) != len(required) or name.isascii():
        return False
    return all(mine == its or not mine.isascii() for mine, its in zip(name, required, strict=True))


def seen(path: Path) -> FileSeen:
    """A file as a look sees it. Its inode's time counts, too: copying programs set the content's back."""
    state = path.lstat()
    return FileSeen(state.st_size, max(state.st_mtime, state.st_ctime))


def walk(folder: Path) -> list[Path]:
    """Every file and link below a folder, except what never reaches a server; sorted.

    Raises:
        ModelRepositoryError: more files, levels or bytes than a version can have, or a folder's name that misleads.
        OSError: a folder cannot be read.
    """
    found: list[Path] = []
    waiting = [(folder, 1)]
    size = 0
    while waiting:
        place, depth = waiting.pop()
        if depth > DEPTH_MAX:
            raise ModelRepositoryError(place, f"is {depth} folders deep, {DEPTH_MAX} are the most")
        for entry in sorted(place.iterdir()):
            if is_left_out_of_version(entry.name):
                continue
            state = entry.lstat()
            if stat.S_ISDIR(state.st_mode):
                if (reason := file_name_fault(entry.name)) is not None:
                    raise ModelRepositoryError(entry, reason)
                waiting.append((entry, depth + 1))
                continue
            found.append(entry)
            size += state.st_size
            if len(found) > FILES_MAX:
                raise ModelRepositoryError(folder, f"has more than {FILES_MAX} files")
            if size > VERSION_BYTES_MAX:
                raise ModelRepositoryError(folder, f"has more than {VERSION_BYTES_MAX} bytes")
    return sorted(found)


def unsafe(root: Path, path: Path) -> str | None:
    """Why a file must not be read; None when it may.

    Args:
        root: the repository, without links.
        path: the file.
    """
    if is_temporary(path.name):
        return "a temporary name: the copy is not complete"
    if (reason := file_name_fault(path.name)) is not None:
        return reason
    state = path.lstat()
    if stat.S_ISLNK(state.st_mode):
        target = Path(os.path.realpath(path))
        if not target.is_relative_to(root):
            return f"a link that leads out of the repository, to {str(path.readlink())!a:.200}"
        if not target.is_file():
            return "neither a file nor a link to one"
        state = target.stat()
    if not stat.S_ISREG(state.st_mode):
        return "neither a file nor a link to one"
    if state.st_nlink > 1:
        return f"a hard link, one of {state.st_nlink} names: its content could change unseen; copy the file"
    return None if may(path, os.R_OK) else "cannot be read by this user"


def may(path: Path, mode: int) -> bool:
    """Whether this process may do that with a path, as the user it acts for."""
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)
