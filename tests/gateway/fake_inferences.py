"""`Inferences` in memory: what the routes see of Kafka, workers and the result store, and what a test makes of them."""

import asyncio
import json
from itertools import count
from types import TracebackType
from typing import Any, Self

from pipeline.client.errors import KafkaUnavailable
from pipeline.core.stored_result import DIGEST_BYTES, Pending, StoredResult
from pipeline.errors import ResultStoreError
from pipeline.gateway.delivery.current_request import name_current
from pipeline.gateway.delivery.inferences import IdReused, Inferences, Receipt, ResultGone, Submission
from schemas.errors import ErrorCode, WireError
from schemas.request import UndecodableRecordError, decode_request

Name = tuple[str | None, str]


def a_result(
    request_id: str = "r-1", *, status: str = "succeeded", tail: bytes = b"", **parameters: Any
) -> StoredResult:
    """A result record; `tail` are raw tensors behind its JSON."""
    document = {
        "id": request_id,
        "model_name": "digits",
        "status": status,
        "parameters": parameters,
        "completed_at": "2026-11-22T22:00:00.123456Z",
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    return StoredResult(bytes(DIGEST_BYTES), len(text) if tail else 0, text + tail)


class FakeInferences(Inferences):
    """Requests are pending until a test answers them.

    Attributes:
        submissions: what was handed in, in order.
        looks: what was asked for: tenant, id, seconds to wait.
        kafka_answers: whether submitting works.
        store_answers: whether looking up works.
        echoes: whether requests are answered as they come.
        reasons: what `not_ready` says.
        waits: how many wait now.
        abandoned: how many waits were given up by whoever asked.
    """

    def __init__(self, *, echoes: bool = False) -> None:
        self.submissions: list[Submission] = []
        self.looks: list[tuple[str | None, str, float]] = []
        self.kafka_answers = True
        self.store_answers = True
        self.echoes = echoes
        self.reasons: dict[str, str] = {}
        self.waits = 0
        self.abandoned = 0
        self._known: dict[Name, StoredResult | Pending | None] = {}
        self._contents: dict[Name, bytes] = {}
        self._changed = asyncio.Event()
        self._numbers = count(1)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def accept(self, request_id: str, tenant: str | None = None) -> None:
        """A request that was handed in before."""
        self._set((tenant, request_id), Pending(bytes(DIGEST_BYTES)))

    def answer(self, request_id: str, result: StoredResult, tenant: str | None = None) -> None:
        """Its result is there."""
        self._set((tenant, request_id), result)

    def lose(self, request_id: str, tenant: str | None = None) -> None:
        """Its result was there; the bytes are gone."""
        self._set((tenant, request_id), None)

    def forget(self, request_id: str, tenant: str | None = None) -> None:
        """Nobody knows of it any more."""
        del self._known[tenant, request_id]
        self._wake()

    async def submit(self, submission: Submission) -> Receipt:
        """Takes a request in."""
        self.submissions.append(submission)
        try:
            request = decode_request(submission.value, [(name.lower(), value) for name, value in submission.headers])
        except UndecodableRecordError as error:
            raise WireError(ErrorCode.INVALID_REQUEST, error.message) from None
        if not self.kafka_answers:
            raise KafkaUnavailable("Kafka at 127.0.0.1:1 does not answer")
        name = (submission.tenant, submission.request_id or request.id or f"fresh-{next(self._numbers)}")
        name_current(name[1], request.model_name)
        repeated = name in self._contents
        if repeated and self._contents[name] != submission.value:
            raise IdReused(f"request {name[1]} came before with other content")
        self._contents[name] = submission.value
        if self.echoes:
            self.answer(name[1], a_result(name[1], cache_status="miss"), name[0])
        elif not repeated:
            self.accept(name[1], name[0])
        return Receipt(name[1], name[0], 0, -1 if repeated else len(self.submissions), repeated)

    async def wait(self, tenant: str | None, request_id: str, wait_s: float) -> StoredResult | Pending | None:
        """Looks, and waits for an answer."""
        self.looks.append((tenant, request_id, wait_s))
        self.waits += 1
        try:
            async with asyncio.timeout(wait_s or None):
                while wait_s and isinstance(self._found(tenant, request_id), Pending):
                    await self._changed.wait()
        except TimeoutError:
            return self._found(tenant, request_id)
        except asyncio.CancelledError:
            self.abandoned += 1
            raise
        finally:
            self.waits -= 1
        return self._found(tenant, request_id)

    def not_ready(self) -> dict[str, str]:
        """What the test says."""
        return dict(self.reasons)

    def state(self) -> dict[str, Any]:
        """How many were handed in."""
        return {"submissions": len(self.submissions)}

    def _found(self, tenant: str | None, request_id: str) -> StoredResult | Pending | None:
        if not self.store_answers:
            raise ResultStoreError("neither Redis nor ClickHouse answers")
        name = (tenant, request_id)
        if name in self._known and self._known[name] is None:
            raise ResultGone(f"the result of request {request_id} has expired")
        return self._known.get(name)

    def _set(self, name: Name, known: StoredResult | Pending | None) -> None:
        self._known[name] = known
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
