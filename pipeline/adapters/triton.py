"""One Triton over gRPC (KServe Open Inference Protocol v2, ModelInfer).

Raw messages on a raw stub: building `tritonclient` objects costs 5 us more per call and gives nothing here. Tensors
above a megabyte have a channel of their own, so that small calls never wait behind them; on one host large ones need
not travel, where the server sees this process's memory (`triton_shared_memory.py`, handed in).
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2

from pipeline.adapters.triton_channel import channel_credentials, open_channel
from pipeline.config import TlsSettings
from pipeline.core.infer_messages import (
    Place,
    decode_answer,
    encode_request,
    fixed_output_sizes,
)
from pipeline.errors import (
    InferenceServerError,
    InvalidTensor,
    ModelFailed,
    ModelNotReady,
    ServerUnavailable,
)
from pipeline.ports import InferenceCall
from schemas.tensor import Tensor

logger = logging.getLogger(__name__)

_SERVICE = "/inference.GRPCInferenceService/"
_LARGE_BYTES = 1 << 20
# Register, unregister and a model's configuration take Triton under a millisecond.
_CONTROL_TIMEOUT_S = 2.0

# Measured on Triton 2.51: keepalive alone never noticed a stopped server in 33 s, with http2.ping_timeout_ms it took
# 2.0 s; after 17 s down a restarted server was used again after 10.7 s with gRPC's own back-off, 0.3 s with these.
# Message sizes: gRPC's 4 MiB limit on answers strikes after the model has run.
_CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_timeout_ms", 1000),
    ("grpc.http2.ping_timeout_ms", 1000),
    ("grpc.http2.max_pings_without_data", 0),
)

_UNAVAILABLE = frozenset({
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.ABORTED,
})  # fmt: skip


class Lease(Protocol):
    """Memory that the server sees too, lent to one call, with the inputs in it. Ended exactly once."""

    @property
    def inputs(self) -> Mapping[int, Place]:
        """Which inputs lie there, by position."""

    @property
    def outputs(self) -> Mapping[str, Place]:
        """Where outputs are to be written, by name."""

    def read(self, name: str, size: int) -> bytes | None:
        """An output's bytes; None where the server has not written them."""

    def end(self, *, answered: bool) -> None:
        """Without an answer the server may still be at it: nobody gets that memory again."""


class SharedMemory(Protocol):
    """What one server and this process both see (`triton_shared_memory.SharedSlots`)."""

    def lend(self, inputs: Sequence[Tensor], output_sizes: Mapping[str, int]) -> Lease | None:
        """Memory with these inputs in it, or None where there is none now, or it would not pay; never waits."""

    async def close(self) -> None:
        """Ends all of it; calls that are out can still read their answers."""


