"""`hit.latency_p50` and `hit.latency_p99`: a worker beside a bare echo, in turn, at the same open-loop rate."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from pipeline.bench.effort import Effort
from pipeline.bench.figure import Bar, Figure, paired
from pipeline.bench.kafka_load import OpenLoop, first_answer
from pipeline.bench.latency_phases import in_turn, skipped
from pipeline.bench.rig import Rig
from pipeline.bench.workload import RequestRecords
from pipeline.client.records import RequestRecord
from pipeline.config import Settings

_P50_BAR = Bar("ratio_at_most", 1.5)
_P99_BAR = Bar("ratio_at_most", 2.0)


async def measure(rig: Rig, effort: Effort) -> list[Figure]:
    """Both figures, from the same phases."""
    ours_settings, echo_settings = await rig.topics("latency"), await rig.topics("echo")
    source, target = echo_settings.topic("requests"), echo_settings.topic("results")
    async with AsyncExitStack() as closing:
        variables = {"PIPELINE_WORKER__GROUP": f"{ours_settings.kafka.topic_prefix}worker"}
        worker = rig.process(ours_settings, "latency-worker", "pipeline", "worker", variables=variables)
        await closing.enter_async_context(worker)
        echo = rig.process(echo_settings, "echo", "pipeline.bench.echo_loop", source, target)
        await closing.enter_async_context(echo)
        loops = {
            "worker": _open_loop(ours_settings, closing),
            "echo": _open_loop(echo_settings, closing),
        }
        return await _phases(rig, effort, loops)


def _open_loop(settings: Settings, closing: AsyncExitStack) -> OpenLoop:
    loop = OpenLoop(settings.kafka, settings.topic("requests"), settings.topic("results"))
    closing.callback(loop.close)
    return loop


async def _phases(rig: Rig, effort: Effort, loops: dict[str, OpenLoop]) -> list[Figure]:
    records = RequestRecords(effort.distinct)
    count = int(effort.latency_seconds * effort.latency_rate)
    skip = skipped(count, effort.latency_rate)
    for loop in loops.values():
        await _warm(loop, list(records.take(effort.distinct)))

    def phase(loop: OpenLoop) -> Callable[[], Awaitable[list[float]]]:
        return lambda: asyncio.to_thread(loop.run, list(records.take(count)), effort.latency_rate, skip)

    p50, p99 = await in_turn(
        {name: phase(loop) for name, loop in loops.items()},
        effort.latency_pairs,
        lambda line: rig.tell(f"hit.latency: {line}"),
    )
    what = f"of {effort.latency_rate}/s open loop, {effort.latency_seconds:g} s each phase, from due to answered"
    plain = "a bare aiokafka echo: getmany, send"
    return [
        paired("hit.latency_p50", "ms", p50["worker"], p50["echo"], _P50_BAR, how=f"p50 {what}", yardstick_how=plain),
        paired("hit.latency_p99", "ms", p99["worker"], p99["echo"], _P99_BAR, how=f"p99 {what}", yardstick_how=plain),
    ]


async def _warm(loop: OpenLoop, records: list[RequestRecord]) -> None:
    """Asks until the process answers, then once more: the second time there are only hits.

    Raises:
        TimeoutError: it never answered.
    """
    await first_answer(loop, records[0])
    await asyncio.to_thread(loop.run, records[1:], 1000.0, 0)
