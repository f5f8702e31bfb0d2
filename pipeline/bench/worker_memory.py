"""`worker.backlog_memory`: what a worker holds while it works off large requests, beside what its settings promise."""

import asyncio
import time
from dataclasses import dataclass

from pipeline.adapters.topics import RECORD_OVERHEAD_BYTES
from pipeline.bench.blobs import blob_records
from pipeline.bench.effort import Effort
from pipeline.bench.figure import Bar, Figure
from pipeline.bench.kafka_load import compress_topics, prefill
from pipeline.bench.process_memory import MIB, peak_resident_bytes
from pipeline.bench.rig import LogEnds, Rig
from pipeline.config import Settings
from pipeline.core.duplicates import ID_BYTES, WINDOW_RECORDS
from pipeline.stack.plan import PartFailedError
from pipeline.stack.process import Child
from pipeline.worker.publisher import UNCONFIRMED_BYTES_MAX
from pipeline.worker.transport import CHUNK_BYTES_MAX

_BAR = Bar("ratio_at_most", 1.0)
# Small beside the backlog: a bound that is never reached is not measured.
_IN_FLIGHT_BYTES = 64 * MIB
_CACHE_BYTES = 64 * MIB
# aiokafka asks for no more than this at once (its default of `fetch_max_bytes`).
_FETCH_BYTES_MAX = 50 * MIB
# As `pipeline/worker/app.py` sets it.
_QUEUED_CHUNKS = 16
_LOOK_S = 0.05
# A start of 10 s, then the slowest machine seen: 50 requests of 600 kB a second.
_START_S, _RATE_MIN = 30.0, 20.0


@dataclass(frozen=True, slots=True)
class Case:
    """One backlog.

    Attributes:
        cache_bytes: 0 for no cache.
        repeats: about how much smaller the tensors become when compressed.
        codec: of the backlog's records.
    """

    name: str
    what: str
    cache_bytes: int
    repeats: int = 1
    codec: str = "none"


CASES = (
    Case("worker.backlog_memory", "", _CACHE_BYTES),
    Case("worker.backlog_memory_uncached", ", no cache", 0),
    # What a broker sends is limited as it is stored: inflated, a fetch is twenty times as large.
    Case("worker.backlog_memory_inflated", ", no cache, a twentieth of their size in Kafka (zstd)", 0, 20, "zstd"),
)


async def measure(rig: Rig, effort: Effort, case: Case) -> list[Figure]:
    """The case's figure: its backlog waits before the worker starts, and no two requests are alike."""
    idle, _ = await _worked_off(rig, effort, case, 1)
    peak, seconds = await _worked_off(rig, effort, case, effort.backlog_records)
    parts = promised_bytes(rig.settings, case, effort.backlog_records)
    bound, growth = sum(parts.values()), peak - idle
    rig.tell(f"{case.name}: {idle / MIB:.0f} MiB idle, {growth / MIB:+.0f} MiB, {bound / MIB:.0f} MiB promised")
    return [
        Figure(
            case.name, growth / MIB, "MiB", bound / MIB, growth / bound, _BAR,
            how=f"peak resident memory of a worker over {effort.backlog_records:,} waiting requests of "
            f"{effort.backlog_bytes:,} bytes{case.what}, less that of one that answered a single request",
            yardstick_how="the sum of its bounds: cache, in flight, unconfirmed, queued, fetched twice, ids",
            rounds=1,
            steps={f"promised: {name}": part / MIB for name, part in parts.items()},
            notes={"idle_mib": idle / MIB, "peak_mib": peak / MIB, "seconds": seconds},
        )
    ]  # fmt: skip


def promised_bytes(settings: Settings, case: Case, records: int) -> dict[str, int]:
    """What a worker promises to hold at most over so many records, in bytes, by what holds it."""
    record = settings.limits.record_bytes + RECORD_OVERHEAD_BYTES
    return {
        "cache": case.cache_bytes,
        "in flight": _IN_FLIGHT_BYTES,
        "unconfirmed": UNCONFIRMED_BYTES_MAX,
        "queued chunks": _QUEUED_CHUNKS * CHUNK_BYTES_MAX,
        # One fetch is being delivered, the next one is there.
        "fetched": 2 * min(settings.kafka.partitions * record, _FETCH_BYTES_MAX),
        "ids": min(records, settings.kafka.partitions * WINDOW_RECORDS) * ID_BYTES,
    }


async def _worked_off(rig: Rig, effort: Effort, case: Case, count: int) -> tuple[int, float]:
    """A worker on a backlog of its own: its peak of resident bytes, and the seconds from its start."""
    name = f"{case.name.rpartition('.')[2]}-{count}"
    settings = await rig.topics(name)
    outputs = [settings.topic("results"), settings.topic("events")]
    # Not lz4: its blocks of 64 KiB hardly find what repeats every 30.
    await asyncio.to_thread(compress_topics, settings.kafka, outputs, "zstd")
    rig.tell(f"{case.name}: {count:,} requests of {effort.backlog_bytes:,} bytes into Kafka")
    records = blob_records(count, effort.backlog_bytes, case.repeats)
    await asyncio.to_thread(prefill, settings.kafka, settings.topic("requests"), records, case.codec)
    variables = {
        "PIPELINE_WORKER__GROUP": f"{settings.kafka.topic_prefix}worker",
        "PIPELINE_WORKER__MAX_IN_FLIGHT_BYTES": str(_IN_FLIGHT_BYTES),
        "PIPELINE_CACHE__MAX_BYTES": str(case.cache_bytes),
    }
    async with (
        LogEnds(settings, settings.topic("results")) as ends,
        rig.process(settings, name, "pipeline", "worker", variables=variables) as child,
    ):
        began = time.monotonic()
        await answered(child, ends, count, began + _START_S + count / _RATE_MIN)
        assert child.pid is not None, "started"
        return peak_resident_bytes(child.pid), time.monotonic() - began


async def answered(child: Child, ends: LogEnds, count: int, limit: float) -> None:
    """Waits until a topic of results, empty at first, has so many.

    Raises:
        PartFailedError: the process ended, or did not get it done until `limit`, monotonic seconds.
    """
    ended = asyncio.create_task(child.wait_exit())
    try:
        while (done := sum((await ends.now()).values())) < count:
            if ended.done() or time.monotonic() > limit:
                raise PartFailedError(child.spec.name, f"{done} of {count} answered: {child.find_cause()}")
            await asyncio.sleep(_LOOK_S)
    finally:
        ended.cancel()
