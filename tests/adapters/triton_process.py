"""A Triton of a test module's own, which may be killed, stopped and started again: the echo model, and one more."""

import asyncio
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from pipeline.stack import StackPlan
from pipeline.stack.ports import PortBook
from pipeline.stack.triton import make_tritons, remove_shared_memory
from tests.models.folders import ECHO

# It takes one to two seconds; a busy machine's worst is far below.
_READY_S_MAX = 60.0
FIXED_BYTES = 512 << 10
_FIXED_CONFIG = """name: "fixed"
backend: "python"
max_batch_size: 8
input [ { name: "x", data_type: TYPE_UINT8, dims: [ %d ] } ]
output [
  { name: "inverted", data_type: TYPE_UINT8, dims: [ %d ] },
  { name: "label", data_type: TYPE_INT32, dims: [ 1 ] }
]
instance_group [ { kind: KIND_CPU, count: 1 } ]
"""
_FIXED_MODEL = """import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests):
        return [respond(request.inputs()[0].as_numpy()) for request in requests]


def respond(x):
    label = x[:, :1].astype(np.int32)
    return pb.InferenceResponse([pb.Tensor("inverted", ~x), pb.Tensor("label", label)])
"""


class TritonProcess:
    """One server on one address, over all its starts.

    It serves `echo` (`tests/models/echo`) and `fixed`: `x` UINT8 [FIXED_BYTES] -> `inverted`, of the same fixed size,
    and `label` INT32 [1], its first byte.

    Args:
        folder: for its files.
    """

    def __init__(self, folder: Path) -> None:
        serving = folder / "serving"
        shutil.copytree(ECHO, serving / "echo", ignore=shutil.ignore_patterns("__pycache__"))
        version = serving / "fixed" / "1"
        version.mkdir(parents=True)
        (serving / "fixed" / "config.pbtxt").write_text(_FIXED_CONFIG % (FIXED_BYTES, FIXED_BYTES))
        (version / "model.py").write_text(_FIXED_MODEL)
        plan = StackPlan(folder, kafka=False, valkey=False, clickhouse=False, triton_count=1, serving_dir=serving)
        tritons = make_tritons(plan, PortBook(folder / "ports.json"), dict(os.environ), folder)
        (self._triton,) = asyncio.run(tritons)
        self.address = self._triton.endpoint.grpc
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when its models are loaded; what an earlier run left is removed."""
        remove_shared_memory(self._triton.shm_prefix)
        spec = self._triton.spec
        self._process = subprocess.Popen(
            spec.argv,
            env=dict(spec.env),
            cwd=spec.cwd,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        limit = time.monotonic() + _READY_S_MAX
        while not self._is_ready():
            assert self._process.poll() is None, "tritonserver ended"
            assert time.monotonic() < limit, "tritonserver does not answer"
            time.sleep(0.05)

    def kill(self) -> None:
        """It is gone at once, its model processes too. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            remove_shared_memory(self._triton.shm_prefix)

    def pause(self) -> None:
        """It answers nobody, but keeps its connections."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """It answers again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def ensure_running(self) -> None:
        """For a test that follows one which ended or stopped it."""
        if self._process is None:
            self.start()
        self.go_on()

    def _is_ready(self) -> bool:
        try:
            url = f"http://{self._triton.endpoint.http}/v2/health/ready"
            with urllib.request.urlopen(url, timeout=5.0) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False
