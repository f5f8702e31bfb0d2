"""The oracle of the delivery campaign finds what it is there for: each kind of broken promise, made on purpose."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest
from aiokafka import ConsumerRecord

from tests.live.delivery_clients import Account, Heard, Name
from tests.live.delivery_plan import Planned, Reference, Route, make_plan
from tests.live.delivery_verdict import Evidence, verdict
from tests.webhooks.receivers import Received

REFERENCE = Reference(1)
NAME = Name("acme", "r-1")
OTHER = Name("acme", "r-2")


def a_record(name: Name, value: bytes, **headers: bytes) -> ConsumerRecord:
    """A record of any topic."""
    named = [("ce_id", name.request_id.encode()), ("tenant", name.tenant.encode()), *headers.items()]
    return ConsumerRecord("t", 0, 0, 0, 0, None, value, None, 0, len(value), tuple(named))


def an_answer(name: Name, image: int) -> bytes:
    """The right one."""
    outputs = [
        {"name": "label", "data": REFERENCE._labels[image].tolist()},
        {"name": "probabilities", "data": REFERENCE._probabilities[image].tolist()},
    ]
    return orjson.dumps({"id": name.request_id, "status": "succeeded", "model_version": "2", "outputs": outputs})


def a_call(name: Name, body: bytes) -> Received:
    """A callback."""
    return Received(f"/1/{name.tenant}", {"webhook-id": name.request_id}, body)


def evidence() -> Evidence:
    """One request with a callback, and one with a copy, whose every promise was kept."""
    account, records = Account(), []
    for name, route in ((NAME, Route.CALLBACK), (OTHER, Route.KAFKA_REPLY)):
        account.receipts[name] = Planned(0, route, "acme", 7, None, name.request_id, 0)
        records.append(a_record(name, an_answer(name, 7)))
    account.heard.append(Heard(NAME, "get", records[0].value))
    return Evidence(account, records, records, [records[1]], [], [a_call(NAME, records[0].value)], lambda *_: True)


def with_account(found: Evidence, change: Callable[[Account], Any]) -> Evidence:
    """The same, after a change of what clients saw."""
    change(found.account)
    return found


LIES: dict[str, Callable[[Evidence], Evidence]] = {
    "has 0 results": lambda found: replace(found, results=found.results[1:], calls=[], replies=found.replies),
    "has 2 results": lambda found: replace(found, results=[*found.results, found.results[0]]),
    "without a receipt": lambda found: replace(found, results=[*found.results, a_record(Name("", "r-1"), b"{}")]),
    "a wrong answer": lambda found: replace(found, results=[a_record(NAME, an_answer(NAME, 8)), found.results[1]]),
    "over get": lambda found: with_account(found, lambda one: one.heard.append(Heard(NAME, "get", b"{}"))),
    "over v2": lambda found: with_account(found, lambda one: one.heard.append(Heard(NAME, "v2", b'{"id":"r-1"}'))),
    "over callback": lambda found: replace(found, calls=[a_call(NAME, b"{}")]),
    "over reply": lambda found: replace(found, replies=[a_record(OTHER, b"{}")]),
    "no copy": lambda found: replace(found, replies=[]),
    "no callback": lambda found: replace(found, calls=[]),
    "nobody asked for": lambda found: replace(found, calls=[*found.calls, a_call(OTHER, found.results[1].value)]),
    "good signature": lambda found: replace(found, is_signed=lambda *_: False),
    "a dead letter": lambda found: replace(
        found, dead_letters=[a_record(NAME, b'{"id":"r-1","tenant":"acme"}', reason=b"DUPLICATE_ID")]
    ),
    "hung": lambda found: with_account(found, lambda one: one.faults.append("a request hung")),
}


def test_kept_promises_are_no_verdict() -> None:
    """Nothing is said of a campaign in which everything came as it was promised."""
    assert verdict(evidence(), REFERENCE) == []


@pytest.mark.parametrize("said", sorted(LIES))
def test_each_broken_promise_is_told(said: str) -> None:
    """Whatever is wrong is among the sentences."""
    sentences = verdict(LIES[said](evidence()), REFERENCE)
    assert any(said in sentence for sentence in sentences), sentences


def test_repetition_nobody_could_know_of_is_no_fault() -> None:
    """What was sent again may be put aside as DUPLICATE_ID; its answer is the first one's."""
    found = with_account(evidence(), lambda one: one.sent_again.add(NAME))
    letter = a_record(NAME, b'{"id":"r-1","tenant":"acme"}', reason=b"DUPLICATE_ID")
    assert verdict(replace(found, dead_letters=[letter]), REFERENCE) == []


def test_plan_has_every_route_and_repeats() -> None:
    """A seed is a plan: the same twice, with every route, and each tenant's ids used by the other, too."""
    plan = make_plan(5, 400)
    assert plan == make_plan(5, 400)
    assert {planned.route for planned in plan} == set(Route)
    named = [planned.request_id for planned in plan if planned.request_id]
    assert len(named) > len(set(named))
    assert len({(planned.tenant, planned.request_id or planned.key) for planned in plan}) == len(plan)
    assert np.unique(REFERENCE.images, axis=0).shape == REFERENCE.images.shape
