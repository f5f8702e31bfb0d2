"""One supervised child process: its log, its readiness, its end, and the pause before its next start."""

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.stack.plan import MIB, PartFailedError
from pipeline.stack.state import ProcessId, read_start_ticks

# Becomes the child by exec, so pid and start time stay. PR_SET_PDEATHSIG (1) makes the kernel
# kill it with us, even when we are SIGKILLed; the parent check closes the gap before the
# call. A launcher, not preexec_fn: that runs Python between fork and exec, unsafe beside
# threads and gRPC's fork hooks. It costs about 20 ms.
_LAUNCHER = (
    "import ctypes,os,sys;"
    "ctypes.CDLL(None).prctl(1,9);"
    "os.getppid()==int(sys.argv[1]) or os._exit(1);"
    "os.execvp(sys.argv[2],sys.argv[2:])"
)
# A log above this size is put aside (one generation) at the next start of its part.
LOG_BYTES_MAX = 32 * MIB
# How much of the end of a log is searched for the cause of an exit.
LOG_TAIL_BYTES = 64 * 1024
PROBE_INTERVAL_S = 0.05
_CAUSE = re.compile(r"error|exception|fatal|fail|cannot|in use|denied|refused|no such|not found|unable", re.IGNORECASE)
_STACK_FRAME = re.compile(r"^\s+(at |File |\^|\.\.\. \d+ more)|^Traceback ")

Probe = Callable[[], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """How to run one part, and how to see that it is ready.

    `probe` is called every 50 ms after the start until it returns True; an OSError
    means "not yet". It may raise PartFailedError to give up at once. `prepare` runs
    before every start, also before a restart, in the event loop; `note` is asked for
    a line to report once ready.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    probe: Probe | None = None
    prepare: Callable[[], Awaitable[None]] | None = None
    note: Callable[[], str] | None = None
    ready_timeout_s: float = 60.0
    stop_timeout_s: float = 10.0


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Pause before a restart: doubled after each death, back to the first after a healthy minute."""

    first_s: float = 0.5
    max_s: float = 30.0
    healthy_s: float = 60.0


class RestartPause:
    """Counts one part's deaths; the clock is an argument."""

    def __init__(self, policy: RestartPolicy, clock: Callable[[], float] = time.monotonic) -> None:
        self._policy = policy
        self._clock = clock
        self._ready_at: float | None = None
        self._next_s = policy.first_s

    def on_ready(self) -> None:
        """The part became ready now."""
        self._ready_at = self._clock()

    def on_exit(self, *, asked: bool = False) -> float:
        """The part ended now, `asked` by somebody or not; returns the pause in seconds before its next start."""
        if asked:
            self._ready_at = None
            return self._policy.first_s
        if self._ready_at is not None and self._clock() - self._ready_at >= self._policy.healthy_s:
            self._next_s = self._policy.first_s
        self._ready_at = None
        pause_s = self._next_s
        self._next_s = min(self._next_s * 2, self._policy.max_s)
        return pause_s


class LogTail:
    """Reads the whole lines a log file gained since this object was made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = path.stat().st_size if path.exists() else 0
        self._rest = b""

    def read_lines(self) -> list[str]:
        """The lines completed since the last call; empty when there are none, or no file yet."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < self._offset:
                self._offset, self._rest = 0, b""  # put aside and begun anew
            file.seek(self._offset)
            gained = file.read()
        self._offset += len(gained)
        *lines, self._rest = (self._rest + gained).split(b"\n")
        return [line.decode(errors="replace") for line in lines]


def find_cause(lines: list[str]) -> str:
    """The line of an output that best says why a program ended: the last that speaks of an error, else the last."""
    lines = [line.strip() for line in lines if line.strip() and not _STACK_FRAME.match(line)]
    named = [line for line in lines if _CAUSE.search(line)]
    return (named or lines or ["no output"])[-1][:400]


def describe_exit(code: int) -> str:
    """An exit status in words."""
    if code >= 0:
        return f"exited with status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


class Child:
    """One run of one part, in a session of its own. Started once; a restart is another Child.

    `start` returns as soon as the process exists. `wait_ready` and `wait_exit` may be
    cancelled at any time; `stop` ends the process in any case.
    """

    def __init__(self, spec: ProcessSpec, log_path: Path) -> None:
        self.spec = spec
        self.log_path = log_path
        self.id: ProcessId | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        """The process number, once started."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Prepare and spawn.

        Raises:
            PartFailedError: the program cannot be executed or prepared.
        """
        if self.spec.prepare is not None:
            await self.spec.prepare()
        if self.log_path.exists() and self.log_path.stat().st_size > LOG_BYTES_MAX:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        launcher = (sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()))
        with self.log_path.open("ab") as log:
            self._log_start = log.tell()
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *launcher,
                    *self.spec.argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=dict(self.spec.env),
                    cwd=self.spec.cwd,
                    start_new_session=True,
                )
            except OSError as error:
                raise PartFailedError(self.spec.name, str(error), self.log_path) from error
        # Gone already: 0 matches no process, and wait_ready reports the exit.
        self.id = ProcessId(self._process.pid, read_start_ticks(self._process.pid) or 0)

    async def wait_ready(self) -> None:
        """Wait for the probe, an early exit, or the time limit, whichever is first.

        Raises:
            PartFailedError: it exited, gave up, or took longer than `ready_timeout_s`.
        """
        if self.spec.probe is None:
            return
        probing = asyncio.create_task(self._probe(self.spec.probe))
        exiting = asyncio.create_task(self.wait_exit())
        try:
            await asyncio.wait(
                (probing, exiting), timeout=self.spec.ready_timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if exiting.done():
                why = f"{describe_exit(exiting.result())}: {self.find_cause()}"
            elif probing.done():
                probing.result()
                return
            else:
                why = f"not ready after {self.spec.ready_timeout_s:g} s: {self.find_cause()}"
            raise PartFailedError(self.spec.name, why, self.log_path)
        finally:
            probing.cancel()
            exiting.cancel()
            await asyncio.gather(probing, exiting, return_exceptions=True)

    async def wait_exit(self) -> int:
        """Wait for the end; returns the exit status, -N for signal N. Its own children are killed then."""
        assert self._process is not None, "start() comes first"
        code = await self._process.wait()
        # What it left in its session (Triton's stubs ignore SIGTERM). A group's number is
        # not given to another process while a member lives.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        return code

    async def stop(self, hurry: asyncio.Event | None = None) -> None:
        """SIGTERM to the process, and SIGKILL to its whole session after `stop_timeout_s` or on `hurry`."""
        if self._process is None:
            return
        exiting = asyncio.create_task(self.wait_exit())
        hurrying = asyncio.create_task((hurry or asyncio.Event()).wait())
        try:
            if self._process.returncode is None:
                self._process.terminate()
            await asyncio.wait(
                (exiting, hurrying), timeout=self.spec.stop_timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            hurrying.cancel()
            if not exiting.done():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            await exiting

    def find_cause(self) -> str:
        """The line of this run's output that best says why it ended."""
        if not self.log_path.exists():
            return "no output"
        with self.log_path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_start, end - LOG_TAIL_BYTES))
            return find_cause(file.read().decode(errors="replace").splitlines())

    async def _probe(self, probe: Probe) -> None:
        while True:
            with contextlib.suppress(OSError, EOFError):
                # EOFError: the server closed the connection, it is not yet serving.
                if await probe():
                    return
            await asyncio.sleep(PROBE_INTERVAL_S)
