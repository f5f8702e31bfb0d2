"""Sending many requests, bounded in flight, and collecting their answers in the order they were sent."""

import asyncio
import base64
import json
import time
from collections import Counter
from collections.abc import AsyncIterable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.cli.request_files import BadLine
from pipeline.client.errors import GatewayRefused, PipelineUnavailable
from pipeline.client.interface import InferenceClient
from pipeline.client.pending import ResultRecord
from pipeline.client.records import RequestRecord
from pipeline.client.submitted import Submitted
from pipeline.errors import InferenceFailed, PipelineError
from schemas.errors import ErrorCode
from schemas.result import InferenceResult, decode_result
from schemas.tensor import json_from_raw


@dataclass(slots=True)
class Tally:
    """What became of the requests so far."""

    sent: int = 0
    skipped: int = 0
    bad_lines: int = 0
    lost: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    cache: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    started_at: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started_at

    @property
    def done(self) -> int:
        """Answered, or given up."""
        return self.statuses.total() + self.lost

    @property
    def failed(self) -> int:
        """Everything that is not a good answer."""
        return self.bad_lines + self.lost + self.statuses.total() - self.statuses["succeeded"]

    def count(self, answer: InferenceResult) -> None:
        """Adds one answer."""
        self.statuses[answer.status] += 1
        if answer.parameters.cache_status is not None:
            self.cache[answer.parameters.cache_status] += 1
        if answer.error is not None:
            self.codes[answer.error.code] += 1

    def count_refused(self, code: ErrorCode) -> None:
        """Adds a request that was refused where it was handed in: its answer is its code."""
        self.statuses["failed"] += 1
        self.codes[code] += 1

    def as_dict(self, *, waited: bool) -> dict[str, Any]:
        """The summary as a program reads it; what is not known without waiting is null."""
        seconds = self.seconds
        return {
            "sent": self.sent,
            "skipped": self.skipped,
            "succeeded": self.statuses["succeeded"] if waited else None,
            "failed": self.statuses["failed"] + self.statuses["expired"] if waited else None,
            "lost": self.lost,
            "bad_lines": self.bad_lines,
            "errors": dict(self.codes),
            "cache": dict(self.cache),
            "seconds": round(seconds, 3),
            "per_second": round((self.done if waited else self.sent) / seconds, 1) if seconds else None,
        }


class Report(Protocol):
    """Where the news of a submission goes."""

    def problem(self, line: str) -> None:
        """Something went wrong with one request; the others go on."""

    def answer(self, line: bytes) -> None:
        """An answer, or a receipt, as one line of JSON."""

    def progress(self, tally: Tally) -> None:
        """Something changed."""


