"""Control calls to one Triton: load, what it serves, its own view of a model, one inference.

The hot path has its own client (adapters/triton.py); these calls are rare, and wait.
"""

import struct
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from pipeline.adapters.triton_channel import open_channel
from pipeline.core.infer_messages import set_parameters
from pipeline.core.model_config import ModelConfig
from pipeline.errors import InferenceServerError, InvalidTensor, ModelFailed, ModelNotReady, ServerUnavailable
from schemas.tensor import Tensor, split_bytes_elements

# Sizes: grpc's own limit of 4 MB refuses an answer after the model ran. The subchannel pool keeps large sample
# requests off the connections of others. A stopped server is noticed in seconds, not at the call's deadline; one that
# is back, in half a second (grpc's own pauses between two tries grow to two minutes).
_CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.keepalive_time_ms", 2000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.ping_timeout_ms", 2000),
)
_LOAD_OFF = "explicit model load / unload is not allowed"


class ModelLoadFailed(InferenceServerError):  # noqa: N818 - a state, not a mistake
    """The server tried to load the model and could not."""


class ModelControlOff(InferenceServerError):  # noqa: N818 - a state, not a mistake
    """The server decides itself what it loads (`--model-control-mode` none or poll)."""


class LoadStillRunning(InferenceServerError):  # noqa: N818 - a state, not a mistake
    """An earlier load of the model has not ended: the server lets every further order for it wait behind that."""


