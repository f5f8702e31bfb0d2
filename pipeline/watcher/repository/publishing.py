"""A version put into the model repository by one rename: nobody ever sees half of it.

It is copied under a hidden name on the same file system, checked there as `models check` would, written to the disk,
and then renamed. A manifest beside its files tells the watcher that all of it is there. Works beside a running watcher,
and beside other publishers: the rename decides who was first.
"""

import errno
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.completeness import ManifestEntry
from pipeline.core.model_config import ModelConfig, ModelConfigError, parse_config
from pipeline.errors import ModelRepositoryError
from pipeline.watcher.repository.manifest import MANIFEST_NAME, manifest_text, sha256_of
from pipeline.watcher.repository.model_folder import CONFIG_NAME, Fault
from pipeline.watcher.repository.names import is_hidden, is_left_out, is_temporary, is_version, model_name_fault
from pipeline.watcher.repository.scan import check_repository, read_model, scan_model, shared_files
from pipeline.watcher.repository.version_checks import required_file, select_versions
from pipeline.watcher.repository.version_scan import scan_version, walk
from pipeline.watcher.serving.version_store import digest_of, sync_file, sync_folder, write_synced

_UNFINISHED = ".publish-"
# A publisher locks its folder within milliseconds of making it; one that nobody locked for so long was left by a crash.
_LEFT_AFTER_S = 60.0


class PublishRefused(ModelRepositoryError):  # noqa: N818 - a state, not a mistake
    """What was to be published is at fault; nothing was changed.

    Args:
        path: what was given.
        faults: all that is wrong with it.
    """

    def __init__(self, path: Path, faults: list[Fault]) -> None:
        super().__init__(path, "; ".join(fault.reason for fault in faults))
        self.faults = tuple(faults)


@dataclass(frozen=True, slots=True)
class Published:
    """A version that is in the repository now.

    Attributes:
        is_new: False where it was there already with this content.
        is_selected: whether the model's version_policy names it.
    """

    model_name: str
    version: str
    path: Path
    files: int
    size_bytes: int
    is_new: bool
    is_selected: bool


@dataclass(frozen=True, slots=True)
class _Parts:
    """What is given, sorted: relative path -> file. `own` lies beside the version folders."""

    base: Path
    version: str | None
    files: Mapping[str, Path]
    own: Mapping[str, Path]


def publish(repository: Path, source: Path, model_name: str, version: str | None = None) -> Published:
    """Copies a version into the repository. Blocks on the disk.

    Args:
        repository: the model repository.
        source: a model file; a folder with a version's files; or a model folder with numbered version folders, one of
            which is published. `config.pbtxt`, `sample.json` and `build.py` come along for a model that is not there.
        model_name: the model.
        version: its number, or "next" for the one after the highest that is there; None: the number of the source's
            version folder, else "next". Content that is the highest version already is not published again by "next".

    Raises:
        PublishRefused: what is given is at fault, or is there with other content.
        ModelRepositoryError: the repository is not there or cannot be written into, or a wrong name or number.
        OSError: the disk.
    """
    check_repository(repository)
    if (reason := model_name_fault(model_name)) is not None:
        raise ModelRepositoryError(repository, reason)
    if version not in (None, "next") and not is_version(version or ""):
        raise ModelRepositoryError(source, f"version {version!r:.40}: a positive integer, or next, is expected")
    folder = repository / model_name
    if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()):
        raise _refused(source, folder, "is a link or a file: a model is a folder")
    _sweep(repository)
    while True:
        parts = _sorted(source, version, folder)
        exists = folder.is_dir()
        if exists:
            _refuse_other_own_files(source, folder, parts)
        number, found = _place(folder, parts, version)
        if found is not None:
            return found
        publish_once = _add_version if exists else _add_model
        try:
            publish_once(repository, folder, number, source, parts)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            continue  # somebody else was faster: what they published decides
        return _published(folder, number, parts, is_new=True)


