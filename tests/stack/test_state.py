"""What others read of a running stack."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.stack.plan import AlreadyRunningError, Endpoints, TritonEndpoint
from pipeline.stack.state import ProcessId, StackLock, StackState, read_boot_id, read_running, read_start_ticks


def make_state() -> StackState:
    ticks = read_start_ticks(os.getpid())
    assert ticks is not None
    triton = (TritonEndpoint("triton-0", "127.0.0.1:8001", "127.0.0.1:8000", "127.0.0.1:8002"),)
    ends = Endpoints(kafka="127.0.0.1:9092", triton=triton, other={"gateway": "http://127.0.0.1:8080"})
    own = ProcessId(os.getpid(), ticks)
    return StackState("run", read_boot_id(), own, ends, {"kafka": own}, started=True)


def test_state_of_live_supervisor_is_read_back(tmp_path: Path) -> None:
    """What was written is what a reader gets, while the supervisor lives."""
    make_state().write(tmp_path)
    assert read_running(tmp_path) == make_state()


def test_reused_pid_is_not_running(tmp_path: Path) -> None:
    """A process with the supervisor's number but another start time is another process."""
    state = make_state()
    replace(state, supervisor=replace(state.supervisor, start_ticks=1)).write(tmp_path)
    assert read_running(tmp_path) is None


def test_dead_pid_is_not_running(tmp_path: Path) -> None:
    """A dead supervisor's file says nothing; neither does another boot's, or none at all."""
    assert read_running(tmp_path) is None
    state = make_state()
    replace(state, supervisor=ProcessId(2**22 + 1, 5)).write(tmp_path)
    assert read_running(tmp_path) is None
    replace(state, boot_id="another").write(tmp_path)
    assert read_running(tmp_path) is None


def test_second_lock_names_the_owner(tmp_path: Path) -> None:
    """A second supervisor of the folder is refused with the first one's pid; later it may start."""
    with StackLock(tmp_path), pytest.raises(AlreadyRunningError, match=f"process {os.getpid()}"):
        StackLock(tmp_path).__enter__()
    with StackLock(tmp_path):
        pass