class TritonControl:
    """One Triton, by its gRPC address. Use as `async with`.

    Every call raises ServerUnavailable when there is no answer within `timeout_s`.
    """

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        self.address = address
        self._channel = open_channel(address, credentials, _CHANNEL_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        """Connects at the first call."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the connection."""
        await self._channel.close(None)

    async def load(self, model_name: str, timeout_s: float) -> None:
        """Loads a model, or loads again what has changed; a model that has not changed costs 2 ms.

        Raises:
            ModelControlOff: this server does not take such orders.
            ModelLoadFailed: it tried; the reason is its own. Versions that served before may still serve.
            LoadStillRunning: an earlier load has not ended; nothing was ordered. A deadline ends the wait alone: a load
                that hangs ends with the server.
        """
        states = await self.states(model_name, timeout_s)
        if loading := sorted((number for number, (state, _) in states.items() if state == "LOADING"), key=int):
            reason = f"still loads {model_name} version {', '.join(loading)} since an earlier order"
            raise LoadStillRunning(self.address, f"{reason}: it takes no other before that ends or it restarts")
        await self._order(
            "RepositoryModelLoad", service_pb2.RepositoryModelLoadRequest(model_name=model_name), timeout_s
        )

    async def unload(self, model_name: str, timeout_s: float) -> None:
        """Unloads all versions of a model; its running requests finish.

        Raises:
            ModelControlOff: this server does not take such orders.
            ModelLoadFailed: it refused.
        """
        request = service_pb2.RepositoryModelUnloadRequest(model_name=model_name)
        await self._order("RepositoryModelUnload", request, timeout_s)

    async def _order(self, method: str, request: Any, timeout_s: float) -> None:
        try:
            await getattr(self._stub, method)(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            # Triton says so with UNAVAILABLE, the code of a server that is not there.
            if _LOAD_OFF in (error.details() or ""):
                raise ModelControlOff(self.address, _words(error)) from None
            if _is_unavailable(error):
                raise ServerUnavailable(self.address, _words(error)) from None
            raise ModelLoadFailed(self.address, _words(error)) from None

    async def is_live(self, timeout_s: float) -> bool:
        """Whether the server answers at all."""
        try:
            return bool((await self._call("ServerLive", service_pb2.ServerLiveRequest(), timeout_s)).live)
        except ServerUnavailable:
            return False

    async def states(self, model_name: str, timeout_s: float) -> dict[str, tuple[str, str]]:
        """Version -> (state, reason), as the server's repository index has them."""
        index = await self._call("RepositoryIndex", service_pb2.RepositoryIndexRequest(), timeout_s)
        return {entry.version: (entry.state, entry.reason) for entry in index.models if entry.name == model_name}

    async def is_ready(self, model_name: str, version: str, timeout_s: float) -> bool:
        """Whether the server answers requests for this version."""
        request = service_pb2.ModelReadyRequest(name=model_name, version=version)
        try:
            return bool((await self._call("ModelReady", request, timeout_s)).ready)
        except ModelNotReady:
            return False

    async def serves_any(self, model_name: str, timeout_s: float) -> bool:
        """Whether the server answers requests for any version, also of a model whose folder is gone."""
        return await self.is_ready(model_name, "", timeout_s)

    async def config(self, model_name: str, version: str, timeout_s: float) -> ModelConfig:
        """The configuration the server has in effect.

        Raises:
            ModelNotReady: it does not have that version.
        """
        request = service_pb2.ModelConfigRequest(name=model_name, version=version)
        return (await self._call("ModelConfig", request, timeout_s)).config

    async def infer(
        self,
        model_name: str,
        version: str,
        inputs: Sequence[Tensor],
        parameters: Mapping[str, Any],
        *,
        decoupled: bool,
        timeout_s: float,
    ) -> tuple[Tensor, ...]:
        """One inference; the responses of a decoupled model as one, BYTES joined.

        Raises:
            ModelNotReady: model or version not served there, or another version answered.
            InvalidTensor: the tensors were refused.
            ModelFailed: the model failed on them.
        """
        request = service_pb2.ModelInferRequest(model_name=model_name, model_version=version)
        for tensor in inputs:
            request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            request.raw_input_contents.append(tensor.raw)
        set_parameters(request.parameters, parameters)
        if decoupled:
            return await self._infer_stream(request, timeout_s)
        response = await self._call("ModelInfer", request, timeout_s)
        if response.model_version != version:
            raise ModelNotReady(self.address, f"version {response.model_version} answered for {version}")
        return _tensors(response)

    async def _infer_stream(self, request: Any, timeout_s: float) -> tuple[Tensor, ...]:
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        joined: dict[str, Tensor] = {}
        call = self._stub.ModelStreamInfer(iter([request]), timeout=timeout_s)
        try:
            async for answer in call:
                if answer.error_message:
                    raise ModelFailed(self.address, answer.error_message)
                for tensor in _tensors(answer.infer_response):
                    before = joined.get(tensor.name)
                    joined[tensor.name] = _joined(before, tensor) if before else tensor
                if answer.infer_response.parameters["triton_final_response"].bool_param:
                    break
        except grpc.aio.AioRpcError as error:
            raise self._translated(error) from None
        finally:
            call.cancel()
        return tuple(joined.values())

    async def _call(self, method: str, request: Any, timeout_s: float) -> Any:
        try:
            return await getattr(self._stub, method)(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise self._translated(error) from None

    def _translated(self, error: grpc.aio.AioRpcError) -> InferenceServerError:
        code, words = error.code(), _words(error)
        # Triton says UNAVAILABLE, too, of a model it knows and does not serve.
        if code is grpc.StatusCode.NOT_FOUND or "is not ready" in words or "unknown model" in words:
            return ModelNotReady(self.address, words)
        if _is_unavailable(error):
            return ServerUnavailable(self.address, words)
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidTensor(self.address, words)
        return ModelFailed(self.address, words)


def _is_unavailable(error: grpc.aio.AioRpcError) -> bool:
    return error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def _words(error: grpc.aio.AioRpcError) -> str:
    """The server's sentence on one line; a Python traceback in it becomes readable in a report."""
    return f"{error.code().name}: {' '.join((error.details() or '').split())}"


def _tensors(response: Any) -> tuple[Tensor, ...]:
    raws = response.raw_output_contents
    return tuple(
        Tensor(output.name, output.datatype, tuple(output.shape), raws[index])
        for index, output in enumerate(response.outputs)
    )


def _joined(before: Tensor, after: Tensor) -> Tensor:
    if after.datatype != "BYTES":
        return after
    text = b"".join(split_bytes_elements(before.name, before.raw) + split_bytes_elements(after.name, after.raw))
    return Tensor(after.name, "BYTES", (1,) * len(after.shape), struct.pack("<I", len(text)) + text)
