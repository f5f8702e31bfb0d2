"""Who restarts a server: the operator's command, or the supervisor of the local stack."""

import asyncio
import os
import shlex
import signal
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from pipeline.errors import StackError
from pipeline.stack.restart import end_triton
from pipeline.watcher.fleet.check import NotRestarted

# The end of a command's output that its last line is looked for in.
_TAIL_BYTES = 4096
_LINE_CHARACTERS_MAX = 400


class RestartCommand:
    """Runs a command for each restart, without a shell.

    Args:
        template: `docker restart {instance}`; the fields are those of `watcher.restart_command`.
        names: address -> the instance's name.
        timeout_s: how long the command may run; it is killed then, with what it started.
    """

    def __init__(self, template: str, names: Mapping[str, str], timeout_s: float) -> None:
        self._words = shlex.split(template)
        self._names = names
        self._timeout_s = timeout_s

    async def restart(self, address: str) -> None:
        """Returns when the command has ended well.

        Raises:
            NotRestarted: with the command, its exit code and the last line that it wrote.
        """
        host, _, port = address.rpartition(":")
        fields = {"instance": self._names[address], "address": address, "host": host, "port": port}
        argv = [word.format_map(fields) for word in self._words]
        # A file, not a pipe: what the command leaves running may keep its output open.
        with tempfile.TemporaryFile() as output:
            try:
                process = await asyncio.create_subprocess_exec(
                    *argv, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
                )
            except OSError as error:
                raise NotRestarted(address, f"`{shlex.join(argv)}` cannot be run: {error}") from None
            outcome = await self._outcome(process)
            if outcome:
                raise NotRestarted(address, f"`{shlex.join(argv)}` {outcome}: {_last_line(output)}")

    async def _outcome(self, process: asyncio.subprocess.Process) -> str:
        """How the command failed; empty where it did not."""
        try:
            async with asyncio.timeout(self._timeout_s):
                code = await process.wait()
        except TimeoutError:
            return f"did not end within {self._timeout_s:g} s (PIPELINE_WATCHER__RESTART_TIMEOUT_S)"
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        return f"exited with status {code}" if code else ""


class LocalRestart:
    """Ends Tritons of the local stack, whose supervisor starts them again.

    Args:
        data_dir: where the stack runs.
    """

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir

    async def restart(self, address: str) -> None:
        """Returns when the process at this address has its SIGTERM.

        Raises:
            NotRestarted: no process of a running stack serves there.
        """
        try:
            end_triton(self._data_dir, address)
        except StackError as error:
            raise NotRestarted(address, str(error)) from None


def _last_line(output: IO[bytes]) -> str:
    output.seek(max(output.seek(0, os.SEEK_END) - _TAIL_BYTES, 0))
    lines = [line for line in output.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:_LINE_CHARACTERS_MAX] if lines else "no output"
