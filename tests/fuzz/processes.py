"""One run over several processes: each takes the next cases; all their keys are compared at the end."""

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from tests.fuzz.kept_keys import KeptKeys, meetings_in
from tests.fuzz.pairs import FAILURES_MAX, PAIRS_PER_CASE, RECORDS_PER_CASE, Tally, case_of, repeat_command, run_cases

# Half a second of work, and 100 KB of keys to hand over.
_CHUNK_CASES = 2048
_PROGRESS_S = 5.0


class Plan(NamedTuple):
    """What is to be run.

    Attributes:
        seed: of all choices.
        cases: of all processes.
        processes: how many run at a time.
        keys_max: how many keys are kept in all, 16 bytes each; later ones are compared in their pairs alone.
    """

    seed: int
    cases: range
    processes: int
    keys_max: int


@dataclass
class Outcome:
    """What a run came to.

    Attributes:
        tally: the pairs of all processes.
        keys_kept: keys that were compared with all others.
        meetings: what was wrong among them, in words.
        seconds: how long it took.
        stopped: it was ended by hand.
    """

    tally: Tally = field(default_factory=Tally)
    keys_kept: int = 0
    meetings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    stopped: bool = False

    @property
    def holds(self) -> bool:
        """Whether every pair held, and the keys of the whole run."""
        return not self.tally.failures and not self.meetings


class _Chunk(NamedTuple):
    cases: range
    tally: Tally
    rows: np.ndarray[Any, Any]


def run(plan: Plan, tell: Callable[[str], None]) -> Outcome:
    """Runs the plan and tells of its progress. Ctrl-C ends it early: what was done until then is judged."""
    began = time.monotonic()
    outcome = Outcome()
    chunks: list[_Chunk] = []
    # Spawned, as forking a process with threads (blake3's, numpy's) is none of their promises.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(plan.processes, mp_context=context, initializer=_leave_interrupts_to_the_parent) as pool:
        waiting = {pool.submit(_run_chunk, plan.seed, cases) for cases in _cut(plan.cases)}
        try:
            for chunk in _arriving(waiting, plan, tell, began):
                chunks.append(chunk)
                outcome.tally.add(chunk.tally)
                if len(outcome.tally.failures) >= FAILURES_MAX:
                    break
        except KeyboardInterrupt:
            outcome.stopped = True
        pool.shutdown(wait=True, cancel_futures=True)
    outcome.keys_kept, outcome.meetings = _compare_kept(chunks, plan)
    outcome.seconds = time.monotonic() - began
    return outcome


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _cut(cases: range) -> list[range]:
    return [cases[start : start + _CHUNK_CASES] for start in range(0, len(cases), _CHUNK_CASES)]


def _run_chunk(seed: int, cases: range) -> _Chunk:
    kept = KeptKeys()
    tally = run_cases(seed, cases, kept=kept)
    return _Chunk(cases, tally, kept.rows())


def _arriving(waiting: set[Future[_Chunk]], plan: Plan, tell: Callable[[str], None], began: float) -> Iterable[_Chunk]:
    """Chunks as they are done, with a line about it every some seconds."""
    pairs, told_at = 0, began
    while waiting:
        done, waiting = wait(waiting, timeout=_PROGRESS_S, return_when="FIRST_COMPLETED")
        for one in done:
            chunk = one.result()
            pairs += chunk.tally.pairs
            yield chunk
        now = time.monotonic()
        if now - told_at >= _PROGRESS_S:
            told_at = now
            tell(f"{pairs:,} of {len(plan.cases) * PAIRS_PER_CASE:,} pairs, {pairs / (now - began):,.0f} a second")


def _compare_kept(chunks: list[_Chunk], plan: Plan) -> tuple[int, list[str]]:
    """How many keys were compared with all others, and what was wrong among them."""
    kept: list[_Chunk] = []
    count = 0
    for chunk in sorted(chunks, key=lambda one: one.cases.start):
        if count + len(chunk.rows) <= plan.keys_max:
            kept.append(chunk)
            count += len(chunk.rows)
    if not kept:
        return 0, []
    # Three rows for each case, in the order of the cases that are kept; a chunk with failures ends earlier.
    numbers = np.concatenate([np.asarray(one.cases)[: len(one.rows) // RECORDS_PER_CASE] for one in kept])
    found = []
    for meeting in islice(meetings_in([one.rows for one in kept]), FAILURES_MAX):
        lines = [meeting.what]
        for place in (meeting.first, meeting.second):
            number = int(numbers[place // RECORDS_PER_CASE])
            side = case_of(plan.seed, number).sides[place % RECORDS_PER_CASE]
            lines += [f"  case {number}", str(side), f"  repeat   {repeat_command(plan.seed, number)}"]
        found.append("\n".join(lines))
    return count, found
