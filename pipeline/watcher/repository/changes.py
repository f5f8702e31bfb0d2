"""When the repository is worth another look: at an interval, and sooner when the file system says so.

A look reads no file: names, sizes and times tell whether anything changed. Network file systems send no notices, and
some change times only to the second: the interval stands behind both.
"""

import asyncio
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from watchfiles import awatch

logger = logging.getLogger(__name__)

Look = frozenset[tuple[str, int, int, int]]

# Notices of one copy come in a row; a look at the end of it is enough.
_DEBOUNCE_MS = 200
_REWATCH_S = 5.0


def look_at(repository: Path) -> Look | None:
    """Name, size, time of change and inode of everything in the repository; None where it cannot be read. Blocks."""
    try:
        return frozenset(_entries(str(repository), ""))
    except OSError:
        return None


def _entries(path: str, prefix: str) -> Iterator[tuple[str, int, int, int]]:
    with os.scandir(path) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            try:
                found = entry.stat(follow_symlinks=True)
                is_folder = entry.is_dir(follow_symlinks=False)
            except FileNotFoundError:
                continue  # gone while it was looked at, or a link to nothing: the next look has its state
            yield name, found.st_size, found.st_mtime_ns, found.st_ino
            if is_folder:
                yield from _entries(entry.path, f"{name}/")


class RepositoryChanges:
    """Notices of the file system.

    Args:
        repository: the folder; it may come and go.
    """

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._noticed = asyncio.Event()

    async def wait(self, timeout_s: float) -> None:
        """Returns at a notice, at the latest after so many seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._noticed.wait()
        except TimeoutError:
            return
        self._noticed.clear()

    def notice(self) -> None:
        """Ends a wait."""
        self._noticed.set()

    async def run(self) -> None:
        """Listens until it is cancelled."""
        while True:
            try:
                async for _ in awatch(self._repository, debounce=_DEBOUNCE_MS, step=50, recursive=True):
                    self._noticed.set()
            except (OSError, RuntimeError) as error:
                logger.info("no notices of %s, it is looked at by the clock: %s", self._repository, error)
            await asyncio.sleep(_REWATCH_S)
