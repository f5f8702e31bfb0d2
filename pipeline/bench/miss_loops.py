"""Closed loops of misses: through the engine, through the dispatcher alone, through a raw stub."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2

from pipeline.adapters.system import SystemClock
from pipeline.adapters.triton import TritonServer
from pipeline.bench.workload import MODEL
from pipeline.config import Settings
from pipeline.core.answer import Answer
from pipeline.core.cache_key import encode_outputs
from pipeline.core.cache_policy import CachePolicy
from pipeline.core.catalog import ServedVersion
from pipeline.core.coalescing import Flight, Member
from pipeline.core.routing import Router
from pipeline.dispatcher import Dispatched, Dispatcher
from pipeline.engine import InferenceEngine
from pipeline.metrics import EngineMetrics
from schemas.decoded import DecodedRequest
from schemas.request import InferenceRequest, InputTensor
from schemas.tensor import Tensor

RAW_BATCH = 32
# As many rows in flight as the other loops have.
_RAW_CALLS = 2


class EngineLoop:
    """Keeps a number of requests in flight: an answer is followed by the next request at once, without a task.

    It stands where the worker stands: answers of a batch come one after the other, then the next batch leaves.
    """

    def __init__(self, engine: InferenceEngine, requests: list[DecodedRequest]) -> None:
        self._engine = engine
        self._requests = iter(requests)
        self._left = len(requests)
        self._done = asyncio.Event()
        self.failures: list[Answer] = []

    async def run(self, in_flight: int) -> float:
        """Requests per second.

        Raises:
            RuntimeError: a request was not computed.
        """
        began, count = time.perf_counter(), self._left
        for _ in range(in_flight):
            self._submit()
        await self._done.wait()
        if self.failures:
            raise RuntimeError(f"{len(self.failures)} of {count} failed: {self.failures[0]}")
        return count / (time.perf_counter() - began)

    def answered(self, answer: Answer) -> None:
        """A request is done."""
        if answer.status != "succeeded" or answer.cache_status != "miss":
            self.failures.append(answer)
        self._left -= 1
        if not self._left:
            self._done.set()
        self._submit()

    def _submit(self) -> None:
        request = next(self._requests, None)
        if request is not None and self._engine.submit(request, self) is not None:
            raise RuntimeError("a request that should be a miss was answered at once")


class FlightLoop:
    """Keeps a number of flights out, made before: no decoding, no key, no cache, no answers. One use each.

    Args:
        settings: timeouts and limits of the dispatcher.
        server: the Triton.
        version: what is asked.
        images: one flight each.
    """

    def __init__(
        self, settings: Settings, server: TritonServer, version: ServedVersion, images: Sequence[npt.NDArray[Any]]
    ) -> None:
        self._dispatcher = Dispatcher(
            [server],
            Router([server.name], Random()),
            SystemClock(),
            attempt_timeout_s=settings.worker.inference_timeout_ms / 1e3,
            batches_in_flight=settings.worker.batches_in_flight,
        )
        self._dispatcher.on_done = self._arrived
        self._flights = iter([_flight(version, image) for image in images])
        self._count = self._left = len(images)
        self._done = asyncio.Event()
        self._failures: list[Dispatched | None] = []

    async def run(self, in_flight: int) -> float:
        """Flights per second.

        Raises:
            RuntimeError: one failed.
        """
        began = time.perf_counter()
        for _ in range(in_flight):
            self._submit()
        await self._done.wait()
        if self._failures:
            raise RuntimeError(f"{len(self._failures)} of {self._count} failed: {self._failures[0]}")
        return self._count / (time.perf_counter() - began)

    def _arrived(self, flights: Sequence[Flight], outcome: Dispatched | None) -> None:
        if outcome is None or outcome.error is not None:
            self._failures.append(outcome)
        self._left -= len(flights)
        if not self._left:
            self._done.set()
        for _ in flights:
            self._submit()

    def _submit(self) -> None:
        flight = next(self._flights, None)
        if flight is not None:
            self._dispatcher.submit(flight)


class _Nobody:
    """Waits for a flight whose answer is not made."""

    def answered(self, answer: Answer) -> None:
        """Is never called."""


def _flight(version: ServedVersion, image: npt.NDArray[Any]) -> Flight:
    tensor = Tensor("image", "FP32", image.shape, image.tobytes())
    request = InferenceRequest(
        model_name=MODEL, inputs=[InputTensor(name="image", datatype="FP32", shape=list(image.shape))]
    )
    outputs = version.all_outputs
    flight = Flight(None, None, version, (tensor,), outputs, encode_outputs(outputs), {}, {}, len(tensor.raw))
    flight.join(
        Member(
            waiter=_Nobody(),
            request=request,
            cache_status="bypass",
            policy=CachePolicy(store=False),
            enable_cache=False,
            deadline=None,
            give_up_at=0.0,
            resolve_at=0.0,
        )
    )
    return flight


def calls(metrics: EngineMetrics) -> float:
    """How many calls were made to Triton."""
    samples = (sample for family in metrics.batch_rows.collect() for sample in family.samples)
    return next(sample.value for sample in samples if sample.name.endswith("_count"))


async def raw_rate(infer: Any, version: str, count: int) -> float:
    """Rows per second of preformed batches."""
    rng = np.random.default_rng()
    batches = iter(
        [
            raw_call(version, rng.uniform(0.0, 16.0, (RAW_BATCH, 64)).astype(np.float32))
            for _ in range(-(-count // RAW_BATCH))
        ]
    )
    began = time.perf_counter()
    await asyncio.gather(*(_raw_loop(infer, batches) for _ in range(_RAW_CALLS)))
    return -(-count // RAW_BATCH) * RAW_BATCH / (time.perf_counter() - began)


async def _raw_loop(infer: Any, batches: Iterator[Any]) -> None:
    for batch in batches:
        response = await infer(batch, timeout=20.0)
        assert len(response.raw_output_contents) == len(response.outputs), "outputs are asked for as raw bytes"


def raw_call(version: str, image: npt.NDArray[Any]) -> Any:
    """A preformed request of the raw stub."""
    request = service_pb2.ModelInferRequest(model_name=MODEL, model_version=version)
    request.inputs.add(name="image", datatype="FP32", shape=image.shape)
    request.raw_input_contents.append(image.tobytes())
    return request
