"""Everything of one machine: the servers nobody configured, topics, tables, models, then our own processes."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from pipeline.adapters.topics import create_topics
from pipeline.cli.context import child_environment, with_endpoints
from pipeline.config import Settings
from pipeline.errors import SettingsError
from pipeline.gateway.main import DEFAULT_PORT, url_of
from pipeline.sink.migrations.runner import migrate
from pipeline.stack import Stack, StackPlan
from pipeline.stack.ports import PortBook, is_port_free
from pipeline.stack.probes import answers_http_ok
from pipeline.watcher.main import register_once
from pipeline.watcher.report import RegistrationReport
from pipeline.watcher.repository.scan import scan

if TYPE_CHECKING:
    from pipeline.stack import PartState

Tell = Callable[[str], None]

# Where the metrics of local processes are looked for first; the next free ports otherwise.
_WORKER_PORT = 9101
_SINK_PORT = 9191
_WATCHER_PORT = 9291
_WEBHOOKS_PORT = 9391
# A worker joins its group, reads the models topic and takes its partitions: 3 s on a busy machine.
_READY_TIMEOUT_S = 60.0
# Its misses in flight get 5 s, then results and events are confirmed.
_STOP_TIMEOUT_S = 15.0
# One small question on this machine.
_PROBE_TIMEOUT = aiohttp.ClientTimeout(total=2.0)


def plan_stack(settings: Settings) -> StackPlan:
    """Which servers are local: those that no setting gives an address for."""
    backends = Path(__file__).resolve().parents[2] / "infra" / "triton" / "backends"
    return StackPlan(
        data_dir=settings.data_dir,
        kafka=settings.kafka.bootstrap_servers is None,
        valkey=settings.redis.url is None,
        clickhouse=settings.clickhouse.url is None,
        triton_count=settings.triton.local_instances if settings.triton.urls is None else 0,
        record_bytes_max=settings.limits.record_bytes,
        serving_dir=serving_dir(settings),
        backends_dir=backends if backends.is_dir() else None,
    )


def serving_dir(settings: Settings) -> Path:
    """The folder that local Tritons serve."""
    return settings.data_dir / "serving"


async def register(settings: Settings) -> RegistrationReport:
    """One registration pass with these settings; raises what `register_once` raises."""
    return await register_once(settings)


async def start_all(stack: Stack, settings: Settings, workers: int, tell: Tell, *, with_sink: bool = True) -> Settings:
    """Starts servers, prepares topics, tables and models, then starts the workers and the sink.

    Args:
        stack: entered already, with `plan_stack(settings)`.
        settings: as configured.
        workers: how many.
        tell: is given one line for each step that is done.
        with_sink: whether the sink is started, too.

    Returns:
        The settings with the addresses of the local servers.

    Raises:
        StackError: a server or a process cannot start.
        PipelineError: topics, tables or models cannot be prepared.
    """
    # A repository that is not there is told before the servers start, not after.
    await asyncio.to_thread(scan, settings.model_repository)
    serving_dir(settings).mkdir(parents=True, exist_ok=True)
    full = with_endpoints(settings, await stack.start_servers())
    await asyncio.gather(_prepare_kafka(full, tell), _prepare_clickhouse(full, tell))
    await _start_processes(stack, full, workers, with_sink=with_sink)
    tell(f"gateway: {stack.endpoints.other['gateway']}")
    stack.set_started()
    return full


async def _prepare_kafka(settings: Settings, tell: Tell) -> None:
    topics = await create_topics(settings)
    tell(f"topics: {len(topics.created)} made, {len(topics.existing)} there already")
    for difference in topics.differences:
        tell(f"topic {difference.topic}: {difference.setting} is {difference.found}, expected {difference.expected}")
    for line, _ in (await register(settings)).lines():
        tell(f"models: {line}")


async def _prepare_clickhouse(settings: Settings, tell: Tell) -> None:
    applied = await migrate(settings.clickhouse)
    tell(f"tables: {len(applied)} migrations applied" if applied else "tables: up to date")


async def _start_processes(stack: Stack, settings: Settings, workers: int, *, with_sink: bool) -> None:
    ports = PortBook(stack.plan.data_dir / "ports.json")
    parts = [(f"worker-{index}", "worker", _WORKER_PORT + index) for index in range(workers)]
    if with_sink:
        parts.append(("sink", "sink", _SINK_PORT))
    parts += [("watcher", "watcher", _WATCHER_PORT), ("webhooks", "webhooks", _WEBHOOKS_PORT)]
    given = [(name, command, ports.take(f"{name}-metrics", preferred)) for name, command, preferred in parts]
    gateway_port = _gateway_port(settings, ports)
    ports.save()
    await asyncio.gather(
        _start_gateway(stack, settings, gateway_port), *(_start_process(stack, settings, *part) for part in given)
    )


async def _start_process(stack: Stack, settings: Settings, name: str, command: str, port: int) -> None:
    async def is_ready() -> bool:
        return await answers_http_ok(port, "/health/ready")

    variables = {f"PIPELINE_{command.upper()}__METRICS_PORT": str(port)}
    if command == "worker" and stack.plan.kafka:
        # On a Kafka of our own nobody else has this name: a worker that is started again goes on without a rebalance.
        variables["PIPELINE_WORKER__INSTANCE_ID"] = name
    stack.set_endpoint(name, f"http://127.0.0.1:{port}")
    await stack.add_process(
        name,
        (sys.executable, "-m", "pipeline", command),
        child_environment(settings) | variables,
        is_ready,
        ready_timeout_s=_READY_TIMEOUT_S,
        stop_timeout_s=_STOP_TIMEOUT_S,
    )


def _gateway_port(settings: Settings, ports: PortBook) -> int:
    """The port asked for, else the one of last time, 8080, or the next free one.

    Raises:
        SettingsError: the port asked for is taken.
    """
    port = settings.gateway.port
    if not port:
        return ports.take("gateway", DEFAULT_PORT)
    if not is_port_free(port):
        raise SettingsError(f"setting PIPELINE_GATEWAY__PORT is {port}: another process listens there")
    return port


async def _start_gateway(stack: Stack, settings: Settings, port: int) -> None:
    url = url_of(settings.gateway.host, port)

    async def is_ready() -> bool:
        try:
            async with (
                aiohttp.ClientSession(timeout=_PROBE_TIMEOUT) as session,
                session.get(f"{url}/health/ready") as response,
            ):
                return response.status == 200
        except aiohttp.ClientError:
            return False

    stack.set_endpoint("gateway", url)
    await stack.add_process(
        "gateway",
        (sys.executable, "-m", "pipeline", "gateway"),
        child_environment(settings) | {"PIPELINE_GATEWAY__PORT": str(port)},
        is_ready,
        ready_timeout_s=_READY_TIMEOUT_S,
        stop_timeout_s=settings.gateway.drain_s + _STOP_TIMEOUT_S,
    )


def describe(state: "PartState") -> str:
    """One change of state in words."""
    words = f"{state.name} {state.phase.value}"
    if state.elapsed_s:
        words += f" after {state.elapsed_s:.1f} s"
    if state.pause_s:
        words += f" in {state.pause_s:.1f} s"
    if state.pid is not None and state.phase.value == "ready":
        words += f" (pid {state.pid})"
    return f"{words}: {state.why}" if state.why else words
