"""The report of a run, written from its figures alone."""

from tests.fuzz.change import CHANGES
from tests.fuzz.pairs import PAIRS_PER_CASE
from tests.fuzz.processes import Outcome, Plan
from tests.fuzz.spelling import TRAITS

_HEAD = """\
# The cache key, fuzzed

Written by `python -m tests.fuzz.keys`; not by hand. A generator draws what a request means, writes it as a record in
two ways, and changes it in one place (`tests/fuzz/`). All three records go the engine's way: decoded, checked against
the announced version, digested. An oracle that shares no code with the product says which of them are the same request:
those must have one cache key, all others different ones; likewise the record key, without version, fingerprint and
outputs. Then all keys of the run are compared with each other.

"""


def render(plan: Plan, outcome: Outcome, *, machine: str, command: str, date: str) -> str:
    """The report as Markdown.

    Args:
        plan: what was run.
        outcome: what it came to.
        machine: where, in a line.
        command: that makes the run again.
        date: when it began.
    """
    tally = outcome.tally
    found = len(tally.failures) + len(outcome.meetings)
    pairs = tally.pairs
    facts = {
        "machine": machine,
        "command": f"`{command}`",
        "began": date,
        "pairs": f"{pairs:,}: {tally.spelt.total():,} of one meaning, {tally.changed.total():,} of two",
        "keys compared with each other": f"{outcome.keys_kept:,}",
        "seconds": f"{outcome.seconds:,.0f} in {plan.processes} processes: {pairs / outcome.seconds:,.0f} pairs/s",
        "failures": f"{found:,}",
        "verdict": f"**{_verdict(plan, outcome)}**",
    }
    traits = {
        name: sum(count for bits, count in tally.spelt.items() if bits >> place & 1)
        for place, name in enumerate(TRAITS)
    }
    return "".join([
        _HEAD,
        "| | |\n|---|---|\n",
        *(f"| {name} | {text} |\n" for name, text in facts.items()),
        "\n## One meaning, two spellings\n\nOnly one of the two has it. A pair counts in several rows.\n\n",
        _table("what", traits),
        "\n## Two meanings\n\nEvery pair has one change.\n\n",
        _table("change", {kind: tally.changed[kind] for kind in CHANGES}),
        *(f"\n## Failure\n\n```text\n{one}\n```\n" for one in [*map(str, tally.failures), *outcome.meetings]),
    ])  # fmt: skip


def _verdict(plan: Plan, outcome: Outcome) -> str:
    if not outcome.holds:
        return "BROKEN"
    if outcome.tally.pairs < len(plan.cases) * PAIRS_PER_CASE:
        return "incomplete: everything held until it was stopped"
    return "everything held"


def _table(head: str, counts: dict[str, int]) -> str:
    rows = sorted(counts.items(), key=lambda row: (-row[1], row[0]))
    return f"| {head} | pairs |\n|---|---:|\n" + "".join([f"| {name} | {count:,} |\n" for name, count in rows])
