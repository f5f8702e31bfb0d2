"""`InferenceClient`: what every client offers, whichever way its requests travel.

    Client(…)       over Kafka    pipeline/client/client.py
    HttpClient(…)   over HTTP     pipeline/client/http_client.py

A transport sends a record that is built already (`client.records`) and finds its answer; everything else is here, once.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping, Sequence, Sized
from random import Random
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypedDict, TypeVar, Unpack, overload

from uuid_utils import uuid7

from pipeline.client.mapping import mapped
from pipeline.client.pending import ResultRecord
from pipeline.client.records import Inputs, RequestRecord, build_record
from pipeline.client.retrying import Backoff
from pipeline.client.submitted import Submitted, succeeded
from pipeline.client.window import Progress, Window
from pipeline.errors import InferenceFailed, PipelineError
from schemas.errors import ErrorCode, WireError
from schemas.result import InferenceResult, decode_result

SubmittedT_co = TypeVar("SubmittedT_co", bound=Submitted, covariant=True)

# The worker answers EXPIRED when a request's own time is over; that answer is worth a moment more than "nothing came".
EXPIRY_GRACE_S = 1.0
# EXPIRED is not among them: the caller's time is over, too.
_WORTH_ANOTHER_REQUEST = frozenset({ErrorCode.OVERLOADED, ErrorCode.INTERNAL, ErrorCode.INFERENCE_UNAVAILABLE})


class RequestOptions(TypedDict, total=False):
    """What a request may say besides its model and its inputs.

    Attributes:
        model_version: None for the version served by default when the request runs.
        parameters: reach the model, and are part of the cache key.
        outputs: names of the outputs that are wanted; None for all.
        enable_cache: False: neither read, nor stored, nor coalesced.
        cache_control: RFC 9111 words: no-cache, no-store, max-age=N, only-if-cached.
        tenant: whose request it is; caches of tenants never meet. Over HTTP the API key says it: leave it out.
        timeout_s: past it nothing is executed and the answer is EXPIRED; it bounds the wait for it, too.
        binary: whether tensors travel as raw bytes; None: above 1 kB.
        callback: a URL that the answer is delivered to, too (Standard Webhooks).
    """

    model_version: str | int | None
    parameters: Mapping[str, Any] | None
    outputs: Sequence[str] | None
    enable_cache: bool
    cache_control: str | None
    tenant: str | None
    timeout_s: float | None
    binary: bool | None
    callback: str | None


def fresh_id() -> str:
    """A UUIDv7: unique, and in the order of time."""
    return str(uuid7())


class InferenceClient(ABC, Generic[SubmittedT_co]):
    """Asks for inferences and waits for their answers. Use it as an async context manager, in one event loop.

    Args:
        answer_timeout_s: how long to wait for an answer where the request has no limit of its own.
    """

    def __init__(self, answer_timeout_s: float) -> None:
        self._answer_timeout_s = answer_timeout_s
        self._random = Random()

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @abstractmethod
    async def connect(self) -> None:
        """Connects.

        Raises:
            PipelineUnavailable: the other side does not answer.
        """

    @abstractmethod
    async def close(self) -> None:
        """Disconnects; whoever still waits for an answer is told so. Idempotent."""

    @abstractmethod
    async def submit_record(self, record: RequestRecord, timeout_s: float | None = None) -> SubmittedT_co:
        """Sends a record that was built before (`client.records`). Raises as `submit` does.

        Args:
            record: the record.
            timeout_s: the limit of `Submitted.record` and its kin; None: the client's.
        """

    async def ask_record(self, record: RequestRecord, timeout_s: float | None = None) -> ResultRecord:
        """Sends a record that was built before and waits for its answer. Raises as `submit` and `Submitted.record`."""
        submitted = await self.submit_record(record, timeout_s)
        return await submitted.record()

    async def submit(
        self,
        model_name: str,
        inputs: Inputs,
        *,
        id: str | None = None,  # noqa: A002 - the protocol's name
        **options: Unpack[RequestOptions],
    ) -> SubmittedT_co:
        """Sends a request; returns once Kafka has it on all in-sync replicas.

        Args:
            model_name: the model.
            inputs: arrays by name, or tensors (`client.records.to_tensors` says which datatype a list becomes).
            id: a fresh UUIDv7 unless given; the answer to an id is the first one, so an id is used once.
            options: `RequestOptions`.

        Raises:
            InferenceFailed: the request is not valid, too large, or one too many; `code` says why.
            PipelineUnavailable: not connected, or not confirmed in time (it may still be taken in).
            IdReused: the id is another request's (over HTTP; over Kafka it ends in the dead letters).
        """
        record, limit_s = _build(id or fresh_id(), model_name, inputs, options)
        return await self.submit_record(record, limit_s)

    async def infer(
        self,
        model_name: str,
        inputs: Inputs,
        *,
        id: str | None = None,  # noqa: A002 - the protocol's name
        retries: int = 0,
        **options: Unpack[RequestOptions],
    ) -> InferenceResult:
        """Asks and waits for the answer.

        Args:
            model_name: the model.
            inputs: as for `submit`.
            id: as for `submit`.
            retries: how often to ask again, under a fresh id, after an answer that says OVERLOADED, INTERNAL or
                INFERENCE_UNAVAILABLE; with growing pauses, within `timeout_s`. What is lost on the way to the pipeline
                is sent again in any case, under the same id.
            options: `RequestOptions`.

        Raises:
            InferenceFailed: the answer failed or expired, or the request is not valid; `code` says why.
            ResultNotReceived: no answer in time.
            PipelineUnavailable: the connection was lost, or the request was not confirmed.
            IdReused: the id is another request's (over HTTP).
        """
        clock = asyncio.get_running_loop().time
        timeout_s = options.get("timeout_s")
        ends_at = None if timeout_s is None else clock() + timeout_s
        backoff = Backoff(self._random)
        while True:
            record, limit_s = _build(id or fresh_id(), model_name, inputs, options)
            answer = await self.ask_record(record, limit_s)
            try:
                return succeeded(decode_result(answer.value, answer.headers))
            except InferenceFailed as error:
                pause_s = backoff.next_s()
                left_s = None if ends_at is None else ends_at - clock() - pause_s
                if retries < 1 or error.code not in _WORTH_ANOTHER_REQUEST or (left_s is not None and left_s <= 0):
                    raise
            await asyncio.sleep(pause_s)
            retries, id = retries - 1, None  # noqa: A001 - the protocol's name
            options["timeout_s"] = left_s

    @overload
    def map(  # noqa: D418 - this project has a docstring for every public name
        self,
        model_name: str,
        inputs: Iterable[Inputs] | AsyncIterable[Inputs],
        *,
        concurrency: int = 64,
        ordered: bool = True,
        return_exceptions: Literal[False] = False,
        on_progress: Callable[[Progress], None] | None = None,
        id_of: Callable[[int], str] | None = None,
        retries: int = 0,
        **options: Unpack[RequestOptions],
    ) -> AsyncGenerator[InferenceResult, None]:
        """The first error is raised."""

    @overload
    def map(  # noqa: D418 - this project has a docstring for every public name
        self,
        model_name: str,
        inputs: Iterable[Inputs] | AsyncIterable[Inputs],
        *,
        concurrency: int = 64,
        ordered: bool = True,
        return_exceptions: bool,
        on_progress: Callable[[Progress], None] | None = None,
        id_of: Callable[[int], str] | None = None,
        retries: int = 0,
        **options: Unpack[RequestOptions],
    ) -> AsyncGenerator[InferenceResult | PipelineError, None]:
        """Errors are values."""

    def map(
        self,
        model_name: str,
        inputs: Iterable[Inputs] | AsyncIterable[Inputs],
        *,
        concurrency: int = 64,
        ordered: bool = True,
        return_exceptions: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        id_of: Callable[[int], str] | None = None,
        retries: int = 0,
        **options: Unpack[RequestOptions],
    ) -> AsyncGenerator[Any, None]:
        """Asks for many inputs, so many at a time, and yields the answers.

        Inputs are read as there is room: never more than `concurrency` ahead of whoever consumes the answers. Leaving
        the loop or cancelling it stops the waiting for what is out (`contextlib.aclosing` does so at once).

        Args:
            model_name: the model.
            inputs: what `infer` takes, one after the other; read in this event loop, so a source that blocks is an
                async one.
            concurrency: inputs that are read and whose answer was not consumed.
            ordered: answers in the order of the inputs; False: as they come.
            return_exceptions: as for `asyncio.gather`: errors are yielded in place of answers; else the first one is
                raised and ends it.
            on_progress: is told of every answer.
            id_of: makes the id of an input of its number, from 0; None: fresh ones. An answer's `id` is the way back
                to its input where `ordered` is False.
            retries: as for `infer`.
            options: `RequestOptions`, for each of them.

        Raises:
            ValueError: `concurrency` is below 1.
            PipelineError: as `infer`, unless `return_exceptions`.
        """
        total = len(inputs) if isinstance(inputs, Sized) else None
        window = Window(concurrency, ordered=ordered, total=total, on_progress=on_progress)

        async def ask(number: int, one: Inputs) -> InferenceResult:
            request_id = None if id_of is None else id_of(number)
            return await self.infer(model_name, one, id=request_id, retries=retries, **options)

        return mapped(ask, inputs, window, return_exceptions=return_exceptions)


def _build(
    request_id: str, model_name: str, inputs: Inputs, options: RequestOptions
) -> tuple[RequestRecord, float | None]:
    """A request's record, and how long to wait for its answer; None: as the client does."""
    members: dict[str, Any] = dict(options)
    timeout_s: float | None = members.pop("timeout_s", None)
    timeout_ms = None if timeout_s is None else round(timeout_s * 1000)
    try:
        record = build_record(request_id, model_name, inputs, now=time.time(), timeout_ms=timeout_ms, **members)
    except WireError as error:
        raise InferenceFailed(request_id, error.code, error.message) from error
    return record, None if timeout_s is None else timeout_s + EXPIRY_GRACE_S