def _sorted(source: Path, version: str | None, folder: Path) -> _Parts:
    """The source's files by where they belong.

    Raises:
        PublishRefused: it is neither a file nor a folder, or has several versions, or none of its files can be read.
    """
    if not source.is_dir():
        if not source.is_file():
            raise _refused(source, source, "is not there: a model file or a folder is expected")
        return _Parts(source.parent, version, {_file_name(source, folder): source}, {})
    numbers = sorted((entry.name for entry in source.iterdir() if is_version(entry.name) and entry.is_dir()), key=int)
    chosen = version if version in numbers else numbers[0] if len(numbers) == 1 else None
    if numbers and chosen is None:
        raise _refused(source, source, f"has the versions {', '.join(numbers)}: one is published, name it")
    base = source / chosen if chosen else source
    files = {path.relative_to(base).as_posix(): path for path in walk(base)}
    own: dict[str, Path] = {}
    if chosen:
        tops = [entry for entry in sorted(source.iterdir()) if not is_version(entry.name) and _comes_along(entry.name)]
        for entry in tops:
            inside = walk(entry) if entry.is_dir() else [entry]
            own |= {path.relative_to(source).as_posix(): path for path in inside}
    else:
        own = {name: path for name, path in files.items() if _is_own(name)}
        files = {name: path for name, path in files.items() if name not in own}
    for path in (*files.values(), *own.values()):
        if not path.is_file():
            raise _refused(source, path, "neither a file nor a link to one")
    if not files:
        raise _refused(source, base, "has no file of a version")
    return _Parts(base, version or chosen, files, own)


def _is_own(name: str) -> bool:
    """Whether a file beside a version's files belongs to its model. What is half copied stays, and is told."""
    return "/" not in name and is_left_out(name) and not is_temporary(name)


def _comes_along(name: str) -> bool:
    return not is_hidden(name) and not is_temporary(name)


def _file_name(source: Path, folder: Path) -> str:
    """The name under which a single file serves: what the backend opens, where that has the file's ending."""
    required = required_file(_config_of(folder), (source.name,))
    return required if required and Path(required).suffix == source.suffix else source.name


def _config_of(folder: Path) -> ModelConfig | None:
    """The model's configuration; None where there is none that can be read, which the check tells."""
    try:
        return parse_config((folder / CONFIG_NAME).read_text(encoding="utf-8")).config
    except (ModelConfigError, OSError, UnicodeDecodeError):
        return None


def _refused(source: Path, place: Path, reason: str) -> PublishRefused:
    return PublishRefused(source, [Fault(place, None, reason)])


def _refuse_other_own_files(source: Path, folder: Path, parts: _Parts) -> None:
    """A model's own files count for all of its versions: a version does not change them by the way."""
    faults = [
        Fault(path, None, f"is not what the model has ({folder / name}): change it there, or leave it out here")
        for name, path in parts.own.items()
        if not ((folder / name).is_file() and digest_of(folder / name) == digest_of(path)) and _counts(name)
    ]
    if faults:
        raise PublishRefused(source, faults)


def _counts(name: str) -> bool:
    """Whether a model's own file changes how it is served: its notes do not."""
    return not is_left_out(name) or name.endswith((".pbtxt", ".json", ".py"))


def _place(folder: Path, parts: _Parts, version: str | None) -> tuple[str, Published | None]:
    """The number to publish under, and what is there with this content already."""
    there = sorted((int(entry.name) for entry in folder.iterdir() if is_version(entry.name)) if folder.is_dir() else ())
    number = parts.version if parts.version not in (None, "next") else None
    candidate = number if number is not None else str(there[-1]) if there else None
    if candidate is not None and int(candidate) in there:
        differs = _difference(folder / candidate, parts)
        if differs is None:
            return candidate, _published(folder, candidate, parts, is_new=False)
        if number is not None:
            raise _refused(folder, folder / number, f"is there with other content: {differs}; a version never changes")
    return number or str((there[-1] if there else 0) + 1), None


