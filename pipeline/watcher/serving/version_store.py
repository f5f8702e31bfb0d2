"""Immutable copies of version folders, by content: what has been copied once is never copied again.

    <store>/<model>/<version>-<source digest>/files/...       the copy, with what the build step made
    <store>/<model>/<version>-<source digest>/digests.json    BLAKE3 of each file, and of the build script

An entry appears by one rename, after everything in it is on the disk. One process writes; what it could not finish is
removed at once, and what it left when it died, before the next one of that model is written.
"""

import errno
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from pipeline.core.fingerprint import fingerprint
from pipeline.errors import ModelRepositoryError

logger = logging.getLogger(__name__)

_UNFINISHED = ".tmp-"
# 1 MiB at a time is as fast as all at once, within the noise.
_READ_BYTES = 1 << 20
# What a disk refuses, whatever is written: full, a quota, a file size limit, mounted read-only.
_DISK_REFUSES = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})


class CopyPostponed(ModelRepositoryError):  # noqa: N818 - a state, not a mistake
    """The copy cannot be made now, for a reason that says nothing against the version: another look may make it."""


@dataclass(frozen=True, slots=True)
class StoredFiles:
    """One entry: `source` names the owner's content it came from, `digests` tells what is in it now."""

    path: Path
    source: str
    digests: Mapping[str, bytes]
    build_script: bytes = b""

    @property
    def files(self) -> Path:
        """The folder with the files."""
        return self.path / "files"


class VersionStore:
    """The store of one serving folder. Everything here blocks on the disk."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def put(
        self,
        model_name: str,
        label: str,
        folder: Path,
        names: tuple[str, ...],
        build: tuple[Path, Callable[[Path], None]] | None = None,
    ) -> StoredFiles:
        """Copies files into the store, unless they are there; `build` (its script, and how to run it) adds to them.

        Raises:
            CopyPostponed: a file changed, or went, while it was copied; or a disk cannot be read or written.
            ModelRepositoryError: the build failed.
        """
        try:
            script = digest_of(build[0]) if build else b""
            digests = {name: digest_of(folder / name) for name in names}
            source = fingerprint(digests, build_script=script)
            if (found := self.find(model_name, label, source)) is not None:
                return found
            work = self.new_folder(model_name)
            try:
                copy = work / "files"
                copy.mkdir()
                for name in names:
                    _copy(folder / name, copy / name)
                    if digest_of(copy / name) != digests[name]:
                        raise CopyPostponed(
                            folder / name, "changed while it was copied; the next look will see it whole"
                        )
                if build is not None:
                    build[1](copy)
                return self._enter(work, self._entry(model_name, label, source), source, script)
            finally:
                shutil.rmtree(work, ignore_errors=True)
        except OSError as error:
            raise self._postponed(folder, error) from error

    def _enter(self, work: Path, target: Path, source: str, script: bytes) -> StoredFiles:
        digests = self._finish(work, source, script)
        if target.exists():
            shutil.rmtree(target)
        work.rename(target)
        sync_folder(target.parent)
        return StoredFiles(target, source, digests, script)

    def _postponed(self, folder: Path, error: OSError) -> CopyPostponed:
        """The same words at every look: they name no temporary folder."""
        # Copying names the owner's file first, also where it is the other side that is full.
        place = Path(os.fsdecode(error.filename or self._path))
        if error.errno in _DISK_REFUSES or place.is_relative_to(self._path):
            return CopyPostponed(folder, f"cannot be copied into {self._path} now: {error.strerror or error}")
        if isinstance(error, FileNotFoundError):
            return CopyPostponed(place, "went while it was copied; the next look will tell what there is")
        return CopyPostponed(place, f"cannot be read now: {error.strerror or error}")

    def _finish(self, work: Path, source: str, script: bytes) -> dict[str, bytes]:
        digests = content_digests(work / "files")
        for name in digests:
            (work / "files" / name).chmod(0o644)
            sync_file(work / "files" / name)
        record = {
            "source": source,
            "build_script": script.hex(),
            "files": {name: digest.hex() for name, digest in digests.items()},
        }
        write_synced(work / "digests.json", json.dumps(record, indent=1, sort_keys=True))
        for folder in (*(path for path in work.rglob("*") if path.is_dir()), work):
            folder.chmod(0o755)  # the server may run as another user
            sync_folder(folder)
        return digests

    def find(self, model_name: str, label: str, source: str) -> StoredFiles | None:
        """The entry of this content; None if there is none, or if somebody changed it since."""
        path = self._entry(model_name, label, source)
        if not (path / "digests.json").is_file():
            return None
        try:
            record = json.loads((path / "digests.json").read_text(encoding="utf-8"))
            recorded = {name: bytes.fromhex(digest) for name, digest in record["files"].items()}
            script = bytes.fromhex(record["build_script"])
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            logger.warning("%s is damaged, it is made again: %s", path / "digests.json", error)
            return None
        if recorded != content_digests(path / "files"):
            logger.warning("%s is not what was stored; it is made again", path)
            return None
        return StoredFiles(path, source, recorded, script)

    def new_folder(self, model_name: str) -> Path:
        """An empty folder on the store's file system, in the place of what was left unfinished of the model.

        Raises:
            OSError: the disk.
        """
        place = self._path / model_name
        for left in place.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(left)
        folder = place / f"{_UNFINISHED}{uuid.uuid4().hex}"
        folder.mkdir(parents=True)
        return folder

    def sweep(self, model_name: str, keep: set[tuple[str, str]]) -> None:
        """Removes every entry of a model but these (label, source), and what a crash left."""
        kept = {self._entry(model_name, label, source).name for label, source in keep}
        folder = self._path / model_name
        for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
            if entry.name not in kept:
                shutil.rmtree(entry)

    def _entry(self, model_name: str, label: str, source: str) -> Path:
        # 128 bits of the digest keep paths short; digests.json holds all of it.
        return self._path / model_name / f"{label}-{source[:32]}"


def digest_of(path: Path) -> bytes:
    """BLAKE3 of a file's content. Read, not mapped: a mapped file that its owner cuts short ends the process."""
    digest = blake3(max_threads=1)
    with path.open("rb") as file:
        while part := file.read(_READ_BYTES):
            digest.update(part)
    return digest.digest()


def content_digests(folder: Path) -> dict[str, bytes]:
    """Relative path -> digest of every file in a folder; what Python caches there while it serves does not count."""
    return {
        path.relative_to(folder).as_posix(): digest_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.relative_to(folder).parts
    }


def write_synced(path: Path, text: str) -> None:
    """Writes a file that is on the disk when this returns."""
    path.write_text(text, encoding="utf-8")
    sync_file(path)


def sync_folder(path: Path) -> None:
    """Puts a folder's entries on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Puts a file's content on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy(source: Path, target: Path) -> None:
    """Copies a content, through links, and no times: what is new here must look new to a server."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
