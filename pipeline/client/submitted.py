"""A request that was taken in, and the way to its answer."""

from pipeline.client.errors import ResultNotReceived
from pipeline.client.pending import PendingAnswer, ResultRecord
from pipeline.errors import InferenceFailed
from schemas.result import InferenceResult, decode_result


class Submitted:
    """A request that Kafka has on all in-sync replicas.

    Attributes:
        id: the request's id.
        partition: of the requests topic; its answer comes in the results' partition of the same number.
        offset: of the request's record.
    """

    def __init__(self, request_id: str, partition: int, offset: int, answer: PendingAnswer, timeout_s: float) -> None:
        self.id = request_id
        self.partition = partition
        self.offset = offset
        self._answer = answer
        self._timeout_s = timeout_s

    async def record(self, timeout_s: float | None = None) -> ResultRecord:
        """The answer as it stands on the results topic: the same bytes on every route.

        Args:
            timeout_s: how long to wait; None: the request's own limit, or the client's.

        Raises:
            ResultNotReceived: no answer in time.
            KafkaUnavailable: the connection was lost.
        """
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            return await self._answer.wait(limit_s)
        except TimeoutError:
            raise ResultNotReceived(self.id, limit_s) from None

    async def answer(self, timeout_s: float | None = None) -> InferenceResult:
        """The answer, whether it succeeded or not. Waits and raises as `record` does."""
        record = await self.record(timeout_s)
        return decode_result(record.value, record.headers)

    async def result(self, timeout_s: float | None = None) -> InferenceResult:
        """The answer of a request that succeeded. Waits as `record` does.

        Raises:
            InferenceFailed: it failed or expired; `code` says why.
            ResultNotReceived: no answer in time.
            KafkaUnavailable: the connection was lost.
        """
        answer = await self.answer(timeout_s)
        if answer.error is not None:
            raise InferenceFailed(self.id, answer.error.code, answer.error.message)
        return answer
