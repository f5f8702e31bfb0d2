"""A worker's upkeep of its own cache: what nobody may ask for any more leaves, and operators see and clear the rest."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from heapq import nlargest

from pipeline.core.answer import StoredAnswer
from pipeline.core.cache_key import CacheScope, scopes_of
from pipeline.core.response_cache import Cleared, ResponseCache
from pipeline.metrics import EngineMetrics, SharedCacheMetrics
from pipeline.ports import Clock
from schemas.control import (
    USAGE_MAX,
    CacheClearReply,
    CacheCommand,
    CacheReply,
    CacheRequests,
    CacheStatsCommand,
    CacheStatsReply,
    CacheUsage,
    ControlCommand,
    ControlReply,
    ModelPromoteCommand,
    SharedCacheCounts,
)

logger = logging.getLogger(__name__)

Wanted = Callable[[CacheScope], bool]

# A slice is 0.05 ms, or 0.5-1 ms where all of it is dropped (measured): no request waits longer for it.
SLICE_ENTRIES = 500
# An entry that was kept just before its version retired is met again in the next round: 15 + 15 s, and the slices' own
# time, are within the minute, on a busy loop too. 200,000 entries: a slice every 37 ms, 0.1 % of a core.
ROUND_S = 15.0
# A small cache's only slice costs nothing: once a second is soon enough.
PAUSE_S_MAX = 1.0
# While there are cleared answers to free: 200,000 are gone after 1.5 s, for a third of the time.
FREEING_PAUSE_S = 0.002


class CacheUpkeep:
    """Sweeps one worker's cache for as long as it runs, and obeys the control topic's commands.

    Args:
        worker: this worker's name.
        cache: its own cache.
        metrics: what its engine counts.
        clock: time, monotonic as in the cache.
        serves: whether the content that answered is still served.
        clear: forgets the answers of these scopes in `cache`, and what is on its way is stored nowhere.
        partitions: those of requests that it has now.
        shared: what it counts of the shared cache, where there is one.
        on_bug: is told of a bug that ended the sweeping.
    """

    def __init__(
        self,
        worker: str,
        cache: ResponseCache[StoredAnswer],
        metrics: EngineMetrics,
        clock: Clock,
        *,
        serves: Wanted,
        clear: Callable[[Wanted], Cleared],
        partitions: Callable[[], Sequence[int]],
        shared: SharedCacheMetrics | None = None,
        on_bug: Callable[[BaseException], None],
    ) -> None:
        self._worker = worker
        self._cache = cache
        self._metrics = metrics
        self._clock = clock
        self._serves = serves
        self._clear = clear
        self._partitions = partitions
        self._shared = shared
        self._on_bug = on_bug
        self._sweeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts sweeping; returns at once."""
        if self._sweeping is None:
            self._sweeping = asyncio.create_task(self._sweep_forever(), name="sweep the cache")
            self._sweeping.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Stops sweeping; idempotent."""
        task, self._sweeping = self._sweeping, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def answer(self, command: ControlCommand) -> ControlReply | None:
        """A command of the control topic, obeyed where it is for caches; None where it is for somebody else."""
        return None if isinstance(command, ModelPromoteCommand) else self.obey(command)

    def obey(self, command: CacheCommand) -> CacheReply:
        """Does what an operator asks; clearing takes 1 us for each scope, and the memory is freed by the sweep."""
        partitions = tuple(self._partitions())
        if isinstance(command, CacheStatsCommand):
            return self._stats(command.id, partitions)
        cleared = self._clear(scopes_of(command.tenant, command.model_name, command.model_version))
        logger.info("command %s cleared %d answers, %d bytes", command.id, cleared.entries, cleared.bytes)
        return CacheClearReply(
            id=command.id, worker=self._worker, partitions=partitions, entries=cleared.entries, bytes=cleared.bytes
        )

    def clear_after_gap(self) -> None:
        """Clears all: commands may have been missed, and any of them may have been to clear."""
        cleared = self._clear(lambda _: True)
        if cleared.entries:
            logger.warning("cleared %d answers: commands to clear them may have been missed", cleared.entries)

    def _stats(self, command_id: str, partitions: tuple[int, ...]) -> CacheStatsReply:
        cache, counts = self._cache, self._cache.stats
        usage, usage_left_off = _usage(cache)
        requests, requests_left_off = _requests(self._metrics)
        return CacheStatsReply(
            id=command_id,
            worker=self._worker,
            partitions=partitions,
            entries=len(cache),
            bytes=cache.bytes_used,
            bytes_max=cache.bytes_max,
            evicted=counts.evicted,
            expired=counts.expired,
            refused=counts.refused,
            cleared=counts.cleared,
            retired=counts.retired,
            requests=requests,
            requests_left_off=requests_left_off,
            usage=usage,
            usage_left_off=usage_left_off,
            shared=None if self._shared is None else _shared_counts(self._shared),
        )

    async def _sweep_forever(self) -> None:
        while True:
            # By the entries there are at a round's start, for it takes no more steps than that.
            slices = max(-(-len(self._cache) // SLICE_ENTRIES), 1)
            pause_s = min(ROUND_S / slices, PAUSE_S_MAX)
            done = False
            while not done:
                await asyncio.sleep(FREEING_PAUSE_S if self._cache.holds_cleared else pause_s)
                done = self._cache.sweep(self._clock.monotonic(), self._serves, SLICE_ENTRIES)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (bug := task.exception()) is not None:
            self._on_bug(bug)


def _usage(cache: ResponseCache[StoredAnswer]) -> tuple[tuple[CacheUsage, ...], int]:
    """What most is held of, and how much there is besides; contents of one version, one after the other, are one.

    Only what is listed becomes a model: 20,000 scopes take 50 ms, with all of them as models 500.
    """
    held: dict[tuple[str, str, str], tuple[int, int]] = {}
    for scope, usage in cache.usage().items():
        names = (scope.tenant or "", scope.model_name, scope.model_version)
        entries, size = held.get(names, (0, 0))
        held[names] = (entries + usage.entries, size + usage.bytes)
    listed = nlargest(USAGE_MAX, held.items(), key=lambda item: item[1][1])
    found = tuple(
        CacheUsage(tenant=tenant, model_name=model, model_version=version, entries=entries, bytes=size)
        for (tenant, model, version), (entries, size) in listed
    )
    return found, len(held) - len(found)


# Cache statuses, and their members of `CacheRequests`.
_MEMBERS = {"hit": "hits", "miss": "misses", "coalesced": "coalesced", "refresh": "refreshes", "bypass": "bypassed"}


def _requests(metrics: EngineMetrics) -> tuple[tuple[CacheRequests, ...], int]:
    """The models with most requests, and how many there are besides."""
    counts: dict[str, dict[str, int]] = {}
    for (model_name, cache_status), count in metrics.requests.items():
        counts.setdefault(model_name, {})[_MEMBERS[cache_status]] = count
    listed = nlargest(USAGE_MAX, counts.items(), key=lambda item: sum(item[1].values()))
    found = tuple(CacheRequests(model_name=model_name, **of) for model_name, of in listed)
    return found, len(counts) - len(found)


def _shared_counts(metrics: SharedCacheMetrics) -> SharedCacheCounts:
    def by_word(counts: Mapping[tuple[str, ...], int]) -> dict[str, int]:
        return {words[0]: count for words, count in counts.items()}

    return SharedCacheCounts(
        look_ups=by_word(metrics.look_ups),
        writes=by_word(metrics.writes),
        errors=by_word(metrics.errors),
        refused_entries=by_word(metrics.refused_entries),
        bytes=by_word(metrics.bytes),
        saved_bytes=metrics.saved_bytes,
        queue_bytes=metrics.queue_bytes,
        usable=metrics.usable,
    )
