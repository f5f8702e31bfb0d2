"""Which answers somebody waits for, and the first answer to each. No I/O; everything runs on one event loop."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakValueDictionary

from pipeline.errors import InferenceFailed, PipelineError
from schemas.errors import ErrorCode

# A request's place: an id counts within one partition alone.
Place = tuple[str, int]


class ResultRecord(NamedTuple):
    """One record of the results topic as it was read."""

    partition: int
    offset: int
    value: bytes
    headers: Sequence[tuple[str, bytes]]


class PendingAnswer:
    """The first answer to one request, or the error that ended the waiting. Whoever waits keeps it alive."""

    __slots__ = ("__weakref__", "_future")

    def __init__(self) -> None:
        self._future: asyncio.Future[ResultRecord | PipelineError] = asyncio.get_running_loop().create_future()

    def settle(self, outcome: ResultRecord | PipelineError) -> None:
        """Keeps the first outcome; later ones are ignored, as every reader of results does."""
        if not self._future.done():
            self._future.set_result(outcome)

    async def wait(self, timeout_s: float) -> ResultRecord:
        """The answer. Any number of tasks may wait; cancelling one leaves the others alone.

        Raises:
            TimeoutError: nothing came within `timeout_s` seconds.
            PipelineError: answers cannot come any more.
        """
        # Not wait_for: until Python 3.12 it swallows a cancellation that meets the answer.
        async with asyncio.timeout(timeout_s):
            outcome = await asyncio.shield(self._future)
        if isinstance(outcome, PipelineError):
            raise outcome
        return outcome


class PendingAnswers:
    """The table of answers that are waited for.

    An entry lives as long as somebody holds it, so requests whose answer nobody asks for cost nothing.

    Args:
        size_max: how many unanswered requests one client may wait for.
    """

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self._open: WeakValueDictionary[Place, PendingAnswer] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._open)

    def expect(self, request_id: str, partition: int) -> PendingAnswer:
        """An entry for a request about to be sent; the same one while an earlier request with its place is open.

        Raises:
            InferenceFailed: OVERLOADED, as many as allowed are open.
        """
        place = (request_id, partition)
        answer = self._open.get(place)
        if answer is None:
            if len(self._open) >= self._size_max:
                message = f"{self._size_max} requests of this client have no answer yet; wait for some of them"
                raise InferenceFailed(request_id, ErrorCode.OVERLOADED, message)
            answer = self._open[place] = PendingAnswer()
        return answer

    def offer(self, request_id: str, record: ResultRecord) -> bool:
        """Gives a result to whoever waits for it; says whether anybody did."""
        answer = self._open.pop((request_id, record.partition), None)
        if answer is None:
            return False
        answer.settle(record)
        return True

    def fail(self, error: PipelineError) -> None:
        """Ends all waiting."""
        for answer in list(self._open.values()):
            answer.settle(error)
        self._open.clear()
