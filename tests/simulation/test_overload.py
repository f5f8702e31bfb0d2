"""More than the fleet can do: what is answered in time, what is refused, and who waits for whom, in virtual time."""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest

from pipeline.core.answer import Answer
from pipeline.core.fleet_queue import QueueBounds
from schemas.errors import ErrorCode
from tests.simulation.fleet import FAILING_ROW, FakeVersion, right_outputs
from tests.simulation.system import MODEL, System, code_of, make_system, model_record, request
from tests.simulation.virtual_time import run_simulated, settle, simulated, the_clock

SECONDS = 4.0
TIMEOUT_MS = 300


@dataclass(eq=False)
class _Arrived:
    """A request that waits, and the count it goes to."""

    codes: Counter[str]

    def answered(self, answer: Answer) -> None:
        """See `pipeline.core.coalescing.Waiter`."""
        self.codes[code_of(answer)] += 1


@dataclass
class Overload:
    """What became of the requests of one run: error codes, empty for an answer in time; calls that were made.

    Those without a deadline are counted apart, as `patient`.
    """

    codes: Counter[str] = field(default_factory=Counter)
    patient: Counter[str] = field(default_factory=Counter)
    calls: int = 0

    @property
    def goodput(self) -> float:
        """Answers in time per second."""
        return (self.codes[""] + self.patient[""]) / SECONDS


def slotted_system(**changes: Any) -> System:
    """Two servers that run one call at a time, 10 ms and 1 ms for each row."""
    system = make_system(servers=2, cache_bytes=0, **changes)
    for server in system.servers:
        server.slots = 1
        server.latency_s = lambda call: 0.010 + 0.001 * call.inputs[0].shape[0]
    return system


async def _run(rate: float, patient_share: float, rows_max: int) -> Overload:
    system, rng, report = slotted_system(max_batch_size=rows_max), random.Random(7), Overload()
    loop, number = asyncio.get_running_loop(), 0
    end = loop.time() + SECONDS
    while loop.time() < end:
        number += 1
        waiter = _Arrived(report.codes)
        if rng.random() < patient_share:
            waiter = _Arrived(report.patient)
            system.engine.submit(request(number), waiter)
        else:
            system.engine.submit(request(number, timeout_ms=TIMEOUT_MS), waiter)
        await asyncio.sleep(rng.expovariate(rate))
    report.calls = system.calls
    await system.engine.stop()
    return report


@cache
def run(load: float, patient_share: float = 0.0, rows_max: int = 1) -> Overload:
    """Open-loop arrivals at this part of what the fleet can do."""
    capacity = 2 * rows_max / (0.010 + 0.001 * rows_max)
    return run_simulated(_run(capacity * load, patient_share, rows_max))


@pytest.mark.parametrize("rows_max", [1, 4])
def test_goodput_at_twice_the_capacity_is_that_of_the_peak(rows_max: int) -> None:
    """With 300 ms to wait, twice as much as the fleet can do costs at most a tenth of the answers in time."""
    peak = max(run(load, rows_max=rows_max).goodput for load in (0.8, 0.95))
    assert run(2.0, rows_max=rows_max).goodput >= 0.9 * peak


def test_work_for_nobody_is_not_executed() -> None:
    """Of the calls at twice the capacity, nearly all are answers in time: what expired is not computed."""
    report = run(2.0)
    assert report.codes["EXPIRED"] > 0.4 * report.codes.total()
    assert report.calls <= 1.1 * report.codes[""]


def test_requests_without_a_deadline_are_not_passed_over() -> None:
    """The newest go first only among those with a deadline: the others have every other place, in order."""
    report = run(2.0, patient_share=0.2)
    # A fifth of what comes is two fifths of what can be done: all of it is, but for what came last.
    assert report.patient[""] >= 0.95 * 0.2 * 2 * SECONDS * 2 / 0.011
    assert report.goodput >= 0.9 * run(0.95).goodput


@pytest.mark.parametrize("bounds", [QueueBounds(count_max=10), QueueBounds(bytes_max=40)])
@simulated
async def test_full_queue_refuses_at_once(bounds: QueueBounds) -> None:
    """What finds no room is OVERLOADED in the same moment, and retryable; all that was taken is answered."""
    system = slotted_system(bounds=bounds, max_batch_size=1)
    codes: Counter[str] = Counter()
    before = the_clock().monotonic()
    for number in range(30):
        system.engine.submit(request(number), _Arrived(codes))
    assert not codes, "nobody is answered inside the call that asks"
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert codes == {"OVERLOADED": 20}
    assert ErrorCode.OVERLOADED.retryable
    assert the_clock().monotonic() == before
    await asyncio.sleep(5)
    assert codes == {"OVERLOADED": 20, "": 10}


@simulated
async def test_what_waits_for_a_fleet_that_is_down_is_bounded() -> None:
    """While no instance answers, as many wait for one as may; the others are OVERLOADED, and do not pile up."""
    system = slotted_system(bounds=QueueBounds(count_max=10), max_batch_size=1)
    for server in system.servers:
        server.down = True
    codes: Counter[str] = Counter()
    for number in range(40):
        system.engine.submit(request(number), _Arrived(codes))
        await asyncio.sleep(0.001)
    assert codes["OVERLOADED"] >= 20
    assert system.engine.flights_running <= 2 * 10
    for server in system.servers:
        server.down = False
    await asyncio.sleep(10)
    assert codes[""] == 40 - codes["OVERLOADED"]


