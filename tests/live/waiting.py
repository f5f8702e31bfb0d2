"""Waiting for a condition, with a limit: no test sleeps for luck."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Found = TypeVar("Found")

LOOK_S = 0.05


async def until(look: Callable[[], Awaitable[Found]], timeout_s: float, what: str) -> Found:
    """Looks again and again until something is found that counts as true; returns it.

    Raises:
        AssertionError: nothing was found within `timeout_s`; the message names what was waited for.
    """
    found: Found | None = None
    try:
        async with asyncio.timeout(timeout_s):
            while not (found := await look()):  # noqa: ASYNC110 - other processes' state, no event tells of it
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        raise AssertionError(f"{what}: not within {timeout_s:g} s, last seen: {found!r}") from None
    return found


def run_in_thread(work: Coroutine[Any, Any, Found]) -> Found:
    """Runs a coroutine in an event loop of its own: for fixtures that outlive a test's loop."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
