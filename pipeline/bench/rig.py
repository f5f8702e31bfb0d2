"""The servers a benchmark runs on, and the processes it measures; everything is gone afterwards.

Servers nobody configured are started in a temporary folder, on free ports: a stack that runs in the data folder is not
touched. On servers that somebody did configure, the benchmarks use topics and a database of their own, and remove them.
"""

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from pipeline.adapters.clickhouse import ClickHouseEventStore
from pipeline.adapters.kafka import all_partitions, client_options
from pipeline.adapters.models_topic import read_models
from pipeline.adapters.topics import create_topics
from pipeline.bench import blobs
from pipeline.config import RedisSettings, Settings
from pipeline.errors import SettingsError
from pipeline.sink.migrations.runner import migrate
from pipeline.stack import Endpoints, PartState, Stack, StackPlan
from pipeline.stack.ports import PortBook
from pipeline.stack.process import Child, ProcessSpec
from pipeline.stack.valkey import make_valkey
from pipeline.watcher.repository_pass import register_models
from schemas.registry import ModelRecord

Tell = Callable[[str], None]
_BACKENDS = Path(__file__).resolve().parents[2] / "infra" / "triton" / "backends"
# The kernel counts CPU time in these: 10 ms.
CPU_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Rig:
    """Running servers, and what benchmarks start on them.

    Attributes:
        settings: with the servers' addresses; topics and database are the benchmarks' own.
        folder: for logs and everything else; removed at the end.
        models: what is registered, by name; none where there is no Triton.
        tell: is given one line for each step.
    """

    settings: Settings
    folder: Path
    models: Mapping[str, ModelRecord]
    tell: Tell

    async def topics(self, name: str, event_partitions: int | None = None) -> Settings:
        """Settings with topics of their own, made now, in which the models are announced already."""
        prefix = f"{self.settings.kafka.topic_prefix}{name}."
        changes: dict[str, object] = {"topic_prefix": prefix}
        if event_partitions is not None:
            changes["event_partitions"] = event_partitions
        settings = self.settings.model_copy(update={"kafka": self.settings.kafka.model_copy(update=changes)})
        await create_topics(settings)
        producer = AIOKafkaProducer(**client_options(settings.kafka), acks="all")
        async with producer:
            for model_name, record in self.models.items():
                body = record.model_dump_json().encode()
                await producer.send_and_wait(settings.topic("models"), body, key=model_name.encode())
        return settings

    @asynccontextmanager
    async def process(
        self, settings: Settings, name: str, *arguments: str, variables: Mapping[str, str] | None = None
    ) -> AsyncIterator[Child]:
        """Runs `python -m` with these settings; it is stopped at the end of the block."""
        argv = (sys.executable, "-m", *arguments)
        env = dict(os.environ) | _environment(settings, self.folder) | dict(variables or {})
        child = Child(ProcessSpec(name, argv, env, stop_timeout_s=15.0), self.folder / f"{name}.log")
        await child.start()
        try:
            yield child
        finally:
            await child.stop()


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for servers, logs and models, removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="pipeline-bench-"))
    try:
        (folder / "serving").mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def stack_for(settings: Settings, folder: Path, tell: Tell, *, tritons: int, clickhouse: bool) -> Stack:
    """The servers that are needed and that no setting gives an address for, not started yet."""
    plan = StackPlan(
        data_dir=folder,
        kafka=settings.kafka.bootstrap_servers is None,
        valkey=False,
        clickhouse=clickhouse and settings.clickhouse.url is None,
        triton_count=tritons if settings.triton.urls is None else 0,
        record_bytes_max=settings.limits.record_bytes,
        serving_dir=folder / "serving",
        backends_dir=_BACKENDS if _BACKENDS.is_dir() else None,
    )
    return Stack(plan, lambda state: _tell_change(tell, state))


@asynccontextmanager
async def valkey_on(settings: Settings, folder: Path) -> AsyncIterator[RedisSettings]:
    """The configured Redis, or a Valkey alone: what is measured on it needs neither Kafka nor the seconds of its start.

    Raises:
        StackError: it cannot start.
    """
    if settings.redis.url is not None:
        yield settings.redis
        return
    ports = PortBook(folder / "ports.json")
    spec, url = make_valkey(folder, ports, dict(os.environ), ready_timeout_s=15.0)
    child = Child(spec, folder / "valkey.log")
    await child.start()
    try:
        await child.wait_ready()
        yield RedisSettings(url=url)
    finally:
        await child.stop()


@asynccontextmanager
async def rig_on(
    stack: Stack, settings: Settings, folder: Path, tell: Tell, *, models: Collection[str], clickhouse: bool
) -> AsyncIterator[Rig]:
    """Starts the stack's servers and prepares tables and models.

    Args:
        stack: entered already, by the caller: it ends its block without an error when a signal comes.
        settings: as configured.
        folder: of the stack.
        tell: is given one line for each step.
        models: which are needed; none where no Triton is.
        clickhouse: whether the tables are.

    Raises:
        StackError: a server cannot start.
        PipelineError: topics, tables or models cannot be prepared.
    """
    tell("starting the servers that no setting gives an address for")
    full = _own_names(settings, await stack.start_servers())
    try:
        if clickhouse:
            await migrate(full.clickhouse)
        served = await _models(settings, full, folder, models) if models else {}
        yield Rig(full, folder, served, tell)
    finally:
        await _remove_names(settings, full)


