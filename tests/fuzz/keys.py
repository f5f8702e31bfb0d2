"""`python -m tests.fuzz.keys`: the cache key, fuzzed; exit code 0 only if every pair held.

python -m tests.fuzz.keys --pairs 10000000 --seed 1 --processes 2 --report docs/cache-key-fuzz.md
"""

import argparse
import sys
import time
from pathlib import Path

from pipeline.bench.machine import describe_machine
from tests.fuzz.pairs import PAIRS_PER_CASE
from tests.fuzz.processes import Plan, run
from tests.fuzz.report import render

_INTERRUPTED = 130


def main(arguments: list[str]) -> int:
    """Runs the pairs, prints what failed in full, writes the report."""
    options = _parser().parse_args(arguments)
    first = options.first // PAIRS_PER_CASE
    cases = range(first, first + -(-options.pairs // PAIRS_PER_CASE))
    plan = Plan(options.seed, cases, options.processes, options.keys_max)
    machine, date = describe_machine(), time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    outcome = run(plan, _tell)
    for one in (*outcome.tally.failures, *outcome.meetings):
        _tell(str(one))
    _tell(
        f"{outcome.tally.pairs:,} pairs, {outcome.keys_kept:,} keys compared with each other, {outcome.seconds:,.1f} s"
    )
    if options.report is not None:
        command = f"python -m tests.fuzz.keys {' '.join(arguments)}"
        options.report.write_text(render(plan, outcome, machine=machine, command=command, date=date), encoding="utf-8")
    if not outcome.holds:
        _tell("BROKEN")
        return 1
    _tell("stopped; everything held until then" if outcome.stopped else "everything held")
    return _INTERRUPTED if outcome.stopped else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.fuzz.keys", description=__doc__)
    parser.add_argument("--pairs", type=int, default=200_000, help="how many, of one meaning and of two")
    parser.add_argument("--seed", type=int, default=1, help="of all choices")
    parser.add_argument("--first", type=int, default=0, help="the first pair: a failure names its own")
    parser.add_argument("--processes", type=int, default=1, help="at a time")
    parser.add_argument("--keys-max", type=int, default=24_000_000, help="compared with each other, 16 bytes each")
    parser.add_argument("--report", type=Path, help="where the report goes")
    return parser


def _tell(line: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')}  {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
