"""What a running stack leaves in its data folder for others to find: `stack.json` and `stack.lock`."""

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from pipeline.stack.plan import AlreadyRunningError, Endpoints, TritonEndpoint

STATE_FILE = "stack.json"
LOCK_FILE = "stack.lock"
GONE_TIMEOUT_S = 5.0
# Every child carries the run's id in its environment, and so do its own children: what a
# killed supervisor left is recognized by it, never by a program's name.
RUN_VARIABLE = "INFERENCE_STACK_RUN"


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process, told from a later one with the same number by its start time."""

    pid: int
    start_ticks: int  # clock ticks since boot, /proc/<pid>/stat field 22

    def is_alive(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        return read_start_ticks(self.pid) == self.start_ticks


@dataclass(frozen=True, slots=True)
class StackState:
    """The content of `stack.json`.

    Attributes:
        started: everything that is to run was ready once. Until then what is not listed yet may still come.
    """

    run_id: str
    boot_id: str
    supervisor: ProcessId
    endpoints: Endpoints = field(default_factory=Endpoints)
    processes: dict[str, ProcessId] = field(default_factory=dict)
    started: bool = False

    def write(self, data_dir: Path) -> None:
        """Replace the state file as a whole: a reader sees the old one or the new one."""
        write_atomically(data_dir / STATE_FILE, json.dumps(asdict(self), indent=2))


def read_start_ticks(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot; None when it is gone or a zombie."""
    fields = _stat_fields(pid)
    return None if fields is None or fields[0] in ("Z", "X") else int(fields[19])


def read_session(pid: int) -> int | None:
    """The session id of a process; None when it is gone or a zombie."""
    fields = _stat_fields(pid)
    return None if fields is None or fields[0] in ("Z", "X") else int(fields[3])


def _stat_fields(pid: int) -> list[str] | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name in brackets, which may hold spaces and brackets.
    return stat.rpartition(")")[2].split()


def read_boot_id() -> str:
    """A name for this boot of the machine: start times of another boot mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's content in one step."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, delete=False) as file:
        file.write(text)
    Path(file.name).replace(path)


def read_state(data_dir: Path) -> StackState | None:
    """The last written state, whether or not anything of it still runs; None without a readable one."""
    try:
        content: dict[str, Any] = json.loads((data_dir / STATE_FILE).read_text())
        ends = content["endpoints"]
        return StackState(
            run_id=content["run_id"],
            boot_id=content["boot_id"],
            supervisor=ProcessId(**content["supervisor"]),
            endpoints=Endpoints(**{**ends, "triton": tuple(TritonEndpoint(**one) for one in ends["triton"])}),
            processes={name: ProcessId(**one) for name, one in content["processes"].items()},
            started=content["started"],
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        # Written by another version of ours: nothing in it can be trusted.
        return None


def read_running(data_dir: Path) -> StackState | None:
    """The state of the stack running in this folder; None when its supervisor is not alive."""
    state = read_state(data_dir)
    if state is None or state.boot_id != read_boot_id() or not state.supervisor.is_alive():
        return None
    return state


def kill_leftovers(state: StackState) -> list[ProcessId]:
    """SIGKILL what an earlier run left behind; returns it. Its ports are free once it is gone (`wait_gone`).

    Ours is what lives in the session of a recorded child *and* carries that run's id in
    its environment. Children die with their supervisor by themselves (PR_SET_PDEATHSIG);
    this is for their own children, such as Triton's stubs, which ignore SIGTERM.
    """
    if state.boot_id != read_boot_id():
        return []
    sessions = {process.pid for process in state.processes.values()}
    marker = f"{RUN_VARIABLE}={state.run_id}".encode()
    killed = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or read_session(int(folder.name)) not in sessions:
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            # PermissionError: another user's process, hence not ours.
            if marker in (folder / "environ").read_bytes().split(b"\0"):
                process = ProcessId(int(folder.name), read_start_ticks(int(folder.name)) or 0)
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process)
    return killed


async def wait_gone(processes: list[ProcessId]) -> None:
    """Wait until killed processes are gone.

    Raises:
        TimeoutError: one still lives after 5 s (it sits in the kernel, such as in a stuck file system).
    """
    async with asyncio.timeout(GONE_TIMEOUT_S):
        while any(process.is_alive() for process in processes):  # noqa: ASYNC110 - no event tells it
            await asyncio.sleep(0.02)


class StackLock:
    """Keeps a second supervisor out of the data folder; the kernel frees it when we die."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        descriptor = os.open(self._data_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 32).decode().strip()
            os.close(descriptor)
            raise AlreadyRunningError(self._data_dir, int(owner or 0)) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        self._descriptor = descriptor
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
