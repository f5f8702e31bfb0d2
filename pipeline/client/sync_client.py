"""`SyncClient`: the same methods without `await`, for scripts, threads and notebooks.

with SyncClient(Client("127.0.0.1:9092")) as client:
    result = client.infer("digits", {"image": pixels})

The client it is given runs on an event loop in a thread of its own, so it does not matter whether the caller's thread
has a loop already, as a notebook's has. Any number of threads may use one. A fork takes no thread along: a process
makes its own.
"""

import os
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Sized
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import Any, Generic, Literal, Self, Unpack, overload

from pipeline.client.client import Client
from pipeline.client.errors import ClientForked
from pipeline.client.interface import InferenceClient, RequestOptions, SubmittedT_co
from pipeline.client.loop_thread import LoopThread, Value
from pipeline.client.pending import ResultRecord
from pipeline.client.records import Inputs
from pipeline.client.submitted import Submitted
from pipeline.client.thread_mapping import client_closed, mapped_in_thread
from pipeline.client.window import Progress, Window
from pipeline.errors import PipelineError
from schemas.result import InferenceResult, Status


class SyncSubmitted:
    """A request that Kafka has on all in-sync replicas.

    Attributes:
        id: the request's id.
        receipt: what a program keeps of it, as JSON.
    """

    def __init__(self, client: "SyncClient[Submitted]", submitted: Submitted) -> None:
        self.id = submitted.id
        self.receipt = submitted.receipt
        self._client = client
        self._submitted = submitted

    def record(self, timeout_s: float | None = None) -> ResultRecord:
        """As `Submitted.record`."""
        return self._client.run(lambda: self._submitted.record(timeout_s))

    def answer(self, timeout_s: float | None = None) -> InferenceResult:
        """As `Submitted.answer`."""
        return self._client.run(lambda: self._submitted.answer(timeout_s))

    def result(self, timeout_s: float | None = None) -> InferenceResult:
        """As `Submitted.result`."""
        return self._client.run(lambda: self._submitted.result(timeout_s))


