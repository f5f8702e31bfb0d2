"""A model's own build step: `build.py` in its folder makes files that are too large for a repository.

The script runs in a process of its own: what it loads is gone afterwards, and what it breaks is not the watcher.
`-B` keeps Python from writing `__pycache__` into the owner's repository.
"""

import subprocess
import sys
from pathlib import Path

from pipeline.errors import ModelRepositoryError

# sentences takes 1 to 5 s; a build that exports a network of some GB takes minutes.
BUILD_TIMEOUT_S = 600.0

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
    """Runs `build(version_folder)` of a model's script. Blocks until it ends.

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
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ModelRepositoryError(script, f"the build took longer than {timeout_s:.0f} s") from None
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise ModelRepositoryError(
            script, f"the build failed: {lines[-1] if lines else f'exit code {done.returncode}'}"
        )
