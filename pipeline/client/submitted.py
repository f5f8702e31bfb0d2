"""A request that was taken in, and the way to its answer."""

from abc import ABC, abstractmethod
from collections.abc import Generator
from typing import Any

from pipeline.client.errors import ResultNotReceived
from pipeline.client.pending import PendingAnswer, ResultRecord
from pipeline.errors import InferenceFailed
from schemas.result import InferenceResult, decode_result


class Submitted(ABC):
    """A request that Kafka has on all in-sync replicas. `await submitted` is its result.

    Attributes:
        id: the request's id.
    """

    def __init__(self, request_id: str) -> None:
        self.id = request_id

    def __await__(self) -> Generator[Any, Any, InferenceResult]:
        return self.result().__await__()

    @property
    @abstractmethod
    def receipt(self) -> dict[str, Any]:
        """What a program keeps of it, as JSON: the id, and where the request is."""

    @abstractmethod
    async def record(self, timeout_s: float | None = None) -> ResultRecord:
        """The answer as it stands on the results topic: the same bytes on every route.

        Args:
            timeout_s: how long to wait; None: the request's own limit, or the client's.

        Raises:
            ResultNotReceived: no answer in time.
            PipelineUnavailable: the connection was lost.
        """

    async def answer(self, timeout_s: float | None = None) -> InferenceResult:
        """The answer, whether it succeeded or not. Waits and raises as `record` does."""
        record = await self.record(timeout_s)
        return decode_result(record.value, record.headers)

    async def result(self, timeout_s: float | None = None) -> InferenceResult:
        """The answer of a request that succeeded. Waits as `record` does.

        Raises:
            InferenceFailed: it failed or expired; `code` says why.
            ResultNotReceived: no answer in time.
            PipelineUnavailable: the connection was lost.
        """
        return succeeded(await self.answer(timeout_s))


class SubmittedToKafka(Submitted):
    """A request that this client appended to the requests topic.

    Attributes:
        partition: of the requests topic; its answer comes in the results' partition of the same number.
        offset: of the request's record.
    """

    def __init__(self, request_id: str, partition: int, offset: int, answer: PendingAnswer, timeout_s: float) -> None:
        super().__init__(request_id)
        self.partition = partition
        self.offset = offset
        self._answer = answer
        self._timeout_s = timeout_s

    @property
    def receipt(self) -> dict[str, Any]:
        """Id, partition and offset."""
        return {"id": self.id, "partition": self.partition, "offset": self.offset}

    async def record(self, timeout_s: float | None = None) -> ResultRecord:
        """The record as it was read from the results topic."""
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            return await self._answer.wait(limit_s)
        except TimeoutError:
            raise ResultNotReceived(self.id, limit_s) from None


def succeeded(answer: InferenceResult) -> InferenceResult:
    """The answer, if it succeeded.

    Raises:
        InferenceFailed: it failed or expired; `code` says why.
    """
    if answer.error is not None:
        raise InferenceFailed(answer.id, answer.error.code, answer.error.message)
    return answer
