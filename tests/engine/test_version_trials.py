"""Versions on trial by a share of the requests, and versions whose content is being replaced; time is virtual."""

import asyncio
from datetime import UTC, datetime

import pytest

from schemas.registry import Canary, ModelRecord
from tests.simulation.system import MODEL, RecordingWaiter, expected, make_system, model_record, outputs_of, request
from tests.simulation.virtual_time import UNIX_START, settle, simulated, the_clock

CONTENTS = {"1": "one", "2": "two"}
MANY = [request(number) for number in range(400)]


def on_trial(share: float, effective_at: float = 0.0, **changes: str) -> ModelRecord:
    """Version 1 is the default, version 2 is tried."""
    canary = Canary(version="2", share=share, effective_at=datetime.fromtimestamp(UNIX_START + effective_at, UTC))
    return model_record({**CONTENTS, **changes}, "1").model_copy(update={"canary": canary})


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
@simulated
async def test_trial_answers_its_share(share: float) -> None:
    """About so many distinct requests meet the version on trial; the rest the default, each with its own answer."""
    system = make_system(versions=CONTENTS)
    system.catalog.apply(on_trial(share))
    answers = await asyncio.gather(*map(system.ask, MANY))
    tried = sum(answer.model_version == "2" for answer in answers)
    # Four standard deviations of a binomial with 400 draws.
    assert abs(tried - 400 * share) < 4 * (400 * share * (1 - share)) ** 0.5
    for asked, answer in zip(MANY, answers, strict=True):
        assert outputs_of(answer) == expected(CONTENTS[answer.model_version or ""], asked)


@simulated
async def test_equal_requests_meet_the_same_version() -> None:
    """What decides is the content: the second time everything is a hit, from the version of the first."""
    system = make_system(versions=CONTENTS)
    system.catalog.apply(on_trial(0.5))
    first = [await system.ask(asked) for asked in MANY[:50]]
    second = [await system.ask(asked) for asked in MANY[:50]]
    assert {answer.cache_status for answer in second} == {"hit"}
    assert [answer.model_version for answer in first] == [answer.model_version for answer in second]
    assert {answer.model_version for answer in first} == {"1", "2"}


@simulated
async def test_larger_share_keeps_whom_the_smaller_one_had() -> None:
    """Raising a share moves requests to the version on trial and none away from it: what is cached stays of use."""
    system = make_system(versions=CONTENTS)
    tried: list[set[int]] = []
    for share in (0.1, 0.3):
        system.catalog.apply(on_trial(share))
        answers = [await system.ask(asked) for asked in MANY]
        tried.append({number for number, answer in enumerate(answers) if answer.model_version == "2"})
    assert tried[0] < tried[1]


@simulated
async def test_named_version_is_not_tried() -> None:
    """Whoever names a version gets it."""
    system = make_system(versions=CONTENTS)
    system.catalog.apply(on_trial(0.99))
    answers = [await system.ask(request(number, model_version="1")) for number in range(50)]
    assert {answer.model_version for answer in answers} == {"1"}


@simulated
async def test_trial_begins_at_its_time() -> None:
    """Before `effective_at` the default answers all; the time of a record's append counts."""
    system = make_system(versions=CONTENTS)
    system.catalog.apply(on_trial(0.999999, effective_at=10.0))
    assert (await system.ask(request(1))).model_version == "1"
    waiter = RecordingWaiter()
    system.engine.submit(request(2), waiter, appended_at=UNIX_START + 10.0)
    await asyncio.sleep(1)
    assert waiter.answers[0].model_version == "2"


@simulated
async def test_trial_that_ends_while_it_computes_is_answered_by_the_default() -> None:
    """Requests out to a version that is taken away enter again, and are answered by what is the default now."""
    system = make_system(versions=CONTENTS)
    system.catalog.apply(on_trial(0.999999))
    waiter = RecordingWaiter()
    system.server.serves.pop((MODEL, "2"))
    system.engine.submit(request(1), waiter)
    await settle()
    system.catalog.apply(model_record({"1": "one"}, "1"))
    await asyncio.sleep(5)
    assert [answer.model_version for answer in waiter.answers] == ["1"]


@simulated
async def test_trial_nobody_serves_is_tried_until_the_time_is_up() -> None:
    """A version on trial that no instance has costs its share an error, within the time a request waits at most."""
    system = make_system(versions=CONTENTS)
    system.catalog.apply(on_trial(0.999999))
    system.server.serves.pop((MODEL, "2"))
    began = the_clock().monotonic()
    answer = await system.ask(request(1))
    assert answer.failure is not None
    assert answer.failure.code == "INFERENCE_UNAVAILABLE"
    assert the_clock().monotonic() - began < 60


@simulated
async def test_answers_of_content_that_is_being_replaced_are_not_stored() -> None:
    """From the announcement of a change to its end nothing is stored, not even of requests that were out already."""
    system = make_system(versions={"1": "one"})
    record = model_record({"1": "one"}, "1")
    changing = {"1": record.versions["1"].model_copy(update={"changing": True})}
    system.server.latency_s = 1.0
    waiter = RecordingWaiter()
    system.engine.submit(request(1), waiter)
    await settle()
    system.catalog.apply(record.model_copy(update={"versions": changing}))
    assert (await system.ask(request(2))).cache_status == "miss"
    await asyncio.sleep(2)
    assert len(system.cache) == 0
    system.catalog.apply(record)
    assert (await system.ask(request(1))).cache_status == "miss"
    assert (await system.ask(request(1))).cache_status == "hit"


@simulated
async def test_stored_answers_are_given_while_content_is_replaced() -> None:
    """They are the old content's, which is what is announced: a change costs no hit before it is done."""
    system = make_system(versions={"1": "one"})
    record = model_record({"1": "one"}, "1")
    await system.ask(request(1))
    changing = {"1": record.versions["1"].model_copy(update={"changing": True})}
    system.catalog.apply(record.model_copy(update={"versions": changing}))
    assert (await system.ask(request(1))).cache_status == "hit"
