"""The load generator over HTTP: requests at a fixed rate, each one's time from when it was due until its last byte."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

from pipeline.bench.http_pool import HttpPool

_LOOK_S = 0.1


async def due_times(began: float, rate: float, count: int) -> AsyncIterator[tuple[int, float]]:
    """Number and time of each request of an open loop, told when it is due; times are `perf_counter`'s."""
    for number in range(count):
        due = began + number / rate
        if (pause_s := due - time.perf_counter()) > 0:
            await asyncio.sleep(pause_s)
        yield number, due


class HttpLoop:
    """Sends bodies to one address at a fixed rate whatever becomes of them.

    Args:
        pool: the address.
    """

    def __init__(self, pool: HttpPool) -> None:
        self._pool = pool

    async def first_answer(self, body: bytes, limit_s: float = 120.0) -> None:
        """Asks until it is answered well.

        Raises:
            TimeoutError: it never was.
        """
        async with asyncio.timeout(limit_s):
            while not await self._answers(body):  # noqa: ASYNC110 - another process's state
                await asyncio.sleep(_LOOK_S)

    async def run(self, bodies: Sequence[bytes], rate: float, skip: int) -> list[float]:
        """Milliseconds of each request after the first `skip` of them, in order.

        Raises:
            RuntimeError: one was not answered well.
        """
        began = time.perf_counter() + 0.05
        tasks = [
            asyncio.create_task(self._timed(bodies[number], due))
            async for number, due in due_times(began, rate, len(bodies))
        ]
        return (await asyncio.gather(*tasks))[skip:]

    async def _timed(self, body: bytes, due: float) -> float:
        answer = await self._pool.post(body)
        if answer.status != 200:
            raise RuntimeError(f"{self._pool.url} answered {answer.status}: {answer.body[:300]!r}")
        return (time.perf_counter() - due) * 1e3

    async def _answers(self, body: bytes) -> bool:
        try:
            return (await self._pool.post(body)).status == 200
        except OSError:  # also TimeoutError
            return False
