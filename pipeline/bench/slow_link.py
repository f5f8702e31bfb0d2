"""A TCP link to a server that can be made slow: what the server sends comes later, in order."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

_CHUNK = 1 << 16


class SlowLink:
    """Forwards connections to a server on this host.

    Attributes:
        delay_s: how much later the server's bytes arrive; may be changed at any time.
        address: host:port to connect to, once it is open.
    """

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._tasks: set[asyncio.Task[None]] = set()
        self.delay_s = 0.0
        self.address = ""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["SlowLink"]:
        """Listens on a free port; at the end every connection is closed."""
        server = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.close()
            return
        there = asyncio.create_task(self._pump(reader, server_writer, slowly=False))
        back = asyncio.create_task(self._pump(server_reader, writer, slowly=True))
        for task in (there, back):
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, slowly: bool) -> None:
        loop = asyncio.get_running_loop()
        due = 0.0
        try:
            while chunk := await reader.read(_CHUNK):
                due = max(due, loop.time() + (self.delay_s if slowly else 0.0))  # never overtakes what came before
                loop.call_at(due, _write, writer, chunk)
        except OSError:
            pass
        finally:
            loop.call_at(max(due, loop.time()), writer.close)


def _write(writer: asyncio.StreamWriter, chunk: bytes) -> None:
    with suppress(OSError, RuntimeError):
        writer.write(chunk)
