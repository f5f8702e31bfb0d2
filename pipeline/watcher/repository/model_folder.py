"""What a look at the repository finds: model folders, their versions, and faults."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.core.model_config import ConfigText

CONFIG_NAME = "config.pbtxt"
BUILD_NAME = "build.py"
SAMPLE_NAME = "sample.json"


@dataclass(frozen=True, slots=True)
class Fault:
    """Something in the repository that no server should see."""

    path: Path
    line: int | None
    reason: str

    def __str__(self) -> str:
        # One fault is one line, whatever a file is called.
        path = str(self.path) if str(self.path).isprintable() else ascii(str(self.path))[1:-1]
        return f"{path}:{self.line}: {self.reason}" if self.line else f"{path}: {self.reason}"


@dataclass(frozen=True, slots=True)
class VersionFolder:
    """One version without faults: `files` relative to `path`, `built_files` still to be made."""

    number: str
    path: Path
    files: tuple[str, ...]
    built_files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UnfinishedVersion:
    """A version that somebody may still be copying, or editing: neither whole nor at fault yet."""

    number: str
    path: Path
    awaited: str

    def __str__(self) -> str:
        return f"{self.path}: not complete yet: {self.awaited}"


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """One model; its configuration is final once its files are built (`completed_config`).

    `selected` are those of `versions` that the version_policy names; what is `unfinished` is in neither.
    """

    name: str
    path: Path
    config: ConfigText | None
    versions: tuple[VersionFolder, ...]
    selected: tuple[str, ...]
    shared_files: tuple[str, ...] = ()
    unfinished: tuple[UnfinishedVersion, ...] = ()

    @property
    def build_script(self) -> Path | None:
        """The model's `build.py`, if it brings one."""
        return _if_file(self.path / BUILD_NAME)

    @property
    def sample(self) -> Path | None:
        """The model's `sample.json`, if it brings one."""
        return _if_file(self.path / SAMPLE_NAME)


@dataclass(frozen=True, slots=True)
class RepositoryScan:
    """What a look at the repository found; a fault belongs to its model, or its version, alone.

    `folders` names every model folder that is there, also those that a fault keeps out of `models`: a model that is in
    neither was removed.
    """

    path: Path
    writable: bool
    models: tuple[ModelFolder, ...]
    faults: tuple[Fault, ...]
    folders: frozenset[str] = frozenset()

    @property
    def unfinished(self) -> tuple[UnfinishedVersion, ...]:
        """Every version that is not complete yet."""
        return tuple(version for model in self.models for version in model.unfinished)


def _if_file(path: Path) -> Path | None:
    return path if path.is_file() else None
