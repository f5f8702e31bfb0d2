"""A version's `MANIFEST.json`: what is to be in its folder, so that it is complete the moment that all of it is there.

    {"files": {"model.onnx": {"size": 20123, "sha256": "64 hex characters"}}}

It names every other file of the folder by its relative path. It never reaches a server and is no part of a fingerprint.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.core.completeness import ManifestEntry
from pipeline.core.model_config import is_inside
from pipeline.core.text_lines import json_line
from pipeline.watcher.repository.model_folder import Fault

MANIFEST_NAME = "MANIFEST.json"
# 10,000 files (repository.py) take 1.5 MB.
MANIFEST_BYTES_MAX = 4 << 20


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")]


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    files: Annotated[dict[str, _File], Field(min_length=1)]


def read_manifest(folder: Path) -> Mapping[str, ManifestEntry] | Fault | None:
    """The manifest of a version folder; None where there is none, and what is wrong with one that is none.

    Raises:
        OSError: it cannot be read.
    """
    path = folder / MANIFEST_NAME
    if path.is_symlink() or not path.is_file():
        return Fault(path, None, "a manifest is a plain file") if path.is_symlink() or path.exists() else None
    if (size := path.stat().st_size) > MANIFEST_BYTES_MAX:
        return Fault(path, None, f"has {size} bytes, a manifest has {MANIFEST_BYTES_MAX} at most")
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        found = _Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        reason = f"{place}: {first['msg']}" if place else first["msg"]
        return Fault(path, invalid_json_line(text) or json_line(text, first["loc"]), reason)
    if odd := next((name for name in found.files if not is_inside(name) or name == MANIFEST_NAME), None):
        return Fault(path, json_line(text, ("files", odd)), f"names {odd!r}: the version's other files are expected")
    return {name: ManifestEntry(file.size, file.sha256.lower()) for name, file in found.files.items()}


def invalid_json_line(text: str) -> int | None:
    """The line where a text stops being JSON; None where it is JSON."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.lineno
    except (ValueError, RecursionError):
        return None
    return None


def wrong_content(folder: Path, manifest: Mapping[str, ManifestEntry]) -> Fault | None:
    """The first file whose content is not the manifest's, where all are there with their sizes.

    Raises:
        OSError: a file cannot be read.
    """
    for name, entry in sorted(manifest.items()):
        if (found := sha256_of(folder / name)) != entry.sha256:
            reason = f"has the SHA-256 {found[:12]}…, {MANIFEST_NAME} says {entry.sha256[:12]}…"
            return Fault(folder / name, None, reason)
    return None


def manifest_text(digests: Mapping[str, ManifestEntry]) -> str:
    """A manifest as text: the same files give the same bytes."""
    files = {name: {"size": entry.size, "sha256": entry.sha256} for name, entry in sorted(digests.items())}
    return json.dumps({"files": files}, indent=1, ensure_ascii=False) + "\n"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content; of one that did not change since it was asked before, from memory."""
    state = path.stat()
    return _sha256(path, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


# A look every few seconds must not read gigabytes: a change of content changes the inode's times.
@lru_cache(maxsize=4096)
def _sha256(path: Path, *_state: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
