"""Virtual time: an event loop whose clock jumps to the next timer instead of waiting for it.

Everything that asks the loop or the `FakeClock` for the time sees the same one, so a scenario of minutes runs in
milliseconds and always the same way. A scenario in which nothing can happen any more fails instead of hanging.
"""

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
Result = TypeVar("Result")

# 2026-11-22T22:00:00Z, and a monotonic start that no one mistakes for it.
UNIX_START = 1_795_384_800.0
MONOTONIC_START = 1_000.0


class FakeClock:
    """A clock that is moved by the virtual loop, or by hand.

    Attributes:
        skew_s: how far the wall clock is off; monotonic time has no such error.
    """

    def __init__(self) -> None:
        self._monotonic = MONOTONIC_START
        self.skew_s = 0.0

    def now(self) -> float:
        """Unix time in seconds."""
        return UNIX_START + self._monotonic - MONOTONIC_START + self.skew_s

    def monotonic(self) -> float:
        """Seconds from an unknown start."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Moves time on."""
        self._monotonic += seconds


class StuckError(AssertionError):
    """The scenario waits for something that nobody will do."""


class _VirtualSelector(selectors.DefaultSelector):
    """Waiting for events takes no time: the clock jumps instead."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise StuckError("the scenario waits, and nothing is due")
        self._clock.advance(max(timeout, 0.0))
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on a `FakeClock`. Errors that nobody took end up in `lost`."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(_VirtualSelector(clock))
        self._fake_clock = clock
        self.lost: list[str] = []
        self.set_exception_handler(lambda _, context: self.lost.append(str(context)))

    def time(self) -> float:
        """The loop's time is the clock's."""
        return self._fake_clock.monotonic()


def run_simulated(scenario: Coroutine[Any, Any, Result], clock: FakeClock | None = None) -> Result:
    """Runs a scenario in virtual time.

    Raises:
        AssertionError: it got stuck, or a task failed and nobody noticed.
    """
    loop = VirtualLoop(clock or FakeClock())
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        result = runner.run(scenario)
    assert not loop.lost, f"errors that nobody took: {loop.lost}"
    return result


def the_clock() -> FakeClock:
    """The clock of the virtual loop that runs now."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop._fake_clock


def simulated(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Makes a test of an async function: it runs in virtual time, on a clock of its own."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        run_simulated(test(*args, **kwargs))

    # pytest-asyncio would take the wrapped function for a coroutine and run it on a loop of its own.
    return run


async def settle() -> None:
    """Lets everything that is ready now run; no time passes."""
    for _ in range(20):
        await asyncio.sleep(0)
