"""An event loop in a thread of its own, for callers that have none."""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

Value = TypeVar("Value")


class LoopThread:
    """Runs coroutines until it is stopped.

    Attributes:
        pid: the process that it runs in.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        # A daemon: a client that was not closed never keeps a process from ending.
        self._thread = threading.Thread(target=self._loop.run_forever, name="inference client", daemon=True)
        self._thread.start()

    @property
    def is_current(self) -> bool:
        """Whether the caller runs on this loop."""
        return threading.current_thread() is self._thread

    def start(self, work: Coroutine[Any, Any, Value]) -> "Future[Value]":
        """Runs a coroutine; cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def stop(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs `last`, ends whatever still runs, and the thread. In a forked child there is nothing to end."""
        if self.pid != os.getpid() or self._loop.is_closed():
            return
        if self.is_current:
            # A client nobody holds any more was collected by its own thread, which cannot wait for itself.
            self._loop.stop()
            return
        try:
            self.start(self._end(last)).result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _end(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await last()
        finally:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await self._loop.shutdown_asyncgens()
            await self._loop.shutdown_default_executor()
