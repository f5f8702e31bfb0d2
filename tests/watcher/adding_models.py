"""Models of the python backend that add a number: what answered is seen in the answer. Some do harm besides."""

import json
from pathlib import Path

from tests.watcher.folders import python_model

ADDS = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x + {})]) for x in inputs]
"""
SLOW = ADDS.replace("        inputs =", "        __import__('time').sleep(0.2)\n        inputs =")
FAILS = "class TritonPythonModel:\n    def initialize(self, args):\n        raise RuntimeError('no weights')\n"
# A model's process is the server's child: it ends that one server, whose name it has looked at, and no other process.
_ENDS_SERVER = """

def end_server():
    import os
    import signal
    import time

    server = os.getppid()
    with open(f"/proc/{{server}}/comm") as name:
        assert name.read() == "tritonserver\\n"
    with open({diary!r}, "a") as diary:
        diary.write(f"{{server}}\\n")
    os.kill(server, signal.SIGKILL)
    time.sleep(60)
"""
_ENDS_LATER = """
    def initialize(self, args):
        import os
        import threading
        import time

        def later():
            while not os.path.exists({armed!r}):
                time.sleep(0.01)
            time.sleep(0.5)
            end_server()

        threading.Thread(target=later, daemon=True).start()
"""
_WAITS = """
    def initialize(self, args):
        import os
        import time

        with open({diary!r}, "a") as diary:
            diary.write(f"{{os.getppid()}}\\n")
        while not os.path.exists({gate!r}):
            time.sleep(0.01)
"""


def ends_server(at: str, amount: int, diary: Path) -> str:
    """A model that ends its server with SIGKILL, at "load" or at "inference"; the diary gets the server's pid first."""
    step = "initialize(self, args)" if at == "load" else "execute(self, requests)"
    source = ADDS.format(amount).replace(
        "execute(self, requests):", "execute(self, requests):" if at == "load" else "unused(self, requests):"
    )
    return f"{source}\n    def {step}:\n        end_server()\n{_ENDS_SERVER.format(diary=str(diary))}"


def ends_server_later(armed: Path, amount: int, diary: Path) -> str:
    """A model that ends its server half a second after it is loaded and a file is there; the diary as above."""
    return ADDS.format(amount) + _ENDS_LATER.format(armed=str(armed)) + _ENDS_SERVER.format(diary=str(diary))


def waits_for(gate: Path, amount: int, diary: Path) -> str:
    """A model whose load takes until a file is there; the diary gets the pid of each server that loads it."""
    return ADDS.format(amount) + _WAITS.format(diary=str(diary), gate=str(gate))


def pids_in(diary: Path) -> list[int]:
    """The servers that met a model with a diary, in order, once for each time."""
    return [int(line) for line in diary.read_text().splitlines()] if diary.exists() else []


def adding_model(repository: Path, name: str, amounts: dict[str, int]) -> Path:
    """Version -> what it adds to x; the sample expects the highest's answer."""
    folder = python_model(repository, name, tuple(amounts), "version_policy { latest { num_versions: 2 } }")
    for version, amount in amounts.items():
        (folder / version / "model.py").write_text(ADDS.format(amount), encoding="utf-8")
    highest = max(amounts, key=int)
    write_sample(folder, highest, [1.0 + amounts[highest], 2.0 + amounts[highest]])
    return folder


def write_sample(folder: Path, version: str, expected: list[float]) -> None:
    sample = {
        "model_name": folder.name,
        "model_version": version,
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": expected}],
    }
    (folder / "sample.json").write_text(json.dumps(sample), encoding="utf-8")