@simulated
async def test_expired_requests_make_room() -> None:
    """Those nobody waits for any more do not keep the queue full, wherever in it they are."""
    system = slotted_system(bounds=QueueBounds(count_max=10), max_batch_size=1, batches_in_flight=1)
    for server in system.servers:
        server.latency_s = 1.0
    codes: Counter[str] = Counter()
    for number in range(12):
        system.engine.submit(request(number, timeout_ms=_timeout_ms(number)), _Arrived(codes))
        await settle()
    await asyncio.sleep(0.2)
    later: Counter[str] = Counter()
    for number in range(20, 30):
        system.engine.submit(request(number), _Arrived(later))
    await asyncio.sleep(60)
    assert codes == {"": 7, "EXPIRED": 5}
    assert later == {"": 5, "OVERLOADED": 5}


def _timeout_ms(number: int) -> int | None:
    if number % 2 == 0:
        return None
    return 60_000 if number == 1 else 100


@simulated
async def test_one_models_flood_does_not_starve_another() -> None:
    """While one model's queue is hours long, a request for another one takes what it takes on its own."""
    system = slotted_system(max_batch_size=1)
    system.catalog.apply(model_record({"1": "other"}, "1", model_name="other"))
    for server in system.servers:
        server.slots = 32
        server.latency_s = 1.0
        server.serves["other", "1"] = FakeVersion("other")
    flood = [system.start(request(number, parameters={"t": number})) for number in range(500)]
    await asyncio.sleep(0.1)
    began = the_clock().monotonic()
    answers = await asyncio.gather(*(system.ask(request(number, model_name="other")) for number in range(4)))
    assert {answer.status for answer in answers} == {"succeeded"}
    assert the_clock().monotonic() - began == pytest.approx(1.0)
    assert max(server.running_max for server in system.servers) <= 16
    await system.engine.stop()
    await _give_up(flood)


@simulated
async def test_flooded_models_take_turns() -> None:
    """Models that each ask for more than all can have get the same number of calls, in however many groups."""
    system = slotted_system(max_batch_size=1)
    models = [MODEL, "second", "third"]
    for name in models[1:]:
        system.catalog.apply(model_record({"1": "one"}, "1", model_name=name, max_batch_size=1))
        for server in system.servers:
            server.serves[name, "1"] = FakeVersion("one")
    tasks = [
        system.start(request(number, model_name=name, parameters={"t": number % groups}))
        for name, groups in zip(models, (2, 5, 20), strict=True)
        for number in range(300)
    ]
    await asyncio.sleep(2.0)
    calls = Counter(heard.call.model_name for server in system.servers for heard in server.heard)
    assert max(calls.values()) - min(calls.values()) <= 10, calls
    lines = {line.model_name: line for line in system.dispatcher.view().models}
    assert lines.keys() == set(models)
    assert all(
        line.waiting > 100 and line.oldest_s >= 1.9 and line.bytes == 4 * line.waiting for line in lines.values()
    )
    await system.engine.stop()
    await _give_up(tasks)


async def _give_up(tasks: list["asyncio.Task[Answer]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("bad_share", [1 / 64, 1 / 16, 1 / 4, 1.0])
@simulated
async def test_poison_costs_few_calls(bad_share: float) -> None:
    """Rows that fail, at any rate and each with content of its own, cost far less than one call becoming 33."""
    system = make_system(max_batch_size=32, cache_bytes=0)
    rng = random.Random(3)
    codes: Counter[str] = Counter()
    system.server.serves = dict.fromkeys(system.server.serves, _SomeFail())
    bad = 0
    for number in range(1600):
        is_bad = rng.random() < bad_share
        bad += is_bad
        system.engine.submit(request(2 * number + is_bad), _Arrived(codes))
        await asyncio.sleep(0.0005)
    await asyncio.sleep(30)
    assert codes == Counter({"": 1600 - bad, "MODEL_ERROR": bad}) - Counter()
    assert system.calls <= min(1600 * 1.6, 100 + 11 * bad), (system.calls, bad)


class _SomeFail(FakeVersion):
    """Fails for every odd number."""

    def __init__(self) -> None:
        super().__init__("one")

    def answer(self, instance: str, call: Any) -> Any:
        """See `FakeVersion`."""
        if any(call.inputs[0].raw[index] % 2 for index in range(0, len(call.inputs[0].raw), 4)):
            return FakeVersion("one").answer(instance, _with(call, FAILING_ROW))
        return FakeVersion("one").answer(instance, call)


class _NoneFails(FakeVersion):
    """Fails for nothing."""

    def __init__(self) -> None:
        super().__init__("one")

    def answer(self, instance: str, call: Any) -> Any:
        """See `FakeVersion`."""
        return right_outputs("one", call.inputs, call.parameters or {})


def _with(call: Any, number: int) -> Any:
    tensor = call.inputs[0]
    return replace(call, inputs=(tensor._replace(raw=number.to_bytes(4, "little") + tensor.raw[4:]),))


@simulated
async def test_content_that_failed_by_itself_leaves_alone() -> None:
    """The same bad content again costs one call and harms nobody; once it is answered it is trusted again."""
    system = make_system(max_batch_size=8, cache_bytes=0)
    good = [request(number) for number in range(5)]
    await asyncio.gather(*(system.ask(one) for one in [*good, request(FAILING_ROW)]))
    before = system.calls
    answers = await asyncio.gather(*(system.ask(one) for one in [*good, request(FAILING_ROW)]))
    assert [code_of(answer) for answer in answers] == [""] * 5 + ["MODEL_ERROR"]
    assert [heard.rows for heard in system.server.heard[before:]] == [5, 1]
    system.server.serves = dict.fromkeys(system.server.serves, _NoneFails())
    assert code_of(await system.ask(request(FAILING_ROW))) == ""
    before = system.calls
    await asyncio.gather(*(system.ask(one) for one in [*good, request(FAILING_ROW)]))
    assert [heard.rows for heard in system.server.heard[before:]] == [6]
