"""A model's own build step: `build.py` in its folder makes files that are too large for a repository.

The script runs in a process of its own: what it loads is gone afterwards, and what it breaks is not the watcher.
`-B` keeps Python from writing `__pycache__` into the owner's repository.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import ModelRepositoryError

# sentences takes 1 to 5 s; a build that exports a network of some GB takes minutes.
BUILD_TIMEOUT_S = 600.0
# Its last line is told: a traceback's is within this, whatever was printed before.
_OUTPUT_BYTES = 64 * 1024

_RUNNER = """
import importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location("model_build", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules["model_build"] = module
spec.loader.exec_module(module)
if not callable(getattr(module, "build", None)):
    sys.exit("it has no function build(version_folder)")
module.build(pathlib.Path(sys.argv[2]))
"""


def run_build(script: Path, model_folder: Path, version_folder: Path, timeout_s: float = BUILD_TIMEOUT_S) -> None:
    """Runs `build(version_folder)` of a model's script. Blocks until it ends; what it started ends with it.

    Args:
        script: the model's build.py; a link may not lead out of the model's folder.
        model_folder: the model's folder in the repository.
        version_folder: where the files are made: a copy, never a folder of the repository.
        timeout_s: how long it may take.

    Raises:
        ModelRepositoryError: it lies elsewhere, failed, or took too long; its last line of output says why.
    """
    if not script.resolve().is_relative_to(model_folder.resolve()):
        raise ModelRepositoryError(script, "the build script is a link that leads out of the model's folder")
    command = [sys.executable, "-B", "-c", _RUNNER, str(script.resolve()), str(version_folder.resolve())]
    # A file and no pipe: whoever the script started and left running would keep a pipe open, and us waiting.
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ModelRepositoryError(script, f"the build took longer than {timeout_s:.0f} s") from None
        finally:
            _end_group(process)
        if code != 0:
            lines = _tail(output).strip().splitlines()
            raise ModelRepositoryError(script, f"the build failed: {lines[-1] if lines else f'exit code {code}'}")


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends the script and everything it started: nothing writes into the copy afterwards."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(output: BinaryIO) -> str:
    output.seek(max(output.seek(0, os.SEEK_END) - _OUTPUT_BYTES, 0))
    return output.read().decode(errors="replace")
