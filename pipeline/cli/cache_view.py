"""What `cache stats` and `cache clear` print, for people and for programs."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.adapters.control_topic import Asked, GroupMember
from pipeline.cli.console import plain_table, show
from schemas.control import CacheClearReply, CacheStatsReply

_USAGE = ("model_name", "model_version", "tenant", "entries", "bytes")
_MET = ("hits", "misses", "coalesced", "refreshes", "bypassed")
_REQUESTS = ("model_name", *_MET, "hit_rate")
_COUNTS = ("entries", "bytes", "bytes_max", "evicted", "expired", "refused", "cleared", "retired")


@dataclass
class ClearOutcome:
    """What was dropped, round by round.

    Attributes:
        workers: entries and bytes by worker, of all rounds.
        shared_entries: of the shared cache; None where there is none, or it was not cleared.
        shared_problem: why it was not; empty where it was, or there is none.
        missing: who did not answer, of the round with most of them.
    """

    workers: dict[str, tuple[int, int]] = field(default_factory=dict)
    shared_entries: int | None = None
    shared_problem: str = ""
    missing: Sequence[GroupMember] = ()

    def add(self, asked: Asked) -> None:
        """Takes in one round."""
        for reply in asked.replies:
            if isinstance(reply, CacheClearReply):
                entries, size = self.workers.get(reply.worker, (0, 0))
                self.workers[reply.worker] = (entries + reply.entries, size + reply.bytes)
        # Whoever answers only the second time gave old answers to the shared cache meanwhile.
        self.missing = max(self.missing, asked.missing, key=len)

    @property
    def problems(self) -> list[str]:
        """What was not cleared, and why; a line for each."""
        return [*(f"no answer: {member}" for member in self.missing), *filter(None, [self.shared_problem])]


def usage_rows(replies: Iterable[CacheStatsReply]) -> list[tuple[str, str, str, int, int]]:
    """Model, version, tenant, entries, bytes: over all workers, the largest first."""
    entries: Counter[tuple[str, str, str]] = Counter()
    size: Counter[tuple[str, str, str]] = Counter()
    for held in (held for reply in replies for held in reply.usage):
        names = (held.model_name, held.model_version, held.tenant)
        entries[names] += held.entries
        size[names] += held.bytes
    return [(*names, entries[names], held_bytes) for names, held_bytes in size.most_common()]


def request_rows(replies: Iterable[CacheStatsReply]) -> list[tuple[Any, ...]]:
    """Model, counts by cache status, hit rate: over all workers, the most asked first.

    The hit rate is None where no request asked the cache for an answer.
    """
    counts: dict[str, Counter[str]] = {}
    for met in (met for reply in replies for met in reply.requests):
        counts.setdefault(met.model_name, Counter()).update({name: getattr(met, name) for name in _MET})
    ordered = sorted(counts.items(), key=lambda item: -item[1].total())
    return [(model_name, *(of[name] for name in _MET), _hit_rate(of)) for model_name, of in ordered]


def _hit_rate(counts: Counter[str]) -> float | None:
    asked = counts.total() - counts["bypassed"]
    return round(counts["hits"] / asked, 4) if asked else None


def stats_document(asked: Asked) -> dict[str, Any]:
    """What `cache stats --json` prints: sums over all workers, each worker's reply, and who gave none."""
    replies = _stats(asked)
    return {
        "usage": [dict(zip(_USAGE, row, strict=True)) for row in usage_rows(replies)],
        "requests": [dict(zip(_REQUESTS, row, strict=True)) for row in request_rows(replies)],
        "workers": [reply.model_dump(mode="json", exclude={"command", "id"}) for reply in replies],
        "missing": _missing(asked.missing),
    }


def clear_document(outcome: ClearOutcome) -> dict[str, Any]:
    """What `cache clear --json` prints; `shared` is null where there is none, or it was not cleared."""
    return {
        "workers": [
            {"worker": worker, "entries": entries, "bytes": size}
            for worker, (entries, size) in sorted(outcome.workers.items())
        ],
        "shared": None if outcome.shared_entries is None else {"entries": outcome.shared_entries},
        "missing": _missing(outcome.missing),
    }


def show_stats(asked: Asked) -> None:
    """The same as tables."""
    replies = _stats(asked)
    if not replies:
        show("no worker answered" if asked.missing else "no worker runs")
        return
    show(plain_table(("model", "version", "tenant", "entries", "bytes"), usage_rows(replies)))
    if left_off := sum(reply.usage_left_off for reply in replies):
        show(f"and {left_off} smaller ones of single workers", style="dim")
    show()
    show(plain_table(("model", *_MET, "hit rate"), request_rows(replies)))
    show()
    rows = [
        (reply.worker, " ".join(map(str, reply.partitions)), *(getattr(reply, name) for name in _COUNTS))
        for reply in replies
    ]
    total = ("all", "", *(sum(counts) for counts in zip(*(row[2:] for row in rows), strict=True)))
    show(plain_table(("worker", "partitions", *(name.replace("_", " ") for name in _COUNTS)), [*rows, total]))
    _show_shared(replies)


def _show_shared(replies: Sequence[CacheStatsReply]) -> None:
    found = [(reply.worker, reply.shared) for reply in replies if reply.shared is not None]
    if not found:
        return
    rows = [
        (worker, "yes" if of.usable else "no", _words(of.look_ups), _words(of.writes), _words(of.errors))
        for worker, of in found
    ]
    show()
    show(plain_table(("shared cache, seen by", "usable", "look-ups", "writes", "errors"), rows))


def show_cleared(outcome: ClearOutcome) -> None:
    """What was dropped, a line for each worker and one for the shared cache."""
    rows: list[tuple[str, int, int | None]] = [
        (worker, entries, size) for worker, (entries, size) in sorted(outcome.workers.items())
    ]
    if outcome.shared_entries is not None:
        rows.append(("shared cache", outcome.shared_entries, None))
    if rows:
        show(plain_table(("cleared", "entries", "bytes"), rows))
    if not outcome.workers:
        show("no worker answered" if outcome.missing else "no worker runs")


def _words(counts: dict[str, int]) -> str:
    return " ".join(f"{word} {count}" for word, count in sorted(counts.items()))


def _stats(asked: Asked) -> list[CacheStatsReply]:
    return [reply for reply in asked.replies if isinstance(reply, CacheStatsReply)]


def _missing(members: Iterable[GroupMember]) -> list[dict[str, Any]]:
    return [{"host": member.host, "partitions": sorted(member.partitions)} for member in members]
