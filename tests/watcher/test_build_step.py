"""A model's build step: it ends, whatever it does."""

import time
from pathlib import Path

import pytest

from pipeline.errors import ModelRepositoryError
from pipeline.watcher.serving.build_step import run_build

LEAVES_ONE_BEHIND = """
import pathlib, subprocess, sys, time

def build(folder):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (folder / "child").write_text(str(child.pid))
    time.sleep({})
"""


def script(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "build.py"
    path.write_text(text, encoding="utf-8")
    return path


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("sleep_s", [600, 0])
def test_nothing_outlives_the_build(tmp_path: Path, sleep_s: int) -> None:
    """A build that takes too long, and whatever a build has started, is ended with it."""
    path = script(tmp_path, LEAVES_ONE_BEHIND.format(sleep_s))
    if sleep_s:
        with pytest.raises(ModelRepositoryError, match="longer than 6 s"):
            run_build(path, tmp_path, tmp_path, timeout_s=6.0)
    else:
        run_build(path, tmp_path, tmp_path)
    pid = int((tmp_path / "child").read_text(encoding="utf-8"))
    while runs(pid):
        time.sleep(0.01)


def test_last_line_of_much_output_is_told(tmp_path: Path) -> None:
    """A build that prints without end and then fails is told by its last line."""
    text = "def build(folder):\n    for _ in range(200_000):\n        print('x' * 99)\n    raise OSError('no space')\n"
    with pytest.raises(ModelRepositoryError, match="OSError: no space"):
        run_build(script(tmp_path, text), tmp_path, tmp_path)
