"""Who waits for which result, and what wakes them: a copy of it, or a look into the store.

A copy (`inference.replies`) wakes at once. What no copy comes for, as it was accepted elsewhere, is asked for every
0.1 s, all of it together; what should have had its copy, every second. The first result of a name wins.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from pipeline.core.stored_result import StoredResult
from pipeline.gateway.delivery.metrics import DeliveryMetrics
from pipeline.ports import Clock

_log = logging.getLogger(__name__)

# A tenth of a second is what a person does not notice.
POLL_S = 0.1
# A copy is there as soon as the result is; one that is not may have gone to a gateway that took over the partition.
OVERDUE_S = 1.0
# 0.2 ms for each name keeps a thousand of them at 5,000 look-ups a second: a few percent of a core.
_POLL_S_PER_NAME = 0.0002


class Asked(NamedTuple):
    """A request whose result is waited for."""

    name: bytes
    tenant: str | None
    request_id: str


Ask = Callable[[Sequence[Asked]], Awaitable[Mapping[bytes, StoredResult]]]


class Awaited:
    """One name that is waited for, by any number of tasks."""

    def __init__(self, asked: Asked, every_s: float, now: float) -> None:
        self.asked = asked
        self.every_s = every_s
        self.look_at = now + every_s
        self.waiters = 0
        self.result: asyncio.Future[StoredResult] = asyncio.get_running_loop().create_future()

    async def wait(self, wait_s: float) -> StoredResult | None:
        """The result, or None when the time is over."""
        # Not wait_for: until Python 3.12 it swallows a cancellation that meets the result.
        try:
            async with asyncio.timeout(wait_s):
                return await asyncio.shield(self.result)
        except TimeoutError:
            return None


class Waiting:
    """The table of names that are waited for, and the task that asks for those that nothing wakes.

    Args:
        ask: what the store has of these; it raises nothing that is to be expected.
        clock: this process's time.
        metrics: where it counts.
        poll_s: how often a name is asked for that no copy comes for.
        overdue_s: how often another.
    """

    def __init__(
        self, ask: Ask, clock: Clock, metrics: DeliveryMetrics, *, poll_s: float = POLL_S, overdue_s: float = OVERDUE_S
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._metrics = metrics
        self._poll_s = poll_s
        self._overdue_s = overdue_s
        self._awaited: dict[bytes, Awaited] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._awaited)

    @contextmanager
    def awaiting(self, asked: Asked, *, comes_by_reply: bool) -> Iterator[Awaited]:
        """Waits from now on, so that nothing is missed between a look and the waiting."""
        every_s = self._overdue_s if comes_by_reply else self._poll_s
        awaited = self._awaited.get(asked.name)
        if awaited is None:
            awaited = self._awaited[asked.name] = Awaited(asked, every_s, self._clock.monotonic())
        elif every_s < awaited.every_s:
            awaited.every_s = every_s
            awaited.look_at = min(awaited.look_at, self._clock.monotonic() + every_s)
        awaited.waiters += 1
        self._changed.set()
        try:
            yield awaited
        finally:
            awaited.waiters -= 1
            if not awaited.waiters and self._awaited.get(asked.name) is awaited:
                del self._awaited[asked.name]

    def offer(self, name: bytes, result: StoredResult, brought_by: str) -> bool:
        """Gives a result to who waits for it, if anybody does; the first one counts."""
        awaited = self._awaited.pop(name, None)
        if awaited is None or awaited.result.done():
            return False
        awaited.result.set_result(result)
        self._metrics.waits[brought_by] += awaited.waiters
        return True

    def stored(self, names: Iterable[bytes]) -> None:
        """These have results in the store by now: who waits for one is told after a look, without a pause."""
        for name in names:
            if (awaited := self._awaited.get(name)) is not None:
                awaited.look_at = self._clock.monotonic()
                self._changed.set()

    async def run(self) -> None:
        """Asks for what nothing wakes, for ever."""
        while True:
            self._changed.clear()
            now = self._clock.monotonic()
            if any(awaited.look_at <= now for awaited in self._awaited.values()):
                # With all that would be due until the next look: one for all of them, not one for each that came.
                soon = now + self._poll_s
                await self._look([awaited for awaited in self._awaited.values() if awaited.look_at <= soon])
                continue
            pause_s = min((awaited.look_at - now for awaited in self._awaited.values()), default=None)
            try:
                async with asyncio.timeout(pause_s):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _look(self, due: Sequence[Awaited]) -> None:
        found = await self._ask([awaited.asked for awaited in due])
        for name, result in found.items():
            self.offer(name, result, "store")
        # From after the answer: a slow store is asked less often, not without a pause.
        now, least_s = self._clock.monotonic(), len(due) * _POLL_S_PER_NAME
        for awaited in due:
            awaited.look_at = now + max(awaited.every_s, least_s)