def _difference(folder: Path, parts: _Parts) -> str | None:
    """The first file in which a version of the repository is not what is given; None where it is that."""
    theirs = {path.relative_to(folder).as_posix(): digest_of(path) for path in walk(folder)}
    mine = {name: digest_of(path) for name, path in parts.files.items()}
    return next((name for name in sorted(theirs.keys() | mine.keys()) if theirs.get(name) != mine.get(name)), None)


def _add_version(repository: Path, folder: Path, number: str, source: Path, parts: _Parts) -> None:
    root = Path(os.path.realpath(repository))
    faults: list[Fault] = []
    model = read_model(root, folder, faults)
    if model is None:
        raise PublishRefused(source, faults)
    model = shared_files(root, model, faults)
    with _unfinished(folder) as work:
        _copy_all(parts.files, work)
        before = len(faults)
        scan_version(root, model, number, faults, folder=work)
        if len(faults) > before:
            raise PublishRefused(source, [_told(fault, work, parts.base) for fault in faults[before:]])
        _finish(work)
        work.rename(folder / number)
        sync_folder(folder)


def _add_model(repository: Path, folder: Path, number: str, source: Path, parts: _Parts) -> None:
    with _unfinished(repository) as work:
        model = work / folder.name
        _copy_all(parts.own, model)
        _copy_all(parts.files, model / number)
        faults: list[Fault] = []
        scan_model(work, model, faults)
        if faults:
            own = source if parts.own else parts.base
            told = [_told(_told(fault, model / number, parts.base), model, own) for fault in faults]
            raise PublishRefused(source, told)
        _finish(model / number)
        sync_folder(model)
        model.chmod(0o755)
        model.rename(folder)
        sync_folder(repository)


def _told(fault: Fault, copy: Path, original: Path) -> Fault:
    """A fault of the copy, told of the original."""
    if not fault.path.is_relative_to(copy):
        return fault
    return Fault(original / fault.path.relative_to(copy), fault.line, fault.reason)


@contextmanager
def _unfinished(parent: Path) -> Iterator[Path]:
    """A hidden folder that is removed unless it was renamed; locked, so that no sweep takes it for a crash's."""
    work = parent / f"{_UNFINISHED}{uuid.uuid4().hex}"
    work.mkdir()
    descriptor = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(descriptor)


def _sweep(repository: Path) -> None:
    """Removes what publishers left that were killed."""
    beside = _entries(repository)
    for work in (*beside, *(entry for folder in beside for entry in _entries(folder))):
        if not work.name.startswith(_UNFINISHED):
            continue
        try:
            descriptor = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # renamed or removed meanwhile, or no folder
        try:
            if time.time() - os.fstat(descriptor).st_mtime > _LEFT_AFTER_S:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(work, ignore_errors=True)
        except BlockingIOError:
            continue  # its publisher lives
        finally:
            os.close(descriptor)


def _entries(folder: Path) -> list[Path]:
    """What is in a folder; nothing where it is none, or was removed meanwhile by another publisher."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _copy_all(files: Mapping[str, Path], folder: Path) -> None:
    """Copies contents, through links: what is in the repository depends on nothing outside of it."""
    folder.mkdir(exist_ok=True)
    for name, path in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        target.chmod(0o644)
        sync_file(target)


def _finish(folder: Path) -> None:
    """Writes the manifest of a version folder, and all of it to the disk."""
    names = [path.relative_to(folder).as_posix() for path in walk(folder)]
    entries = {name: ManifestEntry((folder / name).stat().st_size, sha256_of(folder / name)) for name in names}
    write_synced(folder / MANIFEST_NAME, manifest_text(entries))
    (folder / MANIFEST_NAME).chmod(0o644)
    for place in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        place.chmod(0o755)
        sync_folder(place)


def _published(folder: Path, number: str, parts: _Parts, *, is_new: bool) -> Published:
    there = [entry.name for entry in folder.iterdir() if is_version(entry.name)]
    size = sum(path.stat().st_size for path in parts.files.values())
    is_selected = number in select_versions(_config_of(folder), there)
    return Published(folder.name, number, folder / number, len(parts.files), size, is_new, is_selected)
