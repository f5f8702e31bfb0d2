"""What must be true after a delivery campaign, judged from topics, callbacks and what clients heard.

It shares no code with the pipeline: results are read as any Kafka client reads them.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import orjson
from aiokafka import ConsumerRecord

from tests.live.delivery_clients import Account, Name
from tests.live.delivery_plan import Planned, Reference, Route
from tests.live.topics import header
from tests.webhooks.receivers import Received

# What a failure shows of each kind.
_SHOWN = 5


def name_of(record: ConsumerRecord) -> Name:
    """The request that a record answers, by its headers."""
    return Name(header(record, "tenant") or "", header(record, "ce_id") or "")


@dataclass(frozen=True)
class Evidence:
    """What is left of a campaign.

    Attributes:
        account: of the clients.
        requests: all records of the topic, each partition in its order; likewise the next three.
        results: answers.
        replies: copies.
        dead_letters: what was put aside.
        calls: what the receiver of callbacks got; the last part of a path is the tenant.
        is_signed: whether a call's signature is good, by the tenant's secret.
    """

    account: Account
    requests: Sequence[ConsumerRecord]
    results: Sequence[ConsumerRecord]
    replies: Sequence[ConsumerRecord]
    dead_letters: Sequence[ConsumerRecord]
    calls: Sequence[Received]
    is_signed: Callable[[str, Received], bool]

    def counts(self) -> dict[str, int]:
        """How much there is of each, and what clients met on the way."""
        topics = {"requests": self.requests, "results": self.results, "replies": self.replies}
        others = {"dead letters": self.dead_letters, "callbacks": self.calls, "heard": self.account.heard}
        return {name: len(records) for name, records in (topics | others).items()} | self.account.counts


def verdict(evidence: Evidence, reference: Reference) -> list[str]:
    """Every promise that was broken, a sentence each; none where all were kept."""
    account, calls = evidence.account, evidence.calls
    answers: dict[Name, list[bytes]] = defaultdict(list)
    for record in evidence.results:
        answers[name_of(record)].append(record.value)
    broken = chain(
        account.faults,
        _one_answer_each(account, answers),
        _right_answers(account, answers, reference),
        _same_bytes(account, answers, evidence.replies, calls),
        _copies(account, evidence.replies),
        _callbacks(account, calls, evidence.is_signed),
        _letters(account, evidence.dead_letters),
    )
    return [*broken]


def _one_answer_each(account: Account, answers: dict[Name, list[bytes]]) -> Iterator[str]:
    wrong = [f"{name} has {len(answers.get(name, ()))} results" for name in account.receipts if
             len(answers.get(name, ())) != 1]  # fmt: skip
    yield from _some("a receipt has other than one answer", wrong)
    yield from _some("answered without a receipt", [str(name) for name in answers if name not in account.receipts])


def _right_answers(account: Account, answers: dict[Name, list[bytes]], reference: Reference) -> Iterator[str]:
    wrong = [
        f"{name}: {mistake}"
        for name, planned in account.receipts.items()
        for value in answers.get(name, ())
        if (mistake := _mistake(name, planned, value, reference)) is not None
    ]
    yield from _some("a wrong answer", wrong)


def _mistake(name: Name, planned: Planned, value: bytes, reference: Reference) -> str | None:
    result = orjson.loads(value)
    if (result["status"], result["id"], result.get("model_version")) != ("succeeded", name.request_id, "2"):
        return f"{value[:300]!r}"
    return reference.mistakes(planned.image, result["outputs"])


def _same_bytes(
    account: Account, answers: dict[Name, list[bytes]], replies: Sequence[ConsumerRecord], calls: Sequence[Received]
) -> Iterator[str]:
    heard = [(one.name, one.how, one.body) for one in account.heard]
    heard += [(name_of(record), "reply", record.value) for record in replies]
    heard += [(_called(call), "callback", call.body) for call in calls]
    wrong = []
    for name, how, body in heard:
        record = answers.get(name, [b""])[0]
        same = _outputs(body) == _outputs(record) if how == "v2" else body == record
        if not same:
            wrong.append(f"{name} over {how}: {body[:300]!r}, the record is {record[:300]!r}")
    yield from _some("other bytes than the record's", wrong)


def _copies(account: Account, replies: Sequence[ConsumerRecord]) -> Iterator[str]:
    copied = {name_of(record) for record in replies}
    wanted = [name for name, planned in account.receipts.items() if planned.route is Route.KAFKA_REPLY]
    yield from _some("no copy for reply_to", [str(name) for name in wanted if name not in copied])


def _callbacks(
    account: Account, calls: Sequence[Received], is_signed: Callable[[str, Received], bool]
) -> Iterator[str]:
    wanted = {name for name, planned in account.receipts.items() if planned.route is Route.CALLBACK}
    called = {_called(call) for call in calls}
    yield from _some("no callback", [str(name) for name in wanted - called])
    yield from _some("a callback that nobody asked for", [str(name) for name in called - wanted])
    unsigned = [str(_called(call)) for call in calls if not is_signed(_called(call).tenant, call)]
    yield from _some("a callback without a good signature", unsigned)


def _letters(account: Account, dead_letters: Sequence[ConsumerRecord]) -> Iterator[str]:
    """Only what was sent again while nobody could know of the first time may be put aside, as its repetition."""
    strange = []
    for record in dead_letters:
        document = orjson.loads(record.value)
        name = Name(document.get("tenant") or "", document.get("id") or "")
        if header(record, "reason") != "DUPLICATE_ID" or name not in account.sent_again:
            strange.append(f"{name}: {header(record, 'reason')}, {header(record, 'error')}")
    yield from _some("a dead letter", strange)


def _called(call: Received) -> Name:
    return Name(call.path.rpartition("/")[2], call.webhook_id)


def _outputs(body: bytes) -> object:
    document = orjson.loads(body or b"{}")
    return document.get("id"), document.get("model_name"), document.get("model_version"), document.get("outputs")


def _some(what: str, found: Iterable[str]) -> Iterator[str]:
    every = list(found)
    if every:
        yield f"{what}, {len(every)} times: {'; '.join(every[:_SHOWN])}"
