"""One part of the stack over all its runs."""

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.stack.plan import PartFailedError, PartPhase, PartState
from pipeline.stack.process import Child, ProcessSpec, RestartPause, RestartPolicy, describe_exit

OnChange = Callable[[PartState], None]


class Part:
    """One part over all its runs: start, wait for the end, pause, start again.

    `start` returns when it is ready for the first time; from then on a task of its own
    restarts it until `stop`.
    """

    def __init__(
        self,
        spec: ProcessSpec,
        log_path: Path,
        policy: RestartPolicy,
        on_change: OnChange,
        on_process: Callable[[], None],
    ) -> None:
        self.spec = spec
        self.log_path = log_path
        self.child: Child | None = None
        self._pause = RestartPause(policy)
        self._on_change = on_change
        self._on_process = on_process
        self._supervision: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it and wait until it is ready.

        Raises:
            PartFailedError: it did not become ready; it is stopped then, and not restarted.
        """
        try:
            await self._run_once()
        except PartFailedError as error:
            self._tell(PartPhase.FAILED, why=error.cause)
            raise
        self._supervision = asyncio.create_task(self._supervise(), name=f"supervise {self.spec.name}")

    async def stop(self, hurry: asyncio.Event) -> None:
        """End it, and its restarts. Idempotent."""
        if self._supervision is not None:
            self._supervision.cancel()
            await asyncio.gather(self._supervision, return_exceptions=True)
            self._supervision = None
        if self.child is not None:
            await self.child.stop(hurry)
            self.child = None
            self._tell(PartPhase.STOPPED)

    async def _run_once(self) -> None:
        self._tell(PartPhase.STARTING)
        began = time.monotonic()
        self.child = Child(self.spec, self.log_path)
        try:
            await self.child.start()
            self._on_process()
            await self.child.wait_ready()
        except PartFailedError:
            await self.child.stop()
            self.child = None
            raise
        self._pause.on_ready()
        note = "" if self.spec.note is None else self.spec.note()
        self._tell(PartPhase.READY, why=note, elapsed_s=time.monotonic() - began)

    async def _supervise(self) -> None:
        while True:
            asked = False
            if self.child is not None:
                code = await self.child.wait_exit()
                # It was ready, and ended in order: somebody told it to, to have it start again (restart.py).
                asked = code in (0, -signal.SIGTERM)
                # A program that was killed did not know why, nor one that was told to end: its last line would mislead.
                cause = "" if asked or code == -signal.SIGKILL else f": {self.child.find_cause()}"
                self._tell(PartPhase.EXITED, code=code, why=describe_exit(code) + cause)
                self.child = None
            pause_s = self._pause.on_exit(asked=asked)
            self._tell(PartPhase.RESTARTING, pause_s=pause_s)
            await asyncio.sleep(pause_s)
            try:
                await self._run_once()
            except PartFailedError as error:
                self._tell(PartPhase.EXITED, why=error.cause)

    def _tell(
        self, phase: PartPhase, *, code: int | None = None, why: str = "", pause_s: float = 0.0, elapsed_s: float = 0.0
    ) -> None:
        pid = None if self.child is None else self.child.pid
        self._on_change(PartState(self.spec.name, phase, self.log_path, pid, code, why, pause_s, elapsed_s))
