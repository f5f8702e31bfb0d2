"""A door in front of a server: closed, nobody is there; open, bytes pass. The server itself is left alone."""

import asyncio
import socket
from contextlib import suppress
from types import TracebackType
from typing import Self


class Gate:
    """Forwards a loopback port to a server while it is open. As a context manager it starts closed, and ends so.

    Args:
        target: host:port of the server.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._server: asyncio.Server | None = None
        self._passing: set[asyncio.Task[None]] = set()
        self._reserved = socket.socket()

    @property
    def address(self) -> str:
        """host:port of the door."""
        return f"127.0.0.1:{self._reserved.getsockname()[1]}"

    async def __aenter__(self) -> Self:
        # Bound and not listening: connections are refused, and nobody else gets the port.
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", 0))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._passing:
            task.cancel()
        await asyncio.gather(*self._passing, return_exceptions=True)
        self._reserved.close()

    async def open(self) -> None:
        """From now on connections pass."""
        self._server = await asyncio.start_server(self._accept, sock=self._reserved.dup())

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._passing.add(task)
        task.add_done_callback(self._passing.discard)
        there_reader, there_writer = await asyncio.open_connection(*self._target)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_pump(reader, there_writer))
                both.create_task(_pump(there_reader, writer))
        finally:
            for one in (writer, there_writer):
                one.close()
                with suppress(OSError):
                    await one.wait_closed()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()