class TritonServer:
    """Runs inferences on one Triton.

    Tensors are row-major, shape [batch, *model dims], 1 <= batch <= max_batch_size; BYTES elements are raw, not text.

    Args:
        name: the instance's name in results and events.
        address: host:port of its gRPC endpoint.
        tls: how the connection is secured.
        shared: makes the shared memory out of the server's calls for it; None: everything travels over gRPC.
    """

    def __init__(
        self,
        name: str,
        address: str,
        tls: TlsSettings | None = None,
        shared: "Callable[[TritonRegions], SharedMemory] | None" = None,
    ) -> None:
        self._name = name
        credentials = None if tls is None else channel_credentials(tls)
        self._small = open_channel(address, credentials, _CHANNEL_OPTIONS)
        self._large = open_channel(address, credentials, _CHANNEL_OPTIONS)
        self._infer_small = _method(self._small, "ModelInfer")
        self._infer_large = _method(self._large, "ModelInfer")
        self._shared = None if shared is None else shared(TritonRegions(name, self._small))
        self._output_sizes = OutputSizes(name, self._small)

    @property
    def name(self) -> str:
        """The instance's name."""
        return self._name

    async def infer(self, call: InferenceCall, timeout_s: float) -> tuple[Tensor, ...]:
        """The outputs of one call, in the order asked, or the server's own order for all.

        Raises:
            ServerUnavailable: no connection, no answer within `timeout_s`, or its queue is full.
            ModelNotReady: model or version not served there.
            InvalidTensor: the tensors were refused.
            ModelFailed: the model failed on them, or answered with something that is not what was asked.
        """
        if self._shared is not None:
            lease = self._shared.lend(call.inputs, self._output_sizes.of(call))
            if lease is not None:
                return await self._infer_shared(call, timeout_s, lease)
        return await self._infer(call, timeout_s)

    async def close(self) -> None:
        """Closes the connections; calls that are out fail with ServerUnavailable."""
        await self._output_sizes.close()
        if self._shared is not None:
            await self._shared.close()
        await self._small.close(None)
        await self._large.close(None)

    async def _infer_shared(self, call: InferenceCall, timeout_s: float, lease: Lease) -> tuple[Tensor, ...]:
        """The outputs. What is refused may be so for the memory: the server lost it, or an output has grown.

        Different versions of Triton say so in different words, so these do not decide: the call is made again over
        gRPC, and its answer counts.
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + timeout_s
        answered = False
        try:
            outputs = await self._infer(call, timeout_s, lease)
            answered = True
        except (InvalidTensor, ModelNotReady):
            pass
        except ModelFailed as error:
            if "shared memory" not in error.reason:
                raise
            self._output_sizes.forget(call)
        else:
            return outputs
        finally:
            # Also when this task is cancelled: the server goes on with the memory for as long as the model runs.
            lease.end(answered=answered)
        return await self._infer(call, max(give_up_at - loop.time(), 1e-3))

    async def _infer(self, call: InferenceCall, timeout_s: float, lease: Lease | None = None) -> tuple[Tensor, ...]:
        # What comes back is about as large as what is sent, unless all of it is written to shared memory.
        large = sum([len(tensor.raw) for tensor in call.inputs]) > _LARGE_BYTES
        if lease is not None and len(lease.outputs) == len(call.outputs) > 0:
            large = False
        method = self._infer_large if large else self._infer_small
        try:
            # Nobody holds on to the message: it is gone before the answer is taken apart.
            body = await method(_message(call, lease), timeout=timeout_s, metadata=_metadata(call.traceparent))
        except grpc.aio.AioRpcError as error:
            raise _translated(self._name, error) from None
        return decode_answer(self._name, call.model_version, call.outputs, body, None if lease is None else lease.read)


class OutputSizes:
    """Which outputs of a version have a size that is known before it runs, as the server's configuration has them.

    Asked for once per version, behind: the calls meanwhile take none for known.
    """

    def __init__(self, instance: str, channel: grpc.aio.Channel) -> None:
        self._instance = instance
        self._config = _method(channel, "ModelConfig")
        # By model and version: whether there is a batch axis, and the bytes of each output, or of each of its rows.
        self._known: dict[tuple[str, str], tuple[bool, dict[str, int]]] = {}
        self._asking: dict[tuple[str, str], asyncio.Task[None]] = {}

    def of(self, call: InferenceCall) -> dict[str, int]:
        """Bytes of the outputs that are asked for and have a known size."""
        key = (call.model_name, call.model_version)
        if key not in self._known:
            if key not in self._asking:
                self._asking[key] = asyncio.get_running_loop().create_task(self._ask(key))
            return {}
        batched, sizes = self._known[key]
        rows = next((tensor.shape[0] for tensor in call.inputs if tensor.shape), 1) if batched else 1
        return {name: sizes[name] * rows for name, _ in call.outputs if name in sizes}

    def forget(self, call: InferenceCall) -> None:
        """The version is not what it was: its configuration is asked for again."""
        self._known.pop((call.model_name, call.model_version), None)

    async def close(self) -> None:
        """Asks no more."""
        for task in self._asking.values():
            task.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)

    async def _ask(self, key: tuple[str, str]) -> None:
        try:
            request = service_pb2.ModelConfigRequest(name=key[0], version=key[1])
            config = (await self._config(request, timeout=_CONTROL_TIMEOUT_S)).config
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                self._known[key] = (False, {})
            logger.debug("%s: configuration of %s: %s", self._instance, key[0], error.details())
        else:
            self._known[key] = (config.max_batch_size > 0, fixed_output_sizes(config))
        finally:
            del self._asking[key]


class TritonRegions:
    """The calls of one Triton that make system shared memory known to it."""

    def __init__(self, instance: str, channel: grpc.aio.Channel) -> None:
        self._instance = instance
        self._register = _method(channel, "SystemSharedMemoryRegister")
        self._unregister = _method(channel, "SystemSharedMemoryUnregister")
        self._status = _method(channel, "SystemSharedMemoryStatus")

    async def register(self, name: str, size: int) -> None:
        """See `Regions` in `triton_shared_memory.py`."""
        request = service_pb2.SystemSharedMemoryRegisterRequest(name=name, key=f"/{name}", byte_size=size)
        await self._call(self._register, request)

    async def unregister(self, name: str) -> None:
        """See `Regions` in `triton_shared_memory.py`. Triton refuses while a call uses the region."""
        await self._call(self._unregister, service_pb2.SystemSharedMemoryUnregisterRequest(name=name))

    async def registered(self) -> list[str]:
        """See `Regions` in `triton_shared_memory.py`."""
        return list((await self._call(self._status, service_pb2.SystemSharedMemoryStatusRequest())).regions)

    async def _call(self, method: Any, request: Any) -> Any:
        try:
            return await method(request, timeout=_CONTROL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise _translated(self._instance, error) from None


def instance_names(urls: Sequence[str]) -> list[str]:
    """The names of a fleet's instances: triton-0, triton-1, … in the order of their addresses."""
    return [f"triton-{index}" for index in range(len(urls))]


def _method(channel: grpc.aio.Channel, name: str) -> Any:
    """One of the protocol's calls; inferences go and come as bytes."""
    if name == "ModelInfer":
        return channel.unary_unary(f"{_SERVICE}{name}", None, None)
    return channel.unary_unary(
        f"{_SERVICE}{name}",
        request_serializer=getattr(service_pb2, f"{name}Request").SerializeToString,
        response_deserializer=getattr(service_pb2, f"{name}Response").FromString,
    )


def _metadata(traceparent: bytes | None) -> tuple[tuple[str, str], ...] | None:
    """A Triton that traces by OpenTelemetry makes its spans children of this one."""
    return None if traceparent is None else (("traceparent", traceparent.decode("ascii")),)


def _message(call: InferenceCall, lease: Lease | None) -> bytes:
    return encode_request(
        call.model_name,
        call.model_version,
        call.inputs,
        call.outputs,
        call.parameters,
        input_places=lease.inputs if lease is not None else {},
        output_places=lease.outputs if lease is not None else {},
    )


def _translated(name: str, error: grpc.aio.AioRpcError) -> InferenceServerError:
    """The one place where a gRPC status becomes an error of ours."""
    code, details = error.code(), error.details() or str(error.code())
    if code in _UNAVAILABLE:
        return ServerUnavailable(name, details)
    if code is grpc.StatusCode.NOT_FOUND:
        return ModelNotReady(name, details)
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return InvalidTensor(name, details)
    return ModelFailed(name, details)