class Submission:
    """Sends records as there is room and settles them in their order.

    Args:
        client: connected.
        report: where news goes.
        wait: for the answers; otherwise each receipt is reported.
        in_flight_max: requests without an answer at any time.
        timeout_s: for each answer.
        has_answer: says which ids are not asked, as they were answered before.
        file_of: the file that a request was made of, where each has its own.
    """

    def __init__(
        self,
        client: InferenceClient[Submitted],
        report: Report,
        *,
        wait: bool,
        in_flight_max: int,
        timeout_s: float,
        has_answer: Callable[[str], bool] = lambda request_id: False,
        file_of: Callable[[str], str | None] = lambda request_id: None,
    ) -> None:
        self._client = client
        self._report = report
        self._wait = wait
        self._timeout_s = timeout_s
        self._has_answer = has_answer
        self._file_of = file_of
        self._room = asyncio.Semaphore(in_flight_max)
        self._tasks: asyncio.Queue[asyncio.Task[ResultRecord | Submitted] | None] = asyncio.Queue()
        self._tally = Tally()

    async def run(self, records: AsyncIterable[RequestRecord | BadLine]) -> Tally:
        """Sends everything and returns what became of it. A file of any length takes little memory.

        Raises:
            PipelineUnavailable: the connection was lost.
            GatewayRefused: the gateway takes nothing of this caller: a wrong API key, a wrong address.
        """
        sending = asyncio.create_task(self._send(records))
        settling = asyncio.create_task(self._settle())
        try:
            # Settling ends last, unless the connection is lost: then nothing more is sent.
            await asyncio.wait([sending, settling], return_when=asyncio.FIRST_EXCEPTION)
            for part in (settling, sending):
                if part.done():
                    part.result()
        finally:
            open_tasks: list[asyncio.Task[Any]] = [sending, settling, *self._left()]
            for task in open_tasks:
                task.cancel()
            await asyncio.gather(*open_tasks, return_exceptions=True)
        return self._tally

    async def _send(self, records: AsyncIterable[RequestRecord | BadLine]) -> None:
        async for record in records:
            if isinstance(record, BadLine):
                self._tally.bad_lines += 1
                self._report.problem(str(record))
                continue
            if self._has_answer(record.id):
                self._tally.skipped += 1
                self._report.progress(self._tally)
                continue
            await self._room.acquire()
            self._tasks.put_nowait(asyncio.create_task(self._ask(record)))
            self._tally.sent += 1
            self._report.progress(self._tally)
        self._tasks.put_nowait(None)

    async def _ask(self, record: RequestRecord) -> ResultRecord | Submitted:
        if self._wait:
            return await self._client.ask_record(record, self._timeout_s)
        return await self._client.submit_record(record, self._timeout_s)

    async def _settle(self) -> None:
        while (task := await self._tasks.get()) is not None:
            try:
                self._tell(await task)
            except (PipelineUnavailable, GatewayRefused):
                raise
            except InferenceFailed as error:
                self._tally.count_refused(error.code)
                named = _named(error.request_id, self._file_of(error.request_id))
                self._report.problem(f"{named}: {error.code}: {error.message}")
            except PipelineError as error:
                self._tally.lost += 1
                file = self._file_of(getattr(error, "request_id", ""))
                self._report.problem(str(error) if file is None else f"{file}: {error}")
            self._room.release()
            self._report.progress(self._tally)

    def _tell(self, outcome: ResultRecord | Submitted) -> None:
        if isinstance(outcome, Submitted):
            self._report.answer(with_file(json.dumps(outcome.receipt).encode(), self._file_of(outcome.id)))
            return
        answer = decode_result(outcome.value, outcome.headers)
        self._tally.count(answer)
        file = self._file_of(answer.id)
        if answer.error is not None:
            self._report.problem(f"{_named(answer.id, file)}: {answer.error.code}: {answer.error.message}")
        self._report.answer(with_file(result_line(outcome, answer), file))

    def _left(self) -> Iterator["asyncio.Task[ResultRecord | Submitted]"]:
        while not self._tasks.empty():
            if (task := self._tasks.get_nowait()) is not None:
                yield task


def _named(request_id: str, file: str | None) -> str:
    return f"request {request_id}" if file is None else f"{file}: request {request_id}"


def with_file(line: bytes, file: str | None) -> bytes:
    """An answer's line with the name of the file that it answers in front; what follows stays as it is."""
    if file is None:
        return line
    # An answer is no empty object, so a comma follows. A name that is no UTF-8 is written with its escapes.
    name = json.dumps(file.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))
    return b'{"file": ' + name.encode() + b", " + line.lstrip()[1:]


def result_line(record: ResultRecord, answer: InferenceResult) -> bytes:
    """A result as one line of JSON: its own bytes where they are JSON; binary outputs as numbers, or in base64."""
    if not any(type(output.data) is bytes for output in answer.outputs or ()):
        return record.value
    document = answer.model_dump(mode="json", exclude_none=True, exclude={"outputs"})
    document["outputs"] = []
    for output in answer.outputs or ():
        tensor = output.to_tensor()
        member: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        data = json_from_raw(tensor)
        if data is None:
            member["base64"] = base64.b64encode(tensor.raw).decode()
        else:
            member["data"] = json.loads(data)
        document["outputs"].append(member)
    return json.dumps(document).encode()
