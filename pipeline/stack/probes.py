"""Single questions to a server that is starting. Each raises OSError or EOFError for "not yet"."""

import asyncio

# One question on the loopback. A server that accepts and then says nothing is asked again.
ANSWER_TIMEOUT_S = 2.0


async def ask(port: int, question: bytes, answer_bytes_max: int = 64) -> bytes:
    """Send `question` to a loopback port; returns the first bytes of the answer.

    Raises:
        OSError: nobody listens, the connection broke, or no answer within 2 s (TimeoutError).
    """
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(question)
            await writer.drain()
            return await reader.read(answer_bytes_max)
        finally:
            writer.close()


async def accepts(port: int) -> bool:
    """Whether somebody listens on a loopback port.

    Raises:
        OSError: nobody does.
    """
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        return True


async def answers_http_ok(port: int, path: str) -> bool:
    """Whether GET `path` on a loopback port answers 200.

    Raises:
        OSError: no answer.
    """
    question = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode()
    status = (await ask(port, question)).split(b" ", 2)
    return len(status) > 1 and status[1] == b"200"
