"""`hit.throughput`: one worker process on real Kafka, beside a bare aiokafka loop on the same topics."""

import asyncio
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

from pipeline.bench.effort import Effort
from pipeline.bench.figure import Bar, Figure, paired
from pipeline.bench.kafka_load import prefill, read_values
from pipeline.bench.rig import CPU_TICK_S, LogEnds, Rig, cpu_seconds
from pipeline.bench.workload import RequestRecords
from pipeline.config import Settings
from pipeline.stack.plan import PartFailedError
from pipeline.stack.process import Child

_BAR = 0.75
_LOOK_S = 0.02
# A cold start takes 5 s on a busy machine, the slowest run seen 10,000/s.
_TIMEOUT_S = 120.0
_WORKER = ("worker", ("pipeline", "worker"))
_BARE = ("bare loop", ("pipeline.bench.bare_loop",))


@dataclass(frozen=True, slots=True)
class _Run:
    """One run: requests per second and CPU per request after the start-up, and the share of hits."""

    rate: float
    cpu_us: float
    hits: float


async def measure(rig: Rig, effort: Effort) -> list[Figure]:
    """`hit.throughput` and `hit.cpu`, worker and bare loop in turn, each run in a group of its own."""
    settings = await rig.topics("hit")
    count = effort.hit_skipped + effort.hit_requests
    rig.tell(f"hit.throughput: {count:,} requests into Kafka")
    records = RequestRecords(effort.distinct).take(count)
    await asyncio.to_thread(prefill, settings.kafka, settings.topic("requests"), records)
    ours: list[_Run] = []
    plain: list[_Run] = []
    for number in range(effort.hit_pairs):
        for runs, (name, arguments) in ((ours, _WORKER), (plain, _BARE)):
            run = await _run(rig, settings, f"{name} {number}", arguments, count, effort.hit_skipped)
            rig.tell(f"hit.throughput: {name}: {run.rate:,.0f}/s, {run.cpu_us:.1f} us CPU, {run.hits:.1%} hits")
            runs.append(run)
    notes = {"hit_share": median([run.hits for run in ours]), "hit_share_yardstick": median([r.hits for r in plain])}
    what = "one request per record, results and events on, acks=all, from prefilled topics, cache warm"
    return [
        paired(
            "hit.throughput", "requests/s", [run.rate for run in ours], [run.rate for run in plain],
            Bar("ratio_at_least", _BAR),
            how=f"one worker process, {what}",
            yardstick_how="a bare aiokafka loop: getmany, the same engine code, send_batch, commit",
            notes=notes,
        ),
        paired(
            "hit.cpu", "us", [run.cpu_us for run in ours], [run.cpu_us for run in plain], None,
            how=f"CPU of the worker process per request, {what}",
            yardstick_how="the bare loop's",
        ),
    ]  # fmt: skip


async def _run(
    rig: Rig, settings: Settings, name: str, arguments: tuple[str, ...], count: int, skipped: int
) -> _Run:  # fmt: skip
    group = f"{settings.kafka.topic_prefix}{name.replace(' ', '-')}"
    topic = settings.topic("results")
    async with LogEnds(settings, topic) as ends:
        before = await ends.now()
        variables = {"PIPELINE_WORKER__GROUP": group}
        async with rig.process(settings, name.replace(" ", "-"), *arguments, variables=variables) as child:
            cpu_us = await _follow(child, ends, sum(before.values()), count, skipped)
        after = await ends.now()
    messages = await asyncio.to_thread(read_values, settings.kafka, topic, before, after)
    return _Run(_rate(messages, count, skipped), cpu_us, _hit_share(messages, skipped))


async def _follow(child: Child, ends: LogEnds, start: int, count: int, skipped: int) -> float:
    """Waits until everything is answered; CPU microseconds per request after the skipped ones.

    Raises:
        PartFailedError: the process ended, or did not get it done in time.
    """
    assert child.pid is not None, "started"
    first: tuple[int, float] | None = None
    limit = time.monotonic() + _TIMEOUT_S
    ended = asyncio.create_task(child.wait_exit())
    try:
        while True:
            done = sum((await ends.now()).values()) - start
            if ended.done() or time.monotonic() > limit:
                raise PartFailedError(child.spec.name, f"{done} of {count} answered: {child.find_cause()}")
            cpu = cpu_seconds(child.pid)
            if first is None and done >= skipped:
                first = (done, cpu)
            if done >= count and first is not None:
                return max(cpu - first[1], CPU_TICK_S) / max(done - first[0], 1) * 1e6
            await asyncio.sleep(_LOOK_S)
    finally:
        ended.cancel()


def _rate(messages: list[Any], count: int, skipped: int) -> float:
    """Results per second by their own timestamps, the first ones left out.

    Raises:
        RuntimeError: there are more or fewer results than requests.
    """
    if len(messages) != count:
        raise RuntimeError(f"{count} requests have {len(messages)} results")
    times = sorted(message.timestamp()[1] for message in messages)
    return float((count - skipped) / max((times[-1] - times[skipped]) / 1e3, 1e-3))


def _hit_share(messages: list[Any], skipped: int) -> float:
    """Hits among the results after the skipped ones."""
    later = sorted(messages, key=lambda message: int(message.timestamp()[1]))[skipped:]
    return sum(b'"cache_status":"hit"' in message.value() for message in later) / max(len(later), 1)
