"""The product's processes, started by its command line and kept as an operator with systemd keeps them."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from contextlib import suppress
from pathlib import Path
from threading import Event, RLock, Thread
from types import TracebackType
from typing import Any, Self

from tests.faults.waiting import NotInTimeError, wait_until

PROJECT = Path(__file__).resolve().parents[2]
READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0
# systemd's RestartSec of a service that matters.
_RESTART_S = 0.5
_LOOK_S = 0.1
_READY_LINE = "Ctrl-C stops everything"
# The kernel kills the child with its parent (PR_SET_PDEATHSIG), so an aborted run leaves nothing behind.
_LAUNCHER = "import ctypes,os,sys;ctypes.CDLL(None).prctl(1,9);os.execvp(sys.argv[1],sys.argv[1:])"
# The local stack takes the ports of this book where they are free: other stacks of this machine are not met.
_LISTENERS = (
    "kafka", "kafka-controller", "valkey", "clickhouse",
    *(f"triton-{index}-{kind}" for index in (0, 1) for kind in ("http", "grpc", "metrics")),
)  # fmt: skip
_PORTS = range(20_000, 32_000)


def free_port() -> int:
    """A loopback port that nobody listens on, below those of outgoing connections."""
    while True:
        port = random.choice(_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def start(argv: list[str], environment: dict[str, str], log_path: Path) -> "subprocess.Popen[bytes]":
    """A process in a session of its own; its output is appended to the log."""
    with log_path.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LAUNCHER, sys.executable, "-m", "pipeline", *argv],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=PROJECT,
            env={**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": "1", **environment},
            start_new_session=True,
        )


class Servers:
    """`pipeline up` without workers and sink: the real servers under their own supervisor.

    Args:
        data_dir: the product's; made and given ports if it is not there.
        logs_dir: of the oracle.
    """

    def __init__(self, data_dir: Path, logs_dir: Path) -> None:
        self.data_dir = data_dir
        self._log_path = logs_dir / "up.log"
        self._environment = {"PIPELINE_DATA_DIR": str(data_dir)}
        self._process: subprocess.Popen[bytes] | None = None
        if not data_dir.exists():
            data_dir.mkdir(parents=True)
            (data_dir / "ports.json").write_text(json.dumps({name: free_port() for name in _LISTENERS}))

    def start(self) -> None:
        """Starts everything; returns when it is ready.

        Raises:
            NotInTimeError: it is not, or ended.
        """
        begin = self._log_path.stat().st_size if self._log_path.exists() else 0
        self._process = start(["up", "--workers", "0", "--no-sink"], self._environment, self._log_path)
        process = self._process

        def ready() -> bool:
            if process.poll() is not None:
                raise NotInTimeError(f"`pipeline up` ended with {process.returncode}: {self._tail(begin)}")
            return _READY_LINE in self._tail(begin)

        wait_until(ready, READY_TIMEOUT_S, "`pipeline up` is ready")

    def end(self, number: signal.Signals) -> int:
        """Sends a signal to the supervisor and waits for its end; returns its exit code."""
        assert self._process is not None, "start() comes first"
        self._process.send_signal(number)
        return self._process.wait(STOP_TIMEOUT_S)

    def close(self) -> None:
        """Stops everything, if it still runs."""
        if self._process is not None and self._process.poll() is None:
            try:
                self.end(signal.SIGTERM)
            finally:
                self._process.kill()
                self._process.wait()

    def status(self) -> dict[str, Any]:
        """What `pipeline status --json` says, whatever is down."""
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", "status", "--json"],
            env={**os.environ, "PYTHONPATH": str(PROJECT), **self._environment},
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            timeout=READY_TIMEOUT_S,
            check=False,
        )
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def pid(self, name: str) -> int:
        """A server's process now; waits for one that is being restarted.

        Raises:
            NotInTimeError: it does not come back.
        """
        found: dict[str, int] = {}

        def runs() -> bool:
            found.update({one["name"]: one["pid"] for one in self.status()["processes"] or ()})
            return name in found

        wait_until(runs, READY_TIMEOUT_S, f"{name} runs")
        return found[name]

    def _tail(self, begin: int) -> str:
        with self._log_path.open("rb") as log:
            log.seek(begin)
            return log.read().decode(errors="replace")


class Service:
    """One worker or sink, over all its processes. `Services` starts it again while it is wanted."""

    def __init__(self, name: str, command: str, environment: dict[str, str], logs_dir: Path) -> None:
        self.name = name
        self.command = command
        self.wanted = True
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.ended_at = 0.0
        self._environment = environment | {f"PIPELINE_{command.upper()}__METRICS_PORT": str(self.port)}
        self._log_path = logs_dir / f"{name}.log"

    @property
    def pid(self) -> int | None:
        """Its process now."""
        return self.process.pid if self.process is not None and self.process.poll() is None else None

    def start(self) -> None:
        """Starts a process."""
        self.process = start([self.command], self._environment, self._log_path)

    def is_ready(self) -> bool:
        """Whether it says of itself that it is ready."""
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health/ready", timeout=2):
            return True
        return False

    def rss_mib(self) -> float | None:
        """Resident memory of its process; None while there is none."""
        if (pid := self.pid) is None:
            return None
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return round(int(line.split()[1]) / 1024, 1)
        return None


class Services:
    """Workers and sinks: what ends while it is wanted is started again. A context manager; leaving it stops all.

    Attributes:
        exits: by command, how often a process ended with which code; -9 is ours.
    """

    def __init__(self, environment: dict[str, str], logs_dir: Path) -> None:
        self.exits: dict[str, Counter[int]] = {}
        self._environment = environment
        self._logs_dir = logs_dir
        self._services: dict[str, Service] = {}
        self._lock = RLock()
        self._stopping = Event()
        self._minder = Thread(target=self._mind, name="services", daemon=True)

    def __enter__(self) -> Self:
        self._minder.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The minder last: what it started dies with its thread.
        try:
            self.stop(list(self._services))
        finally:
            self._stopping.set()
            self._minder.join()
            for service in self._services.values():
                if service.process is not None and service.process.poll() is None:
                    service.process.kill()
                    service.process.wait()

    def add(self, name: str, command: str, **settings: str) -> Service:
        """Wants one more; `settings` are environment variables."""
        with self._lock:
            service = self._services.setdefault(
                name, Service(name, command, self._environment | settings, self._logs_dir)
            )
            service.wanted = True
            return service

    def all(self, command: str | None = None) -> list[Service]:
        """Those that are wanted."""
        with self._lock:
            return [one for one in self._services.values() if one.wanted and command in (None, one.command)]

    def stop(self, names: list[str]) -> None:
        """SIGTERM; returns when all have ended. They are not wanted any more.

        Raises:
            NotInTimeError: one did not end.
        """
        with self._lock:
            stopped = [self._services[name] for name in names]
            for service in stopped:
                service.wanted = False
                if (pid := service.pid) is not None:
                    os.kill(pid, signal.SIGCONT)
                    os.kill(pid, signal.SIGTERM)
        wait_until(
            lambda: all(one.process is None for one in stopped),
            STOP_TIMEOUT_S,
            f"{', '.join(names)} ended after SIGTERM",
        )

    def _mind(self) -> None:
        while not self._stopping.wait(_LOOK_S):
            with self._lock:
                for service in self._services.values():
                    if service.process is not None and (code := service.process.poll()) is not None:
                        self.exits.setdefault(service.command, Counter())[code] += 1
                        service.process, service.ended_at = None, time.monotonic()
                    if service.wanted and service.process is None and time.monotonic() > service.ended_at + _RESTART_S:
                        service.start()
