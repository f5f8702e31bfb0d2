"""The short form of `make faults`: seven kinds of faults under load, judged by the independent oracle."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.folders import PROJECT

# Some 80 s on 2 idle cores: 25 s to start and to drain, 3-13 s for each fault. The rest is for a busy machine.
LIMIT_S = 400
KINDS = (
    "kill worker",
    "restart worker",
    "kill sink",
    "kill triton",
    "kill valkey",
    "kill clickhouse",
    "kill kafka",
)
# The broker's least instead of 10 s: what a killed worker or sink had waits that long for its next owner.
SESSION = {"PIPELINE_KAFKA__SESSION_TIMEOUT_S": "6"}
_TAIL = 6000


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S + 60)
def test_every_request_has_one_answer_and_one_row_after_faults(tmp_path: Path) -> None:
    """Nothing is lost, answered twice, wrong, or logged twice, whatever is killed; workers and servers are real."""
    arguments = ["--seed", "1", "--faults", str(len(KINDS)), "--requests", "3000", "--data", str(tmp_path / "run")]
    for kind in KINDS:
        arguments += ["--kind", kind]
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", *arguments],
        cwd=PROJECT,
        env=os.environ | SESSION,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-_TAIL:]
