"""Topics in memory that answer as a test says, for a `Client` without Kafka."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from pipeline.client.client import Client
from pipeline.client.pending import ResultRecord
from pipeline.client.records import RequestRecord
from pipeline.client.requests import RequestsTopic
from pipeline.client.results import ResultsTopic
from pipeline.errors import PipelineError

PARTITIONS = 4

# What a scripted worker says to a request in a partition: any number of results.
Script = Callable[[RequestRecord, int], Sequence[ResultRecord]]


def result_record(request_id: str, partition: int, **members: Any) -> ResultRecord:
    """A result as a worker writes it; members replace those of a small success."""
    document = {
        "id": request_id,
        "model_name": "digits",
        "model_version": "2",
        "status": "succeeded",
        "outputs": [{"name": "label", "datatype": "INT64", "shape": [1, 1], "data": [7]}],
        "parameters": {"cache_status": "miss", "total_ms": 2.5},
        "completed_at": "2026-11-22T22:00:00.123456Z",
    } | members
    return ResultRecord(partition, 0, orjson.dumps(document), [("ce_id", request_id.encode())])


def failed_record(request_id: str, partition: int, code: str) -> ResultRecord:
    """The result of a request that failed."""
    error = {"code": code, "message": "as the script says", "retryable": False}
    return result_record(request_id, partition, status="failed", outputs=None, error=error)


class ScriptedRequests:
    """Takes requests and lets the script answer them at once."""

    def __init__(self, script: Script, answers: "asyncio.Queue[ResultRecord | PipelineError]") -> None:
        self.records: list[tuple[RequestRecord, int]] = []
        self._script = script
        self._answers = answers

    async def start(self) -> None:
        """Nothing to connect."""

    def partition_of(self, key: bytes) -> int:
        """A fixed placement by the key's first character."""
        return key[0] % PARTITIONS

    async def append(self, record: RequestRecord, partition: int) -> int:
        """Keeps the record; its answers are on their way before it is confirmed."""
        self.records.append((record, partition))
        for answer in self._script(record, partition):
            self._answers.put_nowait(answer)
        return len(self.records) - 1

    async def stop(self) -> None:
        """Nothing to close."""


class ScriptedResults:
    """Gives the script's answers; an error in place of one is the loss of the connection."""

    def __init__(self, answers: "asyncio.Queue[ResultRecord | PipelineError]") -> None:
        self.parsed = 0
        self._answers = answers

    async def start(self) -> None:
        """Nothing to connect."""

    async def read(self) -> list[ResultRecord]:
        """The next answer."""
        answer = await self._answers.get()
        if isinstance(answer, PipelineError):
            raise answer
        return [answer]

    async def stop(self) -> None:
        """Nothing to close."""


class ScriptedClient(Client):
    """A client on scripted topics.

    Attributes:
        answers: what the client's own reading finds.
        stream: what `results` finds.

    Args:
        script: what is answered.
        limits: as for `Client`.
    """

    def __init__(self, script: Script, **limits: Any) -> None:
        super().__init__("unused:9092", **limits)
        self.answers: asyncio.Queue[ResultRecord | PipelineError] = asyncio.Queue()
        self.stream: asyncio.Queue[ResultRecord | PipelineError] = asyncio.Queue()
        self.requests = ScriptedRequests(script, self.answers)

    def _topics(self) -> tuple[RequestsTopic, ResultsTopic]:
        return self.requests, ScriptedResults(self.answers)

    def _results_topic(self, *, from_beginning: bool) -> ResultsTopic:
        return ScriptedResults(self.stream)
