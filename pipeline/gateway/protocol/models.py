"""What the protocol tells of models: names, versions and tensors as announced, the rest as the fleet's servers say.

The models topic alone decides what is served; Tritons are asked for configuration, platform and statistics, all of
them at once, each for `ASK_S` at most: one that is down costs no answer.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, TypeVar

from pipeline.adapters.kafka import client_options
from pipeline.adapters.models_topic import ModelsFollower
from pipeline.adapters.triton import instance_names
from pipeline.adapters.triton_channel import channel_credentials
from pipeline.adapters.triton_metadata import TritonMetadata
from pipeline.config import Settings
from pipeline.core.catalog import ModelCatalog, ServedVersion
from pipeline.errors import InferenceServerError
from pipeline.gateway.http.problem import Problem
from pipeline.gateway.protocol.request import ModelAddress
from schemas.errors import ErrorCode
from schemas.registry import ModelRecord, ModelVersion, TensorSpec

# An idle Triton answers such a question in 0.3 ms; a busy host's pauses are below this.
ASK_S = 2.0
_SERVED = frozenset({"ready", "draining"})
_T = TypeVar("_T")
# Platforms remembered: one text for each content of a version.
_PLATFORMS_MAX = 4096


class FleetServer(Protocol):
    """One server of the fleet, as `pipeline.adapters.triton_metadata.TritonMetadata` asks it."""

    name: str

    async def config(self, model_name: str, version: str, timeout_s: float) -> dict[str, Any]:
        """The configuration in effect; raises InferenceServerError."""

    async def platform(self, model_name: str, version: str, timeout_s: float) -> str:
        """The framework and backend; raises InferenceServerError."""

    async def statistics(self, model_name: str, version: str, timeout_s: float) -> list[dict[str, Any]]:
        """Counts by version; raises InferenceServerError."""

    async def close(self) -> None:
        """Ends the connection."""


class AnnouncedModels:
    """The models topic, as far as it was read.

    Args:
        now: Unix seconds: which version is the default depends on it for a moment after each promotion.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._records: dict[str, ModelRecord] = {}
        self._catalog = ModelCatalog()

    def records(self) -> Mapping[str, ModelRecord]:
        """The newest record of every model."""
        return self._records

    def apply(self, record: ModelRecord) -> None:
        """A model is announced, or announced anew."""
        self._records[record.model_name] = record
        self._catalog.apply(record)

    def discard(self, model_name: str) -> None:
        """A model is gone."""
        self._records.pop(model_name, None)
        self._catalog.discard(model_name)

    def resolve(self, model: ModelAddress) -> ServedVersion:
        """The version that is meant.

        Raises:
            WireError: MODEL_NOT_FOUND or VERSION_NOT_FOUND.
        """
        return self._catalog.resolve(model.name, model.version, self._now())

    def versions(self, model_name: str) -> list[str]:
        """The numbers that are served, ascending."""
        record = self._records.get(model_name)
        return [] if record is None else [number for number, version in _numbered(record) if _is_served(version)]

    def repository_index(self, *, ready_only: bool) -> list[dict[str, str]]:
        """Every version there is word of, in the shape of Triton's index: READY, or UNAVAILABLE and why."""
        return [
            {"name": name, "version": number, **_index_state(version)}
            for name, record in sorted(self._records.items())
            for number, version in _numbered(record)
            if _is_served(version) or not ready_only
        ]


def _numbered(record: ModelRecord) -> list[tuple[str, ModelVersion]]:
    return sorted(record.versions.items(), key=lambda item: int(item[0]))


def _is_served(version: ModelVersion) -> bool:
    return version.state in _SERVED and version.signature is not None


def _index_state(version: ModelVersion) -> dict[str, str]:
    if _is_served(version):
        return {"state": "READY", "reason": version.reason or ""}
    return {"state": "UNAVAILABLE", "reason": version.reason or version.state}


class Connections(NamedTuple):
    """What a fleet is asked by, and what keeps its models up to date."""

    servers: Sequence[FleetServer]
    follower: ModelsFollower


