"""What one Triton tells of its models over gRPC: configuration, platform, statistics, in the shapes of its own HTTP.

Calls for people and dashboards: rare, small, and each waits for its limit at most. Inferences have their own client
(`triton.py`), orders theirs (`pipeline/watcher/fleet/triton_control.py`).
"""

from collections.abc import Mapping, MutableMapping, MutableSequence
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from pipeline.adapters.triton_channel import open_channel
from pipeline.errors import InferenceServerError, ModelFailed, ModelNotReady, ServerUnavailable

# Sizes: the statistics of 1,000 models are 1 MB, gRPC's own limit is 4. Reconnecting as the inferences' client does it:
# with gRPC's own pauses a server that is back is not asked for up to two minutes.
_CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 500),
)
_NOT_SERVED = ("unknown model", "is not ready", "is not available")


class TritonMetadata:
    """One Triton, asked for what it knows of its models. Connects at the first call.

    Args:
        name: the instance's name, as results give it.
        address: host:port of its gRPC endpoint.
        credentials: of a server with TLS.
    """

    def __init__(self, name: str, address: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        self.name = name
        self._channel = open_channel(address, credentials, _CHANNEL_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def config(self, model_name: str, version: str, timeout_s: float) -> dict[str, Any]:
        """The configuration in effect.

        Raises:
            ServerUnavailable: no answer within `timeout_s`.
            ModelNotReady: it does not serve that version.
            ModelFailed: it says something else is wrong.
        """
        request = service_pb2.ModelConfigRequest(name=model_name, version=version)
        return as_json((await self._call("ModelConfig", request, timeout_s)).config)

    async def platform(self, model_name: str, version: str, timeout_s: float) -> str:
        """The framework and backend, as the server names them; empty where it has no word.

        Raises:
            ServerUnavailable: no answer within `timeout_s`.
            ModelNotReady: it does not serve that version.
            ModelFailed: it says something else is wrong.
        """
        request = service_pb2.ModelMetadataRequest(name=model_name, version=version)
        platform: str = (await self._call("ModelMetadata", request, timeout_s)).platform
        return platform

    async def statistics(self, model_name: str, version: str, timeout_s: float) -> list[dict[str, Any]]:
        """Counts since the server's start, one entry for each version; "" stands for all models, all versions.

        Raises:
            ServerUnavailable: no answer within `timeout_s`.
            ModelNotReady: it does not serve that model or version.
            ModelFailed: it says something else is wrong.
        """
        request = service_pb2.ModelStatisticsRequest(name=model_name, version=version)
        answer = await self._call("ModelStatistics", request, timeout_s)
        return [as_json(entry) for entry in answer.model_stats]

    async def close(self) -> None:
        """Closes the connection; calls that are out fail with ServerUnavailable."""
        await self._channel.close(None)

    async def _call(self, method: str, request: Any, timeout_s: float) -> Any:
        try:
            return await getattr(self._stub, method)(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise self._translated(error) from None

    def _translated(self, error: grpc.aio.AioRpcError) -> InferenceServerError:
        code, words = error.code(), " ".join((error.details() or error.code().name).split())
        # Triton 2.51 says UNAVAILABLE, too, of a model it knows and does not serve, and INVALID_ARGUMENT of one that it
        # has no statistics of.
        if code is grpc.StatusCode.NOT_FOUND or any(sentence in words for sentence in _NOT_SERVED):
            return ModelNotReady(self.name, words)
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
            return ServerUnavailable(self.name, words)
        return ModelFailed(self.name, words)


def as_json(message: Any) -> dict[str, Any]:
    """A protobuf message as Triton's HTTP writes it: the fields' own names, enums by name, 64-bit integers as numbers.

    Values, lists and maps are there also where they are empty; messages and members of a oneof only where they are set.
    (`json_format.MessageToDict` writes 64-bit integers as strings.)
    """
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        if isinstance(value, MutableMapping):
            of = field.message_type.fields_by_name["value"]
            found[field.name] = {str(key): _plain(of, part) for key, part in _sorted(value)}
        elif isinstance(value, MutableSequence):
            found[field.name] = [_plain(field, part) for part in value]
        else:
            found[field.name] = _plain(field, value)
    return found


def _sorted(values: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    # Reading a protobuf map by key makes the entry; by items it does not. Protobuf keeps no order.
    return sorted(values.items(), key=lambda item: str(item[0]))


def _plain(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return as_json(value)
    if field.enum_type is not None:
        named = field.enum_type.values_by_number.get(value)
        return named.name if named is not None else value
    return value
