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
        place = f"{self.path}:{self.line}" if self.line else str(self.path)
        return f"{place}: {self.reason}"


@dataclass(frozen=True, slots=True)
class VersionFolder:
    """One version without faults: `files` relative to `path`, `built_files` still to be made."""

    number: str
    path: Path
    files: tuple[str, ...]
    built_files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """One model; its configuration is final once its files are built (`completed_config`)."""

    name: str
    path: Path
    config: ConfigText | None
    versions: tuple[VersionFolder, ...]
    selected: tuple[str, ...]
    shared_files: tuple[str, ...] = ()

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
    """What a look at the repository found; a fault belongs to its model, or its version, alone."""

    path: Path
    writable: bool
    models: tuple[ModelFolder, ...]
    faults: tuple[Fault, ...]


def _if_file(path: Path) -> Path | None:
    return path if path.is_file() else None
