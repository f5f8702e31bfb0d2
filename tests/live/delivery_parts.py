"""The processes of a delivery, each killed and started again under its address; they die with the test run."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Literal, Protocol

import aiohttp

from pipeline.config import Settings
from pipeline.stack.process import _LAUNCHER
from tests.adapters.valkey_process import ValkeyProcess
from tests.live.processes import _free_port, environment
from tests.live.waiting import until
from tests.models.folders import PROJECT

# Imports take 3 s on an idle machine; a worker besides waits for the session of the one before it.
READY_S_MAX = 60.0
_STOP_S_MAX = 20.0
_PORT_SETTINGS = {
    "gateway": "PIPELINE_GATEWAY__PORT",
    "worker": "PIPELINE_WORKER__METRICS_PORT",
    "webhooks": "PIPELINE_WEBHOOKS__METRICS_PORT",
    "sink": "PIPELINE_SINK__METRICS_PORT",
}


class Killable(Protocol):
    """What a strike may meet."""

    name: str

    async def kill(self) -> None:
        """It is gone at once."""

    async def restart(self) -> None:
        """Starts it; returns when it is ready."""


class Part:
    """One process of the pipeline: `python -m pipeline <command>`, on the same port at every start.

    Args:
        name: for messages and logs; the word before its first hyphen is the command.
        settings: what it gets, by environment variables.
        variables: other environment variables it gets.
    """

    def __init__(self, name: str, settings: Settings, variables: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.port = _free_port()
        self._command = name.partition("-")[0]
        own = {"PYTHONUNBUFFERED": "1", _PORT_SETTINGS[self._command]: str(self.port)}
        self._environment = os.environ | own | environment(settings) | dict(variables or {})
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        self._log_path = settings.data_dir / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where its routes are."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What it has written, in all its lives."""
        return self._log_path.read_text(errors="replace")

    def spawn(self) -> None:
        """Starts it, and returns at once."""
        launcher = (sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()))
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                (*launcher, sys.executable, "-m", "pipeline", self._command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=PROJECT,
                env=self._environment,
                start_new_session=True,
            )

    async def kill(self) -> None:
        """SIGKILL, and nothing more."""
        self.check_running()
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    async def restart(self) -> None:
        """Starts it; returns when it is ready."""
        self.spawn()
        await self.wait_ready()

    async def is_ready(self) -> bool:
        """Whether `/health/ready` says so."""
        self.check_running()
        timeout = aiohttp.ClientTimeout(total=5)
        with suppress(aiohttp.ClientError, TimeoutError):
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(f"{self.url}/health/ready") as response,
            ):
                return response.status == 200
        return False

    async def wait_ready(self) -> None:
        """Returns when it is ready."""
        await until(self.is_ready, READY_S_MAX, f"{self.name} is ready")

    def check_running(self) -> None:
        """Nothing while it runs.

        Raises:
            AssertionError: it ended; with the end of its log.
        """
        code = self._process.poll() if self._process is not None else 0
        assert code is None, f"{self.name} ended with {code}:\n{self.log[-4000:]}"

    def ask_to_stop(self) -> None:
        """SIGTERM."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def stopped(self) -> str | None:
        """What was wrong with its end, or None; it is gone afterwards."""
        if self._process is None:
            return None
        try:
            code = self._process.wait(_STOP_S_MAX)
        except subprocess.TimeoutExpired:
            return f"{self.name} did not stop within {_STOP_S_MAX:g} s:\n{self.log[-4000:]}"
        finally:
            self._process.kill()
            self._process.wait()
        return None if code == 0 else f"{self.name} stopped with {code}:\n{self.log[-4000:]}"


class KillableValkey:
    """A Valkey that comes back empty.

    Args:
        process: running.
    """

    name = "valkey"

    def __init__(self, process: ValkeyProcess) -> None:
        self._process = process

    async def kill(self) -> None:
        """It is gone, with all it held."""
        self._process.kill()

    async def restart(self) -> None:
        """Another one, which knows nothing."""
        await asyncio.to_thread(self._process.start)


class Parts:
    """Parts that are started together, and stopped together, at the end of its block."""

    def __init__(self, *parts: Part) -> None:
        self._parts = parts

    async def __aenter__(self) -> "Parts":
        try:
            # Here and not in a thread: the kernel ends a child with the thread that made it.
            for part in self._parts:
                part.spawn()
            for part in self._parts:
                await part.wait_ready()
        except BaseException:
            self._stop()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> Literal[False]:
        problems = await asyncio.to_thread(self._stop)
        assert kind is not None or not problems, "\n".join(problems)
        return False

    def _stop(self) -> list[str]:
        for part in self._parts:
            part.ask_to_stop()
        return [problem for part in self._parts if (problem := part.stopped()) is not None]