class SyncClient(Generic[SubmittedT_co]):
    """A client without `await`. Connects when it is entered or first used; close it, or use it in a `with` block.

    Args:
        client: a `Client` or an `HttpClient` that nobody else uses.
    """

    def __init__(self, client: InferenceClient[SubmittedT_co]) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._thread: LoopThread | None = None
        self._finalizer: weakref.finalize[..., Any] | None = None
        self._is_closed = False

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def connect(self) -> None:
        """Connects, also again after `close`. Raises as the client's own `connect`."""
        self._check_process()
        with self._lock:
            self._is_closed = False
            self._connected()

    def close(self) -> None:
        """Disconnects; whoever still waits, in whatever thread, is told so. Idempotent."""
        thread = self._thread
        if thread is not None and thread.pid != os.getpid():
            return
        with self._lock:
            self._is_closed = True
            thread, self._thread = self._thread, None
            finalizer, self._finalizer = self._finalizer, None
        if finalizer is not None:
            finalizer.detach()
        if thread is not None:
            thread.stop(self._client.close)

    def run(self, work: Callable[[], Coroutine[Any, Any, Value]]) -> Value:
        """Runs a coroutine beside the client and waits for it; an interrupt (Ctrl-C) cancels it.

        Args:
            work: makes the coroutine.

        Raises:
            PipelineUnavailable: the client was closed, before or meanwhile.
            ClientForked: it was connected by another process.
            RuntimeError: it is called from the client's own loop, which would wait for itself.
        """
        future = self._start(work)
        try:
            return future.result()
        except CancelledError:
            raise client_closed() from None
        finally:
            future.cancel()

    def infer(
        self,
        model_name: str,
        inputs: Inputs,
        *,
        id: str | None = None,  # noqa: A002 - the protocol's name
        retries: int = 0,
        **options: Unpack[RequestOptions],
    ) -> InferenceResult:
        """As `InferenceClient.infer`."""
        return self.run(lambda: self._client.infer(model_name, inputs, id=id, retries=retries, **options))

    def submit(
        self,
        model_name: str,
        inputs: Inputs,
        *,
        id: str | None = None,  # noqa: A002 - the protocol's name
        **options: Unpack[RequestOptions],
    ) -> SyncSubmitted:
        """As `InferenceClient.submit`."""
        return SyncSubmitted(self, self.run(lambda: self._client.submit(model_name, inputs, id=id, **options)))

    @overload
    def map(  # noqa: D418 - this project has a docstring for every public name
        self,
        model_name: str,
        inputs: Iterable[Inputs],
        *,
        concurrency: int = 64,
        ordered: bool = True,
        return_exceptions: Literal[False] = False,
        on_progress: Callable[[Progress], None] | None = None,
        id_of: Callable[[int], str] | None = None,
        retries: int = 0,
        **options: Unpack[RequestOptions],
    ) -> Generator[InferenceResult, None, None]:
        """The first error is raised."""

    @overload
    def map(  # noqa: D418 - this project has a docstring for every public name
        self,
        model_name: str,
        inputs: Iterable[Inputs],
        *,
        concurrency: int = 64,
        ordered: bool = True,
        return_exceptions: bool,
        on_progress: Callable[[Progress], None] | None = None,
        id_of: Callable[[int], str] | None = None,
        retries: int = 0,
        **options: Unpack[RequestOptions],
    ) -> Generator[InferenceResult | PipelineError, None, None]:
        """Errors are values."""

    def map(
        self,
        model_name: str,
        inputs: Iterable[Inputs],
        *,
        concurrency: int = 64,
        ordered: bool = True,
        return_exceptions: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        id_of: Callable[[int], str] | None = None,
        retries: int = 0,
        **options: Unpack[RequestOptions],
    ) -> Generator[Any, None, None]:
        """As `InferenceClient.map`; `inputs` are read and `on_progress` is called in the consumer's thread."""
        total = len(inputs) if isinstance(inputs, Sized) else None
        window = Window(concurrency, ordered=ordered, total=total, on_progress=on_progress)

        def ask(number: int, one: Inputs) -> "Future[InferenceResult]":
            request_id = None if id_of is None else id_of(number)
            return self._start(lambda: self._client.infer(model_name, one, id=request_id, retries=retries, **options))

        return mapped_in_thread(ask, inputs, window, return_exceptions=return_exceptions)

    def results(
        self,
        *,
        model_name: str | None = None,
        tenant: str | None = None,
        status: Status | None = None,
        id: str | None = None,  # noqa: A002 - the protocol's name
        from_beginning: bool = False,
    ) -> Generator[InferenceResult, None, None]:
        """As `Client.results`.

        Raises:
            TypeError: the client speaks HTTP: only Kafka has everybody's results.
        """
        if not isinstance(self._client, Client):
            raise TypeError("results() needs Kafka: SyncClient(Client(…)); over HTTP a result is asked for by its id")
        found = self._client.results(
            model_name=model_name, tenant=tenant, status=status, id=id, from_beginning=from_beginning
        )
        return self._stream(found)

    def _stream(self, found: AsyncGenerator[InferenceResult, None]) -> Generator[InferenceResult, None, None]:
        async def following() -> InferenceResult:
            return await anext(found)

        async def end() -> None:
            await found.aclose()

        try:
            while True:
                yield self.run(following)
        finally:
            # After `close` there is no loop, and nothing left to end.
            if not self._is_closed:
                self.run(end)

    def _start(self, work: Callable[[], Coroutine[Any, Any, Value]]) -> "Future[Value]":
        self._check_process()
        # Under the lock `close` waits until the loop has it: what is started is run to an end, or cancelled.
        with self._lock:
            return self._connected().start(work())

    def _check_process(self) -> None:
        # Before the lock, which another thread may have held when this process was forked.
        if self._thread is not None and self._thread.pid != os.getpid():
            raise ClientForked(self._thread.pid)
        if self._thread is not None and self._thread.is_current:
            raise RuntimeError("a SyncClient was called from its own event loop, where it would wait for itself")

    def _connected(self) -> LoopThread:
        if self._is_closed:
            raise client_closed()
        if self._thread is None:
            thread = LoopThread()
            try:
                thread.start(self._client.connect()).result()
            except BaseException:
                thread.stop(self._client.close)
                raise
            self._thread = thread
            self._finalizer = weakref.finalize(self, thread.stop, self._client.close)
        return self._thread
