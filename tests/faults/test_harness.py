"""The harness itself: independent of the product, the same from the same seed, readable when it reports."""

import ast
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from tests.faults.account import Account, Asked, Expected, Kind, Place, Window
from tests.faults.campaign import Outcome, Plan
from tests.faults.images import Images
from tests.faults.load import RequestSource
from tests.faults.product import PROJECT
from tests.faults.report import figures_of, render
from tests.faults.schedule import KINDS, plan_rounds
from tests.faults.verdict import Finding

FOLDER = Path(__file__).parent
OWN = {"pipeline", "schemas", "tests"}


def test_oracle_shares_no_code_with_the_product() -> None:
    """No module of the harness imports anything of this project but the harness."""
    broken = []
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                modules = ["." * node.level + (node.module or "")]
            broken += [
                f"{path.name}:{node.lineno} imports {module}"
                for module in modules
                if module.startswith(".") or (module.split(".")[0] in OWN and not module.startswith("tests.faults"))
            ]
    assert broken == []


def test_schedule_repeats_from_its_seed() -> None:
    """The same seed gives the same faults, another one others; each kind comes as often as every other."""
    first = list(islice(plan_rounds(7, KINDS), 60))
    assert first == list(islice(plan_rounds(7, KINDS), 60))
    assert first != list(islice(plan_rounds(8, KINDS), 60))
    counts = Counter(fault.kind.name for one in first for fault in one.faults)
    assert counts.keys() == KINDS.keys()
    assert max(counts.values()) - min(counts.values()) <= 1
    pairs = [one.faults for one in first if len(one.faults) == 2]
    assert pairs
    assert all(fault.kind.overlaps for pair in pairs for fault in pair)


def test_pauses_outlast_the_session() -> None:
    """A pause is longer than the group's session of 10 s: the paused one is replaced."""
    assert all(kind.hold_s[0] > 10 for kind in KINDS.values() if kind.name.startswith("pause"))


@pytest.fixture(scope="module")
def source() -> RequestSource:
    """Requests of the shipped models."""
    return RequestSource(Images(PROJECT / "model_repository" / "digits", 3), 3)


def test_load_has_every_kind_of_request(source: RequestSource) -> None:
    """Each kind, with and without ids and keys, in JSON and in binary; what is sent again was sent before."""
    records = [source.take() for _ in range(3000)]
    assert {one.expected.kind for one in records} == set(Kind)
    plain = [one for one in records if one.expected.kind is Kind.ANSWERED]
    for member in ("request_id", "key"):
        assert {getattr(one.expected, member) is None for one in plain} == {True, False}
    assert {bool(one.headers) for one in plain} == {True, False}
    assert {one.expected.version for one in plain} == {"1", "2"}
    assert {one.expected.error for one in records if one.expected.kind is Kind.INVALID} == {
        "MODEL_NOT_FOUND", "VERSION_NOT_FOUND", "INVALID_INPUT", "INVALID_REQUEST",
    }  # fmt: skip
    sent: dict[str | None, bytes] = {}
    for one in records:
        known = sent.setdefault(one.expected.request_id, one.value)
        if one.expected.kind is Kind.REPEATED:
            assert known == one.value
        if one.expected.kind is Kind.CONFLICTING:
            assert known != one.value


def test_report_tells_what_happened() -> None:
    """The same figures give the same text, with every kind of fault and whatever did not hold."""
    account = Account("inference.requests")
    account.acknowledge(Asked(Place(0, 0), 0, 100.0, Expected(Kind.ANSWERED, "r", None, "2", 1)))
    outcome = Outcome(Plan(1, 1, 1, 100.0, 1.0), account, began_at=99.0)
    outcome.windows = [Window("kill kafka", "kafka", 100.0, 100.0, 4.0, 6.0)]
    outcome.verdict.add(Finding("lost", "Place(partition=0, offset=0) r has no result", 100.5))
    figures = figures_of(outcome, "python -m tests.faults")
    text = render(figures)
    assert text == render(figures)
    assert "| kill kafka | 1 | 4.0 | 4.0 | 6.0 | 6.0 | 0.0 |" in text
    assert "+0.5 s from the begin of: kill kafka of kafka" in text
    assert "**broken**" in text
