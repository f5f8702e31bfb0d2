"""One Triton over gRPC (KServe Open Inference Protocol v2, ModelInfer).

Raw protobuf requests on a raw stub: building `tritonclient` objects costs 5 us more per call and gives nothing here.
Tensors above a megabyte have a channel of their own, so that small calls never wait behind them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2

from pipeline.config import TlsSettings
from pipeline.errors import (
    InferenceServerError,
    InvalidTensor,
    ModelFailed,
    ModelNotReady,
    ServerUnavailable,
    SettingsError,
)
from pipeline.ports import InferenceCall
from schemas.errors import WireError
from schemas.tensor import Tensor, check_raw

_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_LARGE_BYTES = 1 << 20

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


class TritonServer:
    """Runs inferences on one Triton.

    Tensors are row-major, shape [batch, *model dims], 1 <= batch <= max_batch_size; BYTES elements are raw, not text.

    Args:
        name: the instance's name in results and events.
        address: host:port of its gRPC endpoint.
        tls: how the connection is secured.
    """

    def __init__(self, name: str, address: str, tls: TlsSettings | None = None) -> None:
        self._name = name
        self._small = _channel(address, tls)
        self._large = _channel(address, tls)
        self._infer_small = _method(self._small)
        self._infer_large = _method(self._large)

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
        request = _request(call)
        size = sum(len(tensor.raw) for tensor in call.inputs)
        method = self._infer_small if size <= _LARGE_BYTES else self._infer_large
        try:
            response = await method(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise _translated(self._name, error) from None
        return self._outputs(call, response)

    async def close(self) -> None:
        """Closes the connections; calls that are out fail with ServerUnavailable."""
        await self._small.close(None)
        await self._large.close(None)

    def _outputs(self, call: InferenceCall, response: Any) -> tuple[Tensor, ...]:
        if response.model_version != call.model_version:
            raise ModelNotReady(
                self._name, f"{call.model_name} version {response.model_version} answered for {call.model_version}"
            )
        raws = response.raw_output_contents
        if len(raws) != len(response.outputs):
            raise ModelFailed(self._name, f"{len(raws)} raw outputs for {len(response.outputs)} declared")
        found = {
            output.name: Tensor(output.name, output.datatype, tuple(output.shape), raw)
            for output, raw in zip(response.outputs, raws, strict=True)
        }
        try:
            for tensor in found.values():
                check_raw(tensor.name, tensor.datatype, tensor.shape, tensor.raw)
            return tuple(found[name] for name, _ in call.outputs) if call.outputs else tuple(found.values())
        except WireError as error:
            raise ModelFailed(self._name, error.message) from None
        except KeyError as error:
            raise ModelFailed(self._name, f"output {error} is missing in its answer") from None


def instance_names(urls: Sequence[str]) -> list[str]:
    """The names of a fleet's instances: triton-0, triton-1, … in the order of their addresses."""
    return [f"triton-{index}" for index in range(len(urls))]


def channel_credentials(tls: TlsSettings) -> grpc.ChannelCredentials | None:
    """What a gRPC channel to a Triton with TLS needs; None without TLS.

    Raises:
        SettingsError: a file cannot be read.
    """
    if not tls.enabled:
        return None
    try:
        files = (tls.ca_file, tls.key_file, tls.cert_file)
        return grpc.ssl_channel_credentials(*(path.read_bytes() if path else None for path in files))
    except OSError as error:
        raise SettingsError(f"settings triton.tls: {error}") from None


def _channel(address: str, tls: TlsSettings | None) -> grpc.aio.Channel:
    credentials = channel_credentials(tls) if tls is not None else None
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(address, credentials, options=_CHANNEL_OPTIONS)


def _method(channel: grpc.aio.Channel) -> Any:
    return channel.unary_unary(
        _METHOD,
        request_serializer=service_pb2.ModelInferRequest.SerializeToString,
        response_deserializer=service_pb2.ModelInferResponse.FromString,
    )


def _request(call: InferenceCall) -> Any:
    request = service_pb2.ModelInferRequest(
        model_name=call.model_name,
        model_version=call.model_version,
        inputs=[
            service_pb2.ModelInferRequest.InferInputTensor(
                name=tensor.name, datatype=tensor.datatype, shape=tensor.shape
            )
            for tensor in call.inputs
        ],
        raw_input_contents=[tensor.raw for tensor in call.inputs],
    )
    for name, parameters in call.outputs:
        output = request.outputs.add(name=name)
        set_parameters(output.parameters, parameters)
    if call.parameters:
        set_parameters(request.parameters, call.parameters)
    return request


def set_parameters(target: Any, parameters: Mapping[str, Any]) -> None:
    """Puts parameters into a request's protobuf map, each by its type."""
    for name, value in parameters.items():
        if isinstance(value, bool):
            target[name].bool_param = value
        elif isinstance(value, int):
            target[name].int64_param = value
        elif isinstance(value, float):
            target[name].double_param = value
        else:
            target[name].string_param = value


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