class Fleet:
    """Models and servers behind one gateway: `async with Fleet(...)`; one event loop.

    Args:
        models: what is announced.
        servers: who is asked for the rest, where `connect` names nobody.
        connect: called when the fleet is entered; None: `models` is all there is, and nothing follows the topic.
    """

    def __init__(
        self,
        models: AnnouncedModels,
        servers: Sequence[FleetServer] = (),
        connect: Callable[[], Connections] | None = None,
    ) -> None:
        self._models = models
        self._servers = servers
        self._connect = connect
        self._follower: ModelsFollower | None = None
        self._platforms: dict[tuple[str, str, str], str] = {}

    async def __aenter__(self) -> Self:
        """Begins to follow the models topic; a Kafka that is away delays nothing.

        Raises:
            SettingsError: Kafka's address is not known, or TLS files cannot be read.
        """
        if self._connect is not None:
            self._servers, self._follower = self._connect()
            await self._follower.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the connections."""
        if self._follower is not None:
            await self._follower.stop()
        for server in self._servers:
            await server.close()

    @property
    def models(self) -> AnnouncedModels:
        """What is announced.

        Raises:
            Problem: 503, the models topic has not been read to its end yet, so that nobody can say what is not there.
        """
        if self._connect is not None and (self._follower is None or not self._follower.caught_up):
            raise _unavailable("the models topic has not been read yet: Kafka does not answer, or this gateway starts")
        return self._models

    async def metadata(self, model: ModelAddress) -> dict[str, Any]:
        """A model's metadata as Triton gives it; the platform is empty where no server tells it.

        Raises:
            WireError: MODEL_NOT_FOUND or VERSION_NOT_FOUND.
            Problem: 503, nothing is known yet.
        """
        version = self.models.resolve(model)
        batched = version.signature.max_batch_size > 0
        return {
            "name": version.model_name,
            "versions": self._models.versions(model.name) if model.version is None else [version.version],
            "platform": await self._platform(version),
            "inputs": [_tensor(spec, batched=batched) for spec in version.signature.inputs],
            "outputs": [_tensor(spec, batched=batched) for spec in version.signature.outputs],
        }

    async def config(self, model: ModelAddress) -> dict[str, Any]:
        """A version's configuration, of whichever server answers first.

        Raises:
            WireError: MODEL_NOT_FOUND or VERSION_NOT_FOUND.
            Problem: 503, no server answers.
        """
        version = self.models.resolve(model)
        return await self._first(lambda server: server.config(version.model_name, version.version, ASK_S))

    async def statistics(self, model: ModelAddress | None) -> dict[str, Any]:
        """The servers' statistics, summed; None for all models. A server without an answer is named beside them.

        Raises:
            WireError: MODEL_NOT_FOUND or VERSION_NOT_FOUND.
            Problem: 503, no server answers.
        """
        name, number = "", ""
        if model is not None:
            name, number = model.name, model.version or ""
            self.models.resolve(model)
        found, failed = await self._all(lambda server: server.statistics(name, number, ASK_S))
        if not found:
            raise _unavailable(_why(failed))
        merged: dict[str, Any] = {"model_stats": summed(entry for entries in found for entry in entries)}
        if failed:
            merged["unanswered"] = [{"instance": error.instance, "reason": error.reason} for error in failed]
        return merged

    async def _platform(self, version: ServedVersion) -> str:
        key = (version.model_name, version.version, version.fingerprint)
        if key not in self._platforms:
            try:
                found = await self._first(lambda server: server.platform(version.model_name, version.version, ASK_S))
            except Problem:
                return ""  # asked again the next time: what the model wants is known without it
            if len(self._platforms) >= _PLATFORMS_MAX:
                self._platforms.clear()
            self._platforms[key] = found
        return self._platforms[key]

    async def _first(self, ask: Callable[[FleetServer], Awaitable[_T]]) -> _T:
        """The first answer of all servers asked at once."""
        failed: list[InferenceServerError] = []
        tasks = [asyncio.ensure_future(ask(server)) for server in self._servers]
        try:
            for answer in asyncio.as_completed(tasks):
                try:
                    return await answer
                except InferenceServerError as error:
                    failed.append(error)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        raise _unavailable(_why(failed))

    async def _all(self, ask: Callable[[FleetServer], Awaitable[_T]]) -> tuple[list[_T], list[InferenceServerError]]:
        """The answers of all servers, and the errors of those without one."""
        found: list[_T] = []
        failed: list[InferenceServerError] = []

        async def one(server: FleetServer) -> None:
            try:
                found.append(await ask(server))
            except InferenceServerError as error:
                failed.append(error)

        async with asyncio.TaskGroup() as group:
            for server in self._servers:
                group.create_task(one(server))
        return found, failed


def _tensor(spec: TensorSpec, *, batched: bool) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": [*([-1] if batched else []), *spec.dims]}


def _why(failed: Iterable[InferenceServerError]) -> str:
    told = "; ".join(sorted(f"{error.instance}: {error.reason:.200}" for error in failed))
    return f"no Triton answers: {told}" if told else "no Triton to ask: the setting PIPELINE_TRITON__URLS names none"


def _unavailable(detail: str) -> Problem:
    return Problem(503, ErrorCode.INFERENCE_UNAVAILABLE, detail, retry_after_s=1)


def summed(entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Statistics of several servers as those of one: a model version's counts and durations added up.

    Its last inference is the latest one; memory stays what each server uses, one after the other.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in entries:
        key = (entry["name"], entry["version"])
        found[key] = _sum(found[key], entry) if key in found else dict(entry)
    return [found[key] for key in sorted(found, key=lambda key: (key[0], key[1].zfill(20)))]


def _sum(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    both = {name: _sum_of(name, one[name], other[name]) for name in one if name in other}
    return {**other, **one, **both}


def _sum_of(name: str, one: Any, other: Any) -> Any:
    if isinstance(one, dict):
        return _sum(one, other)
    if name == "batch_stats":
        return _batches([*one, *other])
    if isinstance(one, str) or name == "batch_size":
        return one
    return max(one, other) if name == "last_inference" else one + other


def _batches(entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    sizes: dict[int, dict[str, Any]] = {}
    for entry in entries:
        size = entry["batch_size"]
        sizes[size] = _sum(sizes[size], entry) if size in sizes else dict(entry)
    return [sizes[size] for size in sorted(sizes)]


def make_fleet(settings: Settings) -> Fleet:
    """The fleet that these settings name; connected when it is entered."""
    models = AnnouncedModels()

    def connect() -> Connections:
        urls = settings.triton.urls or ()
        credentials = channel_credentials(settings.triton.tls)
        options, topic = client_options(settings.kafka), settings.topic("models")
        servers = [TritonMetadata(name, url, credentials) for name, url in zip(instance_names(urls), urls, strict=True)]
        return Connections(servers, ModelsFollower(options, topic, models.apply, models.discard))

    return Fleet(models, connect=connect)
