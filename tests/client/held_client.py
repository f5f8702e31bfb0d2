"""A client without a transport: its answers come when a test says so."""

import asyncio
from collections.abc import Callable

from pipeline.client.interface import InferenceClient
from pipeline.client.pending import PendingAnswer, ResultRecord
from pipeline.client.records import RequestRecord
from pipeline.client.submitted import SubmittedToKafka
from pipeline.errors import PipelineError
from tests.client.scripted_topics import result_record

Outcome = ResultRecord | PipelineError


class HeldClient(InferenceClient[SubmittedToKafka]):
    """Takes every request; `answer` lets an answer come. With a script, answers come by themselves.

    Attributes:
        asked: ids, in the order of their requests.
        cancelled: ids that nobody waits for any more.
        is_connected: between `connect` and `close`.

    Args:
        script: says a request's outcome; None: held until `answer`.
    """

    def __init__(self, script: Callable[[RequestRecord], Outcome | None] = lambda record: None) -> None:
        super().__init__(answer_timeout_s=60.0)
        self.asked: list[str] = []
        self.cancelled: list[str] = []
        self.is_connected = False
        self._script = script
        self._answers: dict[str, PendingAnswer] = {}
        self._news = asyncio.Event()

    async def connect(self) -> None:
        """Nothing to connect."""
        self.is_connected = True

    async def close(self) -> None:
        """Nothing to close."""
        self.is_connected = False

    async def submit_record(self, record: RequestRecord, timeout_s: float | None = None) -> SubmittedToKafka:
        """Takes it."""
        answer = self._answers[record.id] = PendingAnswer()
        self.asked.append(record.id)
        self._news.set()
        if (outcome := self._script(record)) is not None:
            answer.settle(outcome)
        return SubmittedToKafka(record.id, 0, len(self.asked) - 1, answer, timeout_s or self._answer_timeout_s)

    async def ask_record(self, record: RequestRecord, timeout_s: float | None = None) -> ResultRecord:
        """Takes it and waits."""
        try:
            return await super().ask_record(record, timeout_s)
        except asyncio.CancelledError:
            self.cancelled.append(record.id)
            self._news.set()
            raise

    def answer(self, request_id: str, outcome: Outcome | None = None) -> None:
        """Lets an answer come: a small success unless another one is given."""
        self._answers[request_id].settle(outcome or result_record(request_id, 0))

    async def until_asked(self, count: int) -> None:
        """Returns when so many requests came."""
        while len(self.asked) < count:
            self._news.clear()
            await self._news.wait()

    async def until_cancelled(self, count: int) -> None:
        """Returns when so many are not waited for any more."""
        while len(self.cancelled) < count:
            self._news.clear()
            await self._news.wait()


def success(record: RequestRecord) -> ResultRecord:
    """A small success, at once."""
    return result_record(record.id, 0)
