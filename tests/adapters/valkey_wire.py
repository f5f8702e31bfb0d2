"""The wire between a cache and its Valkey, which holds what it is told to hold until it is let go."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from pipeline.config import RedisSettings


class Wire:
    """Forwards a loopback port to a server, both ways, in order. A context manager.

    Args:
        url: the server's.

    Attributes:
        held: set once something is held.
        replies_bytes_max: how many bytes of replies pass until it is let go; None for all.
    """

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self.held = asyncio.Event()
        self.replies_bytes_max: int | None = None
        self._replies_bytes = 0
        self._marker: bytes | None = None
        self._let_go = asyncio.Event()
        self._pumps: list[asyncio.Task[None]] = []

    @property
    def settings(self) -> RedisSettings:
        """The address of the near end."""
        return RedisSettings(url=f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}")

    def hold(self, marker: bytes) -> None:
        """Commands with these bytes, and all that follow them, wait."""
        self._marker = marker

    def let_go(self) -> None:
        """Everything passes from now on."""
        self._let_go.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(self._target.hostname, self._target.port)
        for pump in (self._commands(reader, there_writer), self._replies(there_reader, writer)):
            self._pumps.append(asyncio.create_task(pump))

    async def _commands(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with _closing(writer):
            while commands := await reader.read(1 << 16):
                if self._marker is not None and self._marker in commands:
                    await self._wait()
                writer.write(commands)

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with _closing(writer):
            while replies := await reader.read(1 << 12):
                self._replies_bytes += len(replies)
                if self.replies_bytes_max is not None and self._replies_bytes > self.replies_bytes_max:
                    await self._wait()
                writer.write(replies)

    async def _wait(self) -> None:
        self.held.set()
        await self._let_go.wait()
        self._marker = self.replies_bytes_max = None


@asynccontextmanager
async def _closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """What was written leaves, and the other end hears that no more comes."""
    with suppress(ConnectionError):
        try:
            yield
        finally:
            writer.close()
            await writer.wait_closed()
