"""Whether a version that somebody may still be copying is complete. Pure: what was seen in, what is awaited out.

A version is complete when a manifest says so, or when nothing in it changed for a quiet time and since the last look.
Neither asks anything of whoever copies; a rename of a finished folder satisfies both, once the quiet time has passed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


class FileSeen(NamedTuple):
    """One file at one look: its size in bytes, and when its content or its name last changed, Unix seconds."""

    size: int
    changed_at: float


class ManifestEntry(NamedTuple):
    """One file as a manifest has it: its size in bytes, and SHA-256 of its content as 64 hex characters."""

    size: int
    sha256: str


class Moment(NamedTuple):
    """One moment by two clocks, in seconds: the wall's, as files have it, and one that nobody sets."""

    wall_s: float
    steady_s: float


@dataclass(frozen=True, slots=True)
class Look:
    """What a look found, and since when nothing of it has changed, by the clock that nobody sets."""

    files: Mapping[str, FileSeen]
    quiet_since_s: float


def next_look(files: Mapping[str, FileSeen], last: Look | None, now: Moment) -> Look:
    """The look to remember: it goes on from the last one where nothing has changed.

    Only the first look asks the files how old they are. Later ones count by the steady clock from what they saw: a
    wall clock that is set forward makes no copy complete, and one that is set back holds none for an hour.
    """
    if last is None:
        return Look(dict(files), now.steady_s - max(_age_s(files, now), 0.0))
    return last if last.files == files else Look(dict(files), now.steady_s)


def _age_s(files: Mapping[str, FileSeen], now: Moment) -> float:
    """How long ago the newest file changed, by the wall; negative for times of the future."""
    return now.wall_s - max((seen.changed_at for seen in files.values()), default=now.wall_s)


def awaited(
    files: Mapping[str, FileSeen],
    last: Look | None,
    now: Moment,
    quiet_s: float,
) -> str | None:
    """What is awaited before a version without a manifest is complete; None when it is.

    A clock that runs ahead or was set back, or a copy that keeps times of the future, hides how old a file is: then
    only looks that agree for the quiet time count.

    Args:
        files: what is there now, by relative path.
        last: the look before; None at the first.
        now: the time of this look.
        quiet_s: how long nothing may have changed, in seconds.
    """
    if not files:
        return "no file is there yet"
    for name, seen in files.items():
        if last is not None and last.files.get(name) != seen:
            return f"{name} changed since the last look"
        if last is None and seen.changed_at > now.wall_s:
            return f"{name} has a time in the future: the next look will tell whether it changes"
    if last is not None and (gone := sorted(last.files.keys() - files.keys())):
        return f"{gone[0]} was there at the last look"
    if now.steady_s - next_look(files, last, now).quiet_since_s < quiet_s:
        newest = max(files, key=lambda name: files[name].changed_at)
        # Told without its age: what is told at every look should change only with what happens.
        return f"{newest} changed less than {quiet_s:g} s ago"
    return None


def manifest_gap(files: Mapping[str, FileSeen], manifest: Mapping[str, ManifestEntry]) -> str | None:
    """The first file, by name, that is not as the manifest has it; None when all are. Digests are the caller's."""
    for name in sorted(manifest.keys() | files.keys()):
        if name not in files:
            return f"{name} is in the manifest and not there"
        if name not in manifest:
            return f"{name} is there and not in the manifest"
        if files[name].size != manifest[name].size:
            return f"{name} has {files[name].size} bytes, the manifest says {manifest[name].size}"
    return None
