"""One pass at a time over a serving folder, whoever makes it: watchers, `models register`, the start of a stack.

The lock is the kernel's (flock on `<serving>.lock`): it ends with its holder, however that dies. One that is paused
keeps it: nobody changes the folder behind its back, and what is served goes on being served.
"""

import asyncio
import fcntl
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

_LOOK_S = 0.05
# A pass that loads a large model takes minutes; whoever waits longer than this says so once.
_TOLD_AFTER_S = 5.0


@asynccontextmanager
async def serving_lock(serving_dir: Path) -> AsyncIterator[None]:
    """Holds the lock of a serving folder for the block; waits for it as long as it must."""
    serving_dir.parent.mkdir(parents=True, exist_ok=True)
    path = serving_dir.with_name(f"{serving_dir.name}.lock")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        waited_s = 0.0
        while not _taken(descriptor):
            if waited_s <= _TOLD_AFTER_S < waited_s + _LOOK_S:
                logger.info("another watcher works on %s: waiting for it", serving_dir)
            await asyncio.sleep(_LOOK_S)
            waited_s += _LOOK_S
        yield
    finally:
        os.close(descriptor)


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
