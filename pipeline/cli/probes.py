"""Whether each configured part answers now. Every probe has a limit and says why not."""

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from pipeline.config import Settings
from pipeline.errors import PipelineError
from pipeline.stack import StackState

# A server that needs longer for one small question is of no use to a request either.
_PROBE_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Probed:
    """One part: what `status` says of it, or why it is not ready.

    Attributes:
        kind: the member of `status --json` it belongs to.
        name: for people.
        address: where it is.
        facts: what the JSON says of it.
        problem: empty when it is ready.
    """

    kind: str
    name: str
    address: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


async def probe_all(settings: Settings, running: StackState | None) -> list[Probed]:
    """Probes everything that is configured or runs, all at once.

    Args:
        settings: with the addresses of the running stack.
        running: that stack.
    """
    probes: list[Awaitable[Probed]] = []
    if settings.kafka.bootstrap_servers:
        probes.append(_kafka(settings))
    if settings.clickhouse.url:
        probes.append(_clickhouse(settings))
    if settings.redis.url:
        probes.append(_redis(settings))
    probes += _tritons(settings, running)
    other = running.endpoints.other if running is not None else {}
    for name, address in sorted(other.items()):
        probes.append(_process(name, address))
    probed = list(await asyncio.gather(*probes))
    if running is not None and not running.started:
        # Between two parts everything that is listed may be ready, and the next part is not listed yet.
        probed.append(Probed("stack", "stack", str(settings.data_dir), problem="not everything has been started yet"))
    return probed


async def _answered(kind: str, name: str, address: str, facts: Mapping[str, Any], question: Awaitable[Any]) -> Probed:
    """Asks one question; a dictionary for an answer adds to the facts."""
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT_S):
            answer = await question
    except TimeoutError:
        return Probed(kind, name, address, facts, f"no answer within {_PROBE_TIMEOUT_S:g} s")
    except Exception as error:  # noqa: BLE001 - any library's error means the same here, and is shown
        return Probed(kind, name, address, facts, str(error).strip() or type(error).__name__)
    return Probed(kind, name, address, {**facts, **answer} if isinstance(answer, dict) else facts)


def _kafka(settings: Settings) -> Awaitable[Probed]:
    from aiokafka.admin import AIOKafkaAdminClient

    from pipeline.adapters.kafka import client_options

    async def ask() -> None:
        admin = AIOKafkaAdminClient(**client_options(settings.kafka))
        try:
            await admin.start()
            await admin.describe_cluster()
        finally:
            await admin.close()

    servers = settings.kafka.bootstrap_servers or ""
    return _answered("kafka", "Kafka", servers, {"bootstrap_servers": servers}, ask())


def _clickhouse(settings: Settings) -> Awaitable[Probed]:
    from pipeline.adapters.clickhouse import ClickHouseEventStore

    async def ask() -> None:
        async with ClickHouseEventStore(settings.clickhouse, database="") as store:
            await store.query("SELECT 1")

    url = settings.clickhouse.url or ""
    return _answered("clickhouse", "ClickHouse", url, {"url": url}, ask())


def _redis(settings: Settings) -> Awaitable[Probed]:
    from pipeline.adapters.redis_connection import client_of

    url = settings.redis.url or ""

    async def ask() -> None:
        client = client_of(settings.redis)
        try:
            await client.ping()
        finally:
            await client.aclose()

    return _answered("redis", "Valkey", url, {"url": url}, ask())


def _tritons(settings: Settings, running: StackState | None) -> list[Awaitable[Probed]]:
    from pipeline.adapters.triton import instance_names

    urls = settings.triton.urls or ()
    local = {one.grpc: one for one in running.endpoints.triton} if running is not None else {}
    processes = running.processes if running is not None else {}
    probes: list[Awaitable[Probed]] = []
    for place, grpc in zip(instance_names(urls), urls, strict=True):
        one = local.get(grpc)
        process = processes.get(one.name) if one is not None else None
        name = one.name if one is not None else place
        facts = {
            "name": name,
            "grpc": grpc,
            "http": one.http if one is not None else None,
            "pid": process.pid if process is not None else None,
        }
        probes.append(_answered("triton", name, grpc, facts, _triton_is_ready(grpc, settings)))
    return probes


async def _triton_is_ready(address: str, settings: Settings) -> None:
    from pipeline.adapters.triton_channel import channel_credentials
    from pipeline.watcher.fleet.triton_control import TritonControl

    async with TritonControl(address, channel_credentials(settings.triton.tls)) as server:
        if not await server.is_live(_PROBE_TIMEOUT_S):
            raise PipelineError("it does not answer over gRPC")


async def _process(name: str, address: str) -> Probed:
    """A process of ours, by its own `/status`; `worker-0` is of the kind `workers`."""
    kind = "workers" if name.startswith("worker-") else name
    if kind == "gateway":
        return await _answered(kind, name, address, {"url": address}, _get(f"{address}/v2/health/ready"))
    found = await _answered(kind, name, address, {}, _get(f"{address}/status"))
    wanted = ("pid", "partitions", "fleet") if kind == "workers" else ("pid",)
    facts = {member: found.facts[member] for member in wanted if member in found.facts}
    problem = found.problem or ("" if found.facts.get("ready", True) else "not ready yet")
    return Probed(kind, name, address, facts, problem)


async def _get(url: str) -> Any:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        if response.status != 200:
            raise PipelineError(f"{url} answered {response.status}")
        return await response.json(content_type=None)