def _tell_change(tell: Tell, state: PartState) -> None:
    if state.phase.value in {"exited", "failed"}:
        tell(f"{state.name} {state.phase.value}: {state.why}")


def _own_names(settings: Settings, endpoints: Endpoints) -> Settings:
    """The settings with local addresses filled in, and names that nobody else uses."""
    own = uuid4().hex[:8]
    kafka = {"topic_prefix": f"bench-{own}."}
    if endpoints.kafka is not None:
        kafka["bootstrap_servers"] = endpoints.kafka
    clickhouse = {"database": f"bench_{own}"}
    if endpoints.clickhouse is not None:
        clickhouse["url"] = endpoints.clickhouse
    triton = {"urls": tuple(one.grpc for one in endpoints.triton)} if endpoints.triton else {}
    return settings.model_copy(
        update={
            "kafka": settings.kafka.model_copy(update=kafka),
            "clickhouse": settings.clickhouse.model_copy(update=clickhouse),
            "triton": settings.triton.model_copy(update=triton),
        }
    )


async def _models(
    settings: Settings, full: Settings, folder: Path, names: Collection[str]
) -> dict[str, ModelRecord]:  # fmt: skip
    """These models as they are announced where the Tritons are somebody's own, else registered on ours.

    Raises:
        SettingsError: one is not there.
    """
    if settings.triton.urls is not None:
        options = client_options(full.kafka)
        announced = await read_models(options, settings.topic("models"))
        for name in names:
            if name not in announced:
                raise SettingsError(f"the benchmarks need the model {name}, which the configured Tritons do not serve")
        return {name: announced[name] for name in names}
    for name in names:
        await asyncio.to_thread(_write_model, settings, folder, name)
    await create_topics(full)
    report = await register_models(
        repository=folder / "models",
        serving_dir=folder / "serving",
        triton_urls=full.triton.urls or (),
        kafka_options=client_options(full.kafka),
        topic=full.topic("models"),
    )
    for name in names:
        if name not in report.records:
            reasons = "; ".join(version.reason for version in report.versions if version.reason)
            raise SettingsError(f"the model {name} cannot be served: {reasons or report.faults}")
    return {name: report.records[name] for name in names}


def _write_model(settings: Settings, folder: Path, name: str) -> None:
    """The benchmarks' own model, or one of the repository: the others only take memory and seconds."""
    target = folder / "models" / name
    if name == blobs.MODEL:
        blobs.write_model(target)
        return
    source = settings.model_repository / name
    if not source.is_dir():
        raise SettingsError(f"setting PIPELINE_MODEL_REPOSITORY: {source} is not there, the benchmarks need it")
    shutil.copytree(source, target)


async def _remove_names(settings: Settings, full: Settings) -> None:
    """Somebody's own servers are left as they were; ours end anyway, and their folder is removed."""
    if settings.kafka.bootstrap_servers is not None:
        admin = AIOKafkaAdminClient(**client_options(full.kafka))
        await admin.start()
        try:
            own = [name for name in await admin.list_topics() if name.startswith(full.kafka.topic_prefix)]
            await admin.delete_topics(own)
        finally:
            await admin.close()
    if settings.clickhouse.url is not None and full.clickhouse.url is not None:
        async with ClickHouseEventStore(full.clickhouse, database="") as store:
            await store.command(f"DROP DATABASE IF EXISTS `{full.clickhouse.database}`")


def _environment(settings: Settings, folder: Path) -> dict[str, str]:
    variables = {
        "PIPELINE_DATA_DIR": str(folder),
        "PIPELINE_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "PIPELINE_KAFKA__TOPIC_PREFIX": settings.kafka.topic_prefix,
        "PIPELINE_KAFKA__EVENT_PARTITIONS": str(settings.kafka.event_partitions),
        "PIPELINE_CLICKHOUSE__URL": settings.clickhouse.url,
        "PIPELINE_CLICKHOUSE__DATABASE": settings.clickhouse.database,
        "PIPELINE_TRITON__URLS": ",".join(settings.triton.urls or ()),
        "PIPELINE_WORKER__METRICS_PORT": "0",
    }
    return {name: text for name, text in variables.items() if text}


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its threads so far, in steps of `CPU_TICK_S`.

    Raises:
        OSError: there is no such process any more.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * CPU_TICK_S


class LogEnds:
    """How far the partitions of a topic have grown. Use as an async context manager."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self._topic = topic
        self._consumer = AIOKafkaConsumer(**client_options(settings.kafka), enable_auto_commit=False)
        self._partitions: list[TopicPartition] = []

    async def __aenter__(self) -> "LogEnds":
        await self._consumer.start()
        self._partitions = await all_partitions(self._consumer, self._topic)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()

    async def now(self) -> dict[int, int]:
        """The offset after the last record, by partition."""
        ends = await self._consumer.end_offsets(self._partitions)
        return {partition.partition: end for partition, end in ends.items()}
