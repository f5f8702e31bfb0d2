"""Whether this process still is in its group: asked before anything is published.

A process that was paused does not know it. Its partitions may have another owner by then, who answers the very
requests it was about to answer. So nothing is published unless a heartbeat of the lane's own generation began less
than half a session ago; else one is confirmed first. What slips through between the look and the broker is settled by
"the first result in the log is the answer".
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from pipeline.core.lane import Lane

# Kafka is away: a heartbeat that cannot be sent is tried again this soon.
_PAUSE_S = 0.2


def uptime_s() -> float:
    """Seconds that go on while the process is stopped and while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Membership:
    """What the last successful heartbeat says.

    Args:
        session_s: the group's session timeout: after that long without a heartbeat the partitions are given away.
        clock: `uptime_s`.
    """

    def __init__(self, session_s: float, clock: Callable[[], float] = uptime_s) -> None:
        self._session_s = session_s
        self._fresh_s = session_s / 2
        self._clock = clock
        self._beat: tuple[int, float] = (-1, 0.0)
        self._send: Callable[[], Awaitable[int | None]] | None = None

    def send_with(self, send: Callable[[], Awaitable[int | None]]) -> None:
        """How a heartbeat is sent: it answers with the generation it was sent for, None where Kafka gave no answer.

        A generation that is over answers with another one.
        """
        self._send = send

    def note(self, generation: int, began_at: float) -> None:
        """A heartbeat of this generation was answered; it began then."""
        self._beat = (generation, began_at)

    def is_fresh(self, lane: Lane) -> bool:
        """Whether the lane certainly is ours still."""
        generation, began_at = self._beat
        return generation == lane.generation and self._clock() - began_at < self._fresh_s

    def is_recent(self) -> bool:
        """Whether Kafka took us for a member within the last session: then it has not given us up by itself."""
        generation, began_at = self._beat
        return generation > 0 and self._clock() - began_at < self._session_s

    async def hold(self, lane: Lane) -> bool:
        """Makes certain that the lane is ours, with a heartbeat where needed; a lane that is not is closed."""
        while not lane.closed:
            if self.is_fresh(lane):
                return True
            began_at = self._clock()
            assert self._send is not None, "there are no lanes before there is a group"
            generation = await self._send()
            if generation is None:
                await asyncio.sleep(_PAUSE_S)
            elif generation == lane.generation:
                self.note(generation, began_at)
            else:
                lane.closed = True
        return False
