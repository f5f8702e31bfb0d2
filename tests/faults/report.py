"""A run's figures, and docs/faults.md written from them: the same figures give the same text."""

import os
import platform
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.faults.account import Answer, Asked, Window
from tests.faults.campaign import Outcome
from tests.faults.verdict import Finding

# Steady load leaves pauses of milliseconds: what is longer is a silence.
_SILENCE_S = 0.5


def quantile(values: Iterable[float], share: float) -> float:
    """The value below which this share of them lies; 0 for none."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


def figures_of(outcome: Outcome, command: str) -> dict[str, Any]:
    """Everything that is reported, as JSON."""
    asked, answers = outcome.account.asked, list(outcome.account.first_answers())
    quiet = [
        answer.read_at - asked[answer.place].acked_at
        for answer in answers
        if answer.place in asked and not _is_disturbed(asked[answer.place], answer, outcome.windows)
    ]
    return {
        "command": command,
        "seed": outcome.plan.seed,
        "began_at": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(outcome.began_at)),
        "machine": machine(),
        "workers": {"static": outcome.plan.static_workers, "dynamic": outcome.plan.dynamic_workers},
        "rate": outcome.plan.rate,
        "load_s": round(outcome.load_s, 1),
        "drain_s": round(outcome.drain_s, 1),
        "faults": len(outcome.windows),
        "kinds": _kinds(outcome.windows, gaps_of(answers, _SILENCE_S)),
        "skipped_kinds": outcome.skipped_kinds,
        "latency_ms": {
            "requests": len(quiet),
            "p50": round(quantile(quiet, 0.5) * 1e3, 1),
            "p99": round(quantile(quiet, 0.99) * 1e3, 1),
        },
        "counts": outcome.verdict.counts,
        "exits": {command: {str(code): n for code, n in codes.items()} for command, codes in outcome.exits.items()},
        "memory_mib": {name: list(pair) for name, pair in outcome.memory_mib.items()},
        "broken": dict(outcome.verdict.broken),
        "examples": [
            f"{one.rule}: {one.what}{nearest_fault(one, outcome.windows)}" for one in outcome.verdict.examples
        ],
        "holds": outcome.verdict.holds,
    }


def nearest_fault(finding: Finding, windows: Sequence[Window]) -> str:
    """The fault before or around a finding, in words; empty where its time is unknown."""
    if not finding.at or not windows:
        return ""
    nearest = min(windows, key=lambda one: max(one.began_at - finding.at, finding.at - one.over_at, 0.0))
    return f" ({finding.at - nearest.began_at:+.1f} s from the begin of: {nearest.kind} of {nearest.target})"


def gaps_of(answers: Sequence[Answer], longer_than_s: float) -> list[tuple[float, float]]:
    """Begin and end of every longer time without an answer."""
    times = sorted(answer.read_at for answer in answers)
    return [(before, after) for before, after in pairwise(times) if after - before > longer_than_s]


def _is_disturbed(asked: Asked, answer: Answer, windows: Sequence[Window]) -> bool:
    return any(one.began_at <= answer.read_at and asked.acked_at <= one.over_at for one in windows)


def _kinds(windows: Sequence[Window], gaps: Sequence[tuple[float, float]]) -> list[dict[str, Any]]:
    """One entry for each kind: how often, how long until answers and rows, the longest time without any answer."""
    rows = []
    for kind, count in sorted(Counter(one.kind for one in windows).items()):
        own = [one for one in windows if one.kind == kind]
        answers = [one.answers_s for one in own if one.answers_s is not None]
        logged = [one.rows_s for one in own if one.rows_s is not None]
        silences = [
            after - before
            for before, after in gaps
            if any(one.began_at <= after and before <= one.over_at for one in own)
        ]
        rows.append({
            "kind": kind,
            "count": count,
            "answers_p50_s": round(quantile(answers, 0.5), 1),
            "answers_max_s": round(max(answers, default=0.0), 1),
            "rows_p50_s": round(quantile(logged, 0.5), 1),
            "rows_max_s": round(max(logged, default=0.0), 1),
            "longest_silence_s": round(max(silences, default=0.0), 1),
        })  # fmt: skip
    return rows


def machine() -> str:
    """The machine, in a line."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} x {model}, {memory_gib:.0f} GiB, Python {platform.python_version()}"


_HEAD = """\
# Faults

Written by `make faults`; not by hand. Requests of every kind run through the real local stack while a schedule from a
seed kills, pauses and restarts its parts. An oracle that shares no code with the product (`tests/faults/`) keeps what
Kafka acknowledged and compares it, at the end, with the results topic, the dead letters and ClickHouse.

| | |
|---|---|
"""

_KINDS_HEAD = """
## Faults by kind

Recovery is counted from the end of a fault (of a kill: the kill) until every partition has answered a request that was
acknowledged after it, and until such requests have their rows in ClickHouse; a restart of the stack, or of a worker,
ends when it is up again, and a refill when its burst is in Kafka. Silence is the longest time without an answer on any
partition, from the begin of a fault. Some faults come two at a time, and count for both.

| kind | count | answers, p50 s | max s | rows, p50 s | max s | silence, max s |
|---|---:|---:|---:|---:|---:|---:|
"""


def render(figures: dict[str, Any]) -> str:
    """The report's text, Markdown."""
    latency = figures["latency_ms"]
    facts = {
        "machine": figures["machine"],
        "command": f"`{figures['command']}`",
        "seed": figures["seed"],
        "began": figures["began_at"],
        "workers": f"{figures['workers']['static']} static, {figures['workers']['dynamic']} dynamic",
        "load": (
            f"{figures['rate']:g}/s and bursts, for {figures['load_s']:g} s; drained {figures['drain_s']:g} s later"
        ),
        "faults": f"{figures['faults']} of {len(figures['kinds'])} kinds",
        "latency outside faults": (
            f"p50 {latency['p50']:g} ms, p99 {latency['p99']:g} ms ({latency['requests']:,} requests, from Kafka's "
            "acknowledgement to the oracle's reading)"
        ),
        "verdict": "**everything held**" if figures["holds"] else f"**broken**: {figures['broken']}",
    }
    text = _HEAD + "".join(f"| {name} | {fact} |\n" for name, fact in facts.items())
    text += _KINDS_HEAD + "".join(
        f"| {one['kind']} | {one['count']} | {one['answers_p50_s']:.1f} | {one['answers_max_s']:.1f} "
        f"| {one['rows_p50_s']:.1f} | {one['rows_max_s']:.1f} | {one['longest_silence_s']:.1f} |\n"
        for one in figures["kinds"]
    )
    if figures["skipped_kinds"]:
        text += f"\nNot possible for this user here: {', '.join(figures['skipped_kinds'])}.\n"
    text += "\n## Counts\n\n| what | count |\n|---|---:|\n"
    text += "".join(f"| {name} | {count:,} |\n" for name, count in figures["counts"].items())
    text += "\n## Processes\n\n| process | MiB at the begin | at the end |\n|---|---:|---:|\n"
    text += "".join(f"| {name} | {begin} | {end} |\n" for name, (begin, end) in figures["memory_mib"].items())
    for command, codes in sorted(figures["exits"].items()):
        ends = ", ".join(f"{code}: {count}" for code, count in sorted(codes.items()))
        text += f"\n{command} exits by code (-9: killed by the schedule): {ends}\n"
    if figures["examples"]:
        text += "\n## What did not hold\n\n" + "".join(f"- {example}\n" for example in figures["examples"])
    return text
