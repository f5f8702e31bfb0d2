"""From the account and the log to findings. Pure: no clock, no I/O."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.faults.account import Account, Answer, Asked, Kind, LogRows, Place, Window
from tests.faults.schedule import KINDS

# What a paused process still had to say comes out within this time after its pause.
_AFTER_PAUSE_S = 15.0
# The clocks are one, but a record is stamped before it is sent, and a pause noted before it begins.
_BEFORE_PAUSE_S = 2.0
# A request without a deadline is tried so long before it is answered INFERENCE_UNAVAILABLE.
_UNAVAILABLE_MS = 30_000.0
_GROUP = "inference-worker"
_CACHE_EVENT = {
    "hit": "cache.hit",
    "miss": "cache.miss",
    "refresh": "cache.miss",
    "bypass": "cache.bypass",
    "coalesced": "cache.coalesced",
}
_EXAMPLES = 20


@dataclass(frozen=True, slots=True)
class Finding:
    """A promise that did not hold: which, for what, and when (Unix seconds)."""

    rule: str
    what: str
    at: float


@dataclass(slots=True)
class Verdict:
    """What was counted, and what was wrong.

    Attributes:
        counts: by name.
        broken: by rule, how often; empty when everything held.
        examples: the first findings of each rule.
    """

    counts: dict[str, int] = field(default_factory=dict)
    broken: Counter[str] = field(default_factory=Counter)
    examples: list[Finding] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether every promise held."""
        return not self.broken

    def add(self, finding: Finding) -> None:
        """Counts a finding, and keeps it while its rule has few."""
        self.broken[finding.rule] += 1
        if self.broken[finding.rule] <= _EXAMPLES:
            self.examples.append(finding)


def judge(account: Account, rows: LogRows, windows: Sequence[Window]) -> Verdict:
    """Compares what was asked with what was answered, dead-lettered and logged.

    Args:
        account: complete: everything acknowledged, and both topics read to their ends.
        rows: of the log, when nothing was outstanding.
        windows: the faults, for what only a pause excuses.
    """
    verdict = Verdict()
    firsts = {answer.place: answer for answer in account.first_answers()}
    for finding in (
        *_lost(account, firsts),
        *_wrong(account, firsts.values(), windows),
        *_repeated_ids(account, firsts.values()),
        *_not_logged(account, rows, firsts.values()),
        *_wrong_events(account, rows, firsts),
    ):
        verdict.add(finding)
    excused = 0
    for finding, pause in _second_answers(account, windows):
        if pause:
            excused += 1
        else:
            verdict.add(finding)
    verdict.counts = {
        "requests acknowledged": len(account.asked),
        "requests refused by Kafka": len(account.refused),
        "answered": len(firsts),
        "result records": len(account.answers),
        "second answers after a pause": excused,
        "second answers otherwise": verdict.broken["second answer"],
        "dead letters": len(account.letters),
        "rows in requests": rows.requests,
        "rows in events": rows.events,
        **Counter(f"asked: {asked.expected.kind.value}" for asked in account.asked.values()),
        **Counter(f"cache: {answer.cache_status or 'none'}" for answer in firsts.values()),
    }
    return verdict


def _lost(account: Account, firsts: dict[Place, Answer]) -> Iterable[Finding]:
    """Every acknowledged request has its result, or its dead letter where that is the contract."""
    reasons: dict[Place, set[str]] = {}
    for letter in account.letters:
        reasons.setdefault(letter.place, set()).add(letter.reason)
    for asked in account.asked.values():
        kind = asked.expected.kind
        if kind in (Kind.ANSWERED, Kind.INVALID):
            if asked.place not in firsts:
                yield Finding("lost", f"{asked.place} {asked.expected.request_id} has no result", asked.acked_at)
            if asked.place in reasons:
                yield Finding("dead letter", f"{asked.place} is one: {reasons[asked.place]}", asked.acked_at)
        elif kind is Kind.UNDECODABLE and not reasons.get(asked.place):
            yield Finding("lost", f"{asked.place}, undecodable, has no dead letter", asked.acked_at)
        elif kind is Kind.CONFLICTING and "DUPLICATE_ID" not in reasons.get(asked.place, ()):
            yield Finding("lost", f"{asked.place}, an id with other content, has no dead letter", asked.acked_at)


def _wrong(account: Account, firsts: Iterable[Answer], windows: Sequence[Window]) -> Iterable[Finding]:
    """Answers say what was expected, under the right id, in the right partition, with their headers."""
    for answer in firsts:
        asked = account.asked.get(answer.place)
        if asked is None:
            if not account.refused:
                yield Finding(
                    "unasked", f"result {answer.partition}@{answer.offset} {answer.answer_id}", answer.read_at
                )
            continue
        for name, found, wanted in _differences(account, asked, answer):
            unavailable = answer.error == "INFERENCE_UNAVAILABLE" and answer.total_ms >= _UNAVAILABLE_MS
            if unavailable and name in ("status", "error", "version", "label") and _within(answer.read_at, windows):
                continue
            what = f"{answer.place} {answer.answer_id}: {name} is {found!r}, expected {wanted!r}"
            yield Finding("wrong", what, answer.read_at)


