"""Workers and sinks as child processes, watched over their status routes and stopped by their pid."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import aiohttp
from pydantic import BaseModel, SecretStr

from pipeline.config import Settings
from pipeline.stack.process import _LAUNCHER
from tests.live.waiting import run_in_thread, until
from tests.models.folders import PROJECT

Command = Literal["worker", "sink"]

# Imports, Kafka, the models topic, the group: 3 s on an idle machine.
READY_TIMEOUT_S = 40.0
# Running misses get 5 s, then everything is confirmed.
STOP_TIMEOUT_S = 15.0
_LOG_TAIL = 6000


class ServiceProcess:
    """One process of the pipeline: `python -m pipeline <command>`.

    It is bound to no event loop, and dies with the test run.

    Args:
        command: what to run.
        settings: what it gets, by environment variables.
        variables: other environment variables it gets.
    """

    def __init__(self, command: Command, settings: Settings, variables: Mapping[str, str] | None = None) -> None:
        self.command = command
        self.port = _free_port()
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        self._log_path = settings.data_dir / f"{command}-{self.port}.log"
        launcher = (sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()))
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                (*launcher, sys.executable, "-m", "pipeline", command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=PROJECT,
                env=os.environ
                | {"PYTHONUNBUFFERED": "1"}
                | environment(settings)
                | {f"PIPELINE_{command.upper()}__METRICS_PORT": str(self.port)}
                | dict(variables or {}),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has written."""
        return self._log_path.read_text(errors="replace")

    @property
    def exit_code(self) -> int | None:
        """How it ended, or None while it runs."""
        return self._process.poll()

    async def get(self, path: str) -> tuple[int, str]:
        """Status and body of one of its routes.

        Raises:
            aiohttp.ClientError: it does not listen yet, or any more.
        """
        timeout = aiohttp.ClientTimeout(total=5)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"http://127.0.0.1:{self.port}{path}") as response,
        ):
            return response.status, await response.text()

    async def state(self) -> dict[str, Any]:
        """What `/status` says; empty while it does not answer."""
        with suppress(aiohttp.ClientError, TimeoutError):
            status, body = await self.get("/status")
            if status == 200:
                state: dict[str, Any] = json.loads(body)
                return state
        self.check_running()
        return {}

    async def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Returns when `/health/ready` says so.

        Raises:
            AssertionError: it ended, or was not ready in time; with the end of its log.
        """

        async def ready() -> bool:
            return bool((await self.state()).get("ready"))

        try:
            await until(ready, timeout_s, f"{self.command} {self.pid} is ready")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log[-_LOG_TAIL:]}") from None

    async def wait_partitions(self, enough: Callable[[list[int]], bool], timeout_s: float = 40.0) -> list[int]:
        """The partitions it has, once they are what is wanted."""

        async def has() -> list[int]:
            partitions: list[int] = (await self.state()).get("partitions", [])
            return partitions if enough(partitions) else []

        return await until(has, timeout_s, f"{self.command} {self.pid} has its partitions")

    async def wait_log(self, text: str, timeout_s: float = 20.0) -> None:
        """Returns when a text stands in its log."""

        async def found() -> bool:
            self.check_running()
            return text in self.log

        await until(found, timeout_s, f"{text!r} in the log of {self.command} {self.pid}")

    async def wait_exit(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Its exit code; -N for death by signal N.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        return await asyncio.to_thread(self._process.wait, timeout_s)

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to it."""
        self._process.send_signal(number)

    def check_running(self) -> None:
        """Nothing while it runs.

        Raises:
            AssertionError: it ended; with the end of its log.
        """
        if (code := self.exit_code) is not None:
            raise AssertionError(f"{self.command} {self.pid} ended with {code}:\n{self.log[-_LOG_TAIL:]}")

    def stop(self) -> str | None:
        """Ends it if it still runs: SIGTERM, SIGKILL after the limit. Returns what went wrong, or None."""
        if self.exit_code is not None:
            return None
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        try:
            code = self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return f"{self.command} {self.pid} did not stop within {STOP_TIMEOUT_S:g} s:\n{self.log[-_LOG_TAIL:]}"
        finally:
            # After the limit, or a second Ctrl-C while it is waited for.
            self._process.kill()
            self._process.wait()
        return None if code == 0 else f"{self.command} {self.pid} stopped with {code}:\n{self.log[-_LOG_TAIL:]}"


class ProcessGroup:
    """The processes of one test or module: started by it, stopped at its end."""

    def __init__(self) -> None:
        self._processes: list[ServiceProcess] = []

    async def start(
        self, command: Command, settings: Settings, *, ready: bool = True, variables: Mapping[str, str] | None = None
    ) -> ServiceProcess:
        """Starts a process; returns when it is ready, if that is wanted."""
        process = self.spawn(command, settings, variables)
        if ready:
            await process.wait_ready()
        return process

    def start_blocking(self, command: Command, settings: Settings) -> ServiceProcess:
        """Likewise for a fixture without an event loop."""
        # Here and not in that thread: the kernel ends a child with the thread that made it.
        process = self.spawn(command, settings)
        run_in_thread(process.wait_ready())
        return process

    def spawn(self, command: Command, settings: Settings, variables: Mapping[str, str] | None = None) -> ServiceProcess:
        """Starts a process and returns at once."""
        process = ServiceProcess(command, settings, variables)
        self._processes.append(process)
        return process

    def stop(self) -> None:
        """Stops all, the last started first.

        Raises:
            AssertionError: one did not stop as it should.
        """
        problems = [problem for process in reversed(self._processes) if (problem := process.stop()) is not None]
        assert not problems, "\n".join(problems)


def environment(settings: Settings) -> dict[str, str]:
    """The `PIPELINE_` variables of everything that is not a default."""
    variables = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            for member in value.model_fields_set:
                variables[f"PIPELINE_{name}__{member}".upper()] = _as_text(getattr(value, member))
        elif name in settings.model_fields_set:
            variables[f"PIPELINE_{name}".upper()] = _as_text(value)
    return variables


def _as_text(value: Any) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, tuple):
        return ",".join(value)
    return value if isinstance(value, str) else str(value.absolute()) if isinstance(value, Path) else json.dumps(value)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
