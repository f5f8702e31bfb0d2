"""`triton.swap_failures` and `triton.swap_p99`: new versions one after the other while requests go on.

Versions are published as an owner would, found and announced by a watcher process, answered by a worker process. Every
answer is judged by what Kafka says: it succeeded, and its version is no earlier than the last default that counted when
its request was appended (guarantee G6).
"""

import asyncio
import shutil
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import quantiles
from typing import Any

import orjson

from pipeline.adapters.kafka import client_options
from pipeline.adapters.models_topic import read_models
from pipeline.bench.effort import Effort
from pipeline.bench.figure import Bar, Figure
from pipeline.bench.kafka_load import OpenLoop, first_answer, read_values
from pipeline.bench.rig import LogEnds, Rig
from pipeline.bench.workload import MODEL, RequestRecords
from pipeline.config import Settings
from schemas.registry import ModelRecord

_SLICE_S = 1.0
_LOOK_S = 0.1
_TIMEOUT_S = 60.0


async def measure(rig: Rig, effort: Effort) -> list[Figure]:
    """Both figures, from one run.

    Raises:
        TimeoutError: a version was not announced in time, or a request not answered.
    """
    settings = await rig.topics("swap")
    async with AsyncExitStack() as closing:
        own = {"PIPELINE_WORKER__GROUP": f"{settings.kafka.topic_prefix}worker"}
        await closing.enter_async_context(rig.process(settings, "swap-worker", "pipeline", "worker", variables=own))
        watched = {
            "PIPELINE_MODEL_REPOSITORY": str(rig.folder / "models"),
            "PIPELINE_WATCHER__QUIET_S": "0",
            "PIPELINE_WATCHER__DRAIN_S": "1",
        }
        await closing.enter_async_context(
            rig.process(settings, "swap-watcher", "pipeline", "watcher", variables=watched)
        )
        loop = OpenLoop(settings.kafka, settings.topic("requests"), settings.topic("results"))
        closing.callback(loop.close)
        await first_answer(loop, next(RequestRecords(1).take(1)))
        ends = await closing.enter_async_context(LogEnds(settings, settings.topic("results")))
        before = await ends.now()
        quiet = await _asked(loop, effort, asyncio.create_task(asyncio.sleep(effort.swap_quiet_s)))
        began = time.monotonic()
        swapping = asyncio.create_task(_swap(rig, settings, effort.swaps))
        disturbed = await _asked(loop, effort, swapping)
        promotions = await swapping
        rig.tell(f"triton.swap: {len(promotions)} versions in {time.monotonic() - began:.0f} s")
        results = await asyncio.to_thread(
            read_values, settings.kafka, settings.topic("results"), before, await ends.now()
        )
    return _figures(results, promotions, quiet, disturbed, effort)


async def _asked(loop: OpenLoop, effort: Effort, until: "asyncio.Task[Any]") -> list[float]:
    """Latencies of requests at an even rate until the task ends; half of them ask what nobody asked before."""
    millis: list[float] = []
    count = int(effort.swap_rate * _SLICE_S)
    while not until.done():
        records = list(RequestRecords(max(count // 2, 1)).take(count))
        millis += await asyncio.to_thread(loop.run, records, effort.swap_rate, 0)
    return millis


async def _swap(rig: Rig, settings: Settings, count: int) -> list[ModelRecord]:
    """Publishes so many versions; the record by which each became the default."""
    folder = rig.folder / "models" / MODEL
    contents = sorted((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    promotions = [await _announced(settings, contents[-1].name)]
    first = int(contents[-1].name) + 1
    for number in range(first, first + count):
        await asyncio.to_thread(_publish, contents[number % len(contents)], folder / str(number))
        promotions.append(await _announced(settings, str(number)))
        pause_s = promotions[-1].effective_at.timestamp() - time.time()
        await asyncio.sleep(max(pause_s, 0.0))
    return promotions


def _publish(source: Path, target: Path) -> None:
    aside = target.with_name(f".{target.name}")
    shutil.copytree(source, aside)
    aside.rename(target)


async def _announced(settings: Settings, version: str) -> ModelRecord:
    async with asyncio.timeout(_TIMEOUT_S):
        while True:
            record = (await read_models(client_options(settings.kafka), settings.topic("models"))).get(MODEL)
            if record is not None and record.default_version == version:
                return record
            await asyncio.sleep(_LOOK_S)


def _figures(
    results: Sequence[Any],
    promotions: Sequence[ModelRecord],
    quiet: Sequence[float],
    disturbed: Sequence[float],
    effort: Effort,
) -> list[Figure]:
    failed = stale = 0
    for message in results:
        result = orjson.loads(message.value())
        if result["status"] != "succeeded":
            failed += 1
            continue
        appended_s = int(dict(message.headers())["request-timestamp"]) / 1e3
        stale += int(result["model_version"]) < _default_at(promotions, appended_s)
    p99, quiet_p99 = (quantiles(millis, n=100)[98] for millis in (disturbed, quiet))
    what = f"{len(promotions) - 1} new versions of {MODEL} in turn, {effort.swap_rate}/s, half of them misses"
    counts = {"requests": float(len(results)), "failed": float(failed), "stale": float(stale)}
    return [
        Figure(
            "triton.swap_failures", float(failed + stale), "requests", None, None, Bar("value_below", 1.0),
            how=f"failed, or answered by a version before the default that counted: {what}",
            yardstick_how="none", rounds=1, notes=counts,
        ),
        Figure(
            "triton.swap_p99", p99, "ms", quiet_p99, p99 / quiet_p99, None,
            how=f"from due to answered, {what}", yardstick_how="the same requests before the first swap", rounds=1,
        ),
    ]  # fmt: skip


def _default_at(promotions: Sequence[ModelRecord], appended_s: float) -> int:
    """The highest default that counted for a request appended then."""
    counting = [record for record in promotions if record.effective_at.timestamp() <= appended_s]
    return max((int(record.default_version or 0) for record in counting), default=0)