def _differences(account: Account, asked: Asked, answer: Answer) -> Iterable[tuple[str, object, object]]:
    expected = asked.expected
    answer_id = asked.answer_id(account.requests_topic)
    wanted: list[tuple[str, object, object]] = [
        ("id", answer.answer_id, answer_id),
        ("ce_id", answer.ce_id, answer_id),
        ("key", answer.key, expected.key),
        ("request-timestamp", answer.request_timestamp, asked.timestamp_ms),
        ("worker-group", answer.group, _GROUP),
    ]
    if expected.kind is Kind.ANSWERED:
        wanted += [
            ("status", answer.status, "succeeded"),
            ("version", answer.version, expected.version),
            ("label", answer.label, expected.label),
        ]
    elif expected.kind is Kind.INVALID:
        wanted += [("status", answer.status, "failed"), ("error", answer.error, expected.error)]
    elif expected.kind is Kind.UNDECODABLE:
        wanted += [("result", answer.answer_id, None)]
    return [difference for difference in wanted if difference[1] != difference[2]]


def _second_answers(account: Account, windows: Sequence[Window]) -> Iterable[tuple[Finding, bool]]:
    """Results of a request that has one already; True where a pause explains it."""
    pauses = [window for window in windows if KINDS[window.kind].pauses_a_writer]
    first: dict[Place, Answer] = {}
    for answer in account.answers:
        before = first.setdefault(answer.place, answer)
        if before is answer:
            continue
        at = answer.created_ms / 1000
        pause = any(one.began_at - _BEFORE_PAUSE_S <= at <= one.ended_at + _AFTER_PAUSE_S for one in pauses)
        what = f"{answer.place} {answer.answer_id}: results at {before.offset} and {answer.offset}"
        yield Finding("second answer", what, at), pause


def _repeated_ids(account: Account, firsts: Iterable[Answer]) -> Iterable[Finding]:
    """An id that is sent twice is answered once, whichever of its records was first."""
    seen: dict[str, Answer] = {}
    for answer in firsts:
        before = seen.setdefault(answer.answer_id, answer)
        if before is not answer:
            what = f"{answer.answer_id}: {before.place} and {answer.place} both have a result"
            yield Finding("duplicate answered", what, answer.read_at)


def _not_logged(account: Account, rows: LogRows, firsts: Iterable[Answer]) -> Iterable[Finding]:
    """One row for each answer and event; the view is what the base is."""
    if rows.requests != rows.request_ids:
        yield Finding("double row", f"requests: {rows.requests} rows, {rows.request_ids} ids", 0)
    if rows.events != rows.event_ids:
        yield Finding("double row", f"events: {rows.events} rows, {rows.event_ids} ids", 0)
    answered = set()
    for answer in firsts:
        answered.add(answer.answer_id)
        status = rows.statuses.get(answer.answer_id)
        if status is None:
            yield Finding("lost row", f"{answer.place} {answer.answer_id} has no row in requests", answer.read_at)
        elif status != answer.status:
            what = f"{answer.answer_id}: its row says {status}, its answer {answer.status}"
            yield Finding("wrong row", what, answer.read_at)
    for request_id in rows.statuses.keys() - answered:
        yield Finding("unasked row", f"{request_id} has a row in requests and no answer", 0)
    for line in sorted(rows.minutes ^ rows.minutes_of_base):
        where = "view" if line in rows.minutes else "base table"
        yield Finding("wrong minute", f"only in the {where}: {line}", 0)


def _wrong_events(account: Account, rows: LogRows, firsts: dict[Place, Answer]) -> Iterable[Finding]:
    """Each request has exactly the events of what happened to it."""
    repeated = {one.expected.request_id for one in account.asked.values() if _is_repetition(one)}
    doubled = {place for place, count in Counter(one.place for one in account.answers).items() if count > 1}
    for answer in firsts.values():
        expected = _events_of(answer)
        found = [name for name in rows.event_types.get(answer.answer_id, "").split(",") if name]
        extra = set(found) - expected
        if answer.answer_id in repeated:
            extra -= {"request.duplicate", "request.received"}
        elif len(found) != len(set(found)):
            yield Finding("wrong events", f"{answer.answer_id}: repeated among {found}", answer.read_at)
        if answer.place in doubled:
            extra = set()  # whoever answered second told of what it did
        if extra or expected - set(found):
            what = f"{answer.answer_id}: {found}, expected {sorted(expected)}"
            yield Finding("wrong events", what, answer.read_at)
    for asked in account.asked.values():
        if asked.expected.kind is not Kind.REPEATED or asked.expected.request_id is None:
            continue
        if "request.duplicate" not in rows.event_types.get(asked.expected.request_id, ""):
            what = f"{asked.expected.request_id}: sent twice, no request.duplicate"
            yield Finding("wrong events", what, asked.acked_at)


def _is_repetition(asked: Asked) -> bool:
    return asked.expected.kind in (Kind.REPEATED, Kind.CONFLICTING)


def _events_of(answer: Answer) -> set[str]:
    events = {"request.received", "result.published"}
    if answer.cache_status:
        events.add(_CACHE_EVENT.get(answer.cache_status, f"cache.{answer.cache_status}"))
    if answer.status != "succeeded":
        return events | {"inference.failed"}
    if answer.cache_status not in ("hit", "coalesced"):
        events |= {"inference.started", "inference.completed"}
    return events


def _within(at: float, windows: Sequence[Window]) -> bool:
    return any(window.began_at <= at <= window.over_at for window in windows)
