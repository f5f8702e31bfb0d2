"""One inference for equal requests, each with its own deadline; what failures, outages and version changes do."""

import asyncio
import gc
import weakref

import pytest

from pipeline.core.answer import Answer
from pipeline.core.catalog import ModelCatalog
from pipeline.errors import InvalidTensor, ModelFailed, ModelNotReady
from schemas.errors import WireError
from tests.simulation.fleet import FakeVersion
from tests.simulation.system import (
    MODEL,
    RecordingWaiter,
    System,
    code_of,
    expected,
    make_system,
    model_record,
    outputs_of,
    request,
)
from tests.simulation.virtual_time import UNIX_START, FakeClock, settle, simulated, the_clock

ASKED = request(7)


def promote(system: System, content: str, *, at: float = 0.0, number: str = "2") -> None:
    """The catalog learns of a new default; the fleet serves it and drops version 1."""
    system.catalog.apply(model_record({number: content}, number, previous=None, effective_at=at))
    for server in system.servers:
        server.serves = {(MODEL, number): FakeVersion(content)}


@pytest.mark.parametrize("copies", [2, 20, 200])
@simulated
async def test_equal_requests_run_once(copies: int) -> None:
    """However many equal requests are in flight, one inference answers all of them with the same bytes."""
    system = make_system()
    answers = await asyncio.gather(*(system.ask(request(7)) for _ in range(copies)))
    assert system.rows == 1
    assert [answer.cache_status for answer in answers] == ["miss"] + ["coalesced"] * (copies - 1)
    assert len({id(answer.outputs) for answer in answers}) == 1
    assert outputs_of(answers[0]) == expected("one", ASKED)


@simulated
async def test_followers_expire_each_at_their_own_time() -> None:
    """A follower whose deadline passes hears EXPIRED then; the flight goes on for the others and is stored."""
    system = make_system()
    system.server.latency_s = 5.0
    waiters = [RecordingWaiter() for _ in range(3)]
    start = the_clock().monotonic()
    for waiter, timeout_ms in zip(waiters, (None, 1000, 2500), strict=True):
        assert system.engine.submit(request(7, timeout_ms=timeout_ms), waiter) is None
    await asyncio.sleep(6)
    assert [code_of(waiter.answers[0]) for waiter in waiters] == ["", "EXPIRED", "EXPIRED"]
    assert [waiter.answers[0].status for waiter in waiters] == ["succeeded", "expired", "expired"]
    assert [waiter.at[0] - start for waiter in waiters] == pytest.approx([5.0, 1.0, 2.5])
    assert all(len(waiter.answers) == 1 for waiter in waiters)
    assert (await system.ask(ASKED)).cache_status == "hit"


@simulated
async def test_leaders_deadline_does_not_end_the_flight() -> None:
    """The first member's early deadline expires it alone; later members still get the answer."""
    system = make_system()
    system.server.latency_s = 1.0
    leader = system.start(request(7, timeout_ms=200))
    follower = system.start(ASKED)
    assert code_of(await leader) == "EXPIRED"
    assert (await follower).cache_status == "coalesced"
    assert outputs_of(await follower) == expected("one", ASKED)
    assert system.calls == 1


@pytest.mark.parametrize("timeout_ms", [0, 1, 999])
@simulated
async def test_request_past_its_deadline_is_not_executed(timeout_ms: int) -> None:
    """A request that waited in the queue longer than its timeout is EXPIRED at once, hit or not."""
    system = make_system()
    await system.ask(ASKED)
    calls = system.calls
    late = request(7, timeout_ms=timeout_ms)
    answer = system.engine.submit(late, RecordingWaiter(), requested_at=system.clock.now() - 1)
    assert answer is not None
    assert (answer.status, code_of(answer)) == ("expired", "EXPIRED")
    assert system.calls == calls


@simulated
async def test_timeout_counts_from_requested_at() -> None:
    """What is left of a timeout is what requested_at leaves, not the whole of it again."""
    system = make_system()
    system.server.latency_s = 10.0
    waiter = RecordingWaiter()
    start = the_clock().monotonic()
    system.engine.submit(request(7, timeout_ms=3000), waiter, requested_at=system.clock.now() - 2)
    await asyncio.sleep(5)
    assert [code_of(answer) for answer in waiter.answers] == ["EXPIRED"]
    assert waiter.at[0] - start == pytest.approx(1.0)


@simulated
async def test_flight_without_waiters_is_not_executed() -> None:
    """A queued flight whose waiters have all expired never reaches the fleet."""
    system = make_system(max_batch_size=1, batches_in_flight=1)
    system.server.latency_s = 1.0
    first = system.start(request(1))
    await settle()
    waiting = [system.start(request(2, timeout_ms=300)) for _ in range(3)]
    assert (await first).status == "succeeded"
    assert {code_of(await task) for task in waiting} == {"EXPIRED"}
    await asyncio.sleep(3)
    assert system.calls == 1
    assert system.engine.flights_running == 0


@simulated
async def test_unanswered_call_is_not_repeated_for_nobody() -> None:
    """When every waiter expired during an attempt, no other instance is asked."""
    system = make_system(servers=3)
    for server in system.servers:
        server.hangs = True
    assert code_of(await system.ask(request(7, timeout_ms=400))) == "EXPIRED"
    calls = system.calls
    await asyncio.sleep(60)
    assert system.calls == calls
    assert sum(server.running for server in system.servers) == 0
    assert system.engine.flights_running == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [(ModelFailed("fake-0", "out of ink"), "MODEL_ERROR"), (InvalidTensor("fake-0", "odd"), "INVALID_INPUT")],
)
@simulated
async def test_models_failure_is_shared_and_forgotten(error: Exception, code: str) -> None:
    """All members of a flight hear its model's failure; the next request tries again."""
    system = make_system()
    system.server.script.append(error)
    answers = await asyncio.gather(*(system.ask(request(7)) for _ in range(3)))
    assert [code_of(answer) for answer in answers] == [code] * 3
    assert [answer.cache_status for answer in answers] == ["miss", "coalesced", "coalesced"]
    assert all(answer.instance == "fake-0" and answer.model_version == "1" for answer in answers)
    assert system.calls == 1
    assert (await system.ask(ASKED)).cache_status == "miss"


@simulated
async def test_unexpected_error_still_answers() -> None:
    """Whatever an adapter raises, those who wait are told: a bug never leaves a request without an answer."""
    system = make_system()
    system.server.script.append(ZeroDivisionError("a bug"))
    answer = await asyncio.wait_for(system.ask(ASKED), 5)
    assert code_of(answer) == "INTERNAL"
    assert (await system.ask(ASKED)).status == "succeeded"


@simulated
async def test_bug_behind_an_answer_is_reported() -> None:
    """Where handing an answer over fails, somebody who can end the process is told, instead of nobody."""
    system = make_system()
    bugs: list[BaseException] = []
    system.engine.report_bugs_to(bugs.append)

    class Broken:
        def answered(self, answer: Answer) -> None:
            raise ZeroDivisionError("a bug")

    assert system.engine.submit(ASKED, Broken()) is None
    await settle()
    await asyncio.sleep(1)
    assert [type(bug) for bug in bugs] == [ZeroDivisionError]


@simulated
async def test_requests_leave_together_after_an_outage() -> None:
    """What waited for the fleet is batched again when it is back: an outage is not followed by a storm of calls."""
    system = make_system()
    system.server.down = True
    asking = [system.start(request(number)) for number in range(200)]
    await asyncio.sleep(10)
    before = system.calls
    system.server.down = False
    answers = await asyncio.gather(*asking)
    assert {answer.status for answer in answers} == {"succeeded"}
    assert system.calls - before < 60


@simulated
async def test_outage_is_waited_out() -> None:
    """A request without a deadline survives an outage shorter than its 30 s."""
    system = make_system()
    system.server.down = True
    task = system.start(ASKED)
    await asyncio.sleep(20)
    assert not task.done()
    system.server.down = False
    answer = await task
    assert answer.status == "succeeded"
    assert answer.cache_status == "miss"
    assert (await system.ask(ASKED)).cache_status == "hit"


@simulated
async def test_outage_longer_than_the_limit_is_told() -> None:
    """Without a deadline the answer after 30 s is INFERENCE_UNAVAILABLE, retryable, naming what was said."""
    system = make_system(servers=2)
    for server in system.servers:
        server.down = True
    waiter = RecordingWaiter()
    start = the_clock().monotonic()
    system.engine.submit(ASKED, waiter)
    await asyncio.sleep(40)
    (answer,) = waiter.answers
    assert code_of(answer) == "INFERENCE_UNAVAILABLE"
    assert answer.failure is not None
    assert answer.failure.retryable
    assert "connection refused" in answer.failure.message
    assert 30.0 <= waiter.at[0] - start <= 32.5
    calls = system.calls
    await asyncio.sleep(10)
    assert system.calls == calls
    assert system.engine.flights_running == 0


@simulated
async def test_silent_fleet_is_told_after_one_more_attempt() -> None:
    """Where every attempt takes its whole time, the last one begins within the 30 s: no instance is asked later."""
    system = make_system(servers=4)
    for server in system.servers:
        server.hangs = True
    waiter = RecordingWaiter()
    start = the_clock().monotonic()
    system.engine.submit(ASKED, waiter)
    await asyncio.sleep(300)
    assert [code_of(answer) for answer in waiter.answers] == ["INFERENCE_UNAVAILABLE"]
    assert waiter.at[0] - start < 41
    assert all(heard.at - start < 30 for server in system.servers for heard in server.heard)


@simulated
async def test_deadline_in_an_outage_is_unavailable() -> None:
    """With a deadline the answer comes at the deadline, and says that nobody answered."""
    system = make_system()
    system.server.down = True
    waiter = RecordingWaiter()
    start = the_clock().monotonic()
    system.engine.submit(request(7, timeout_ms=3000), waiter)
    await asyncio.sleep(10)
    assert [code_of(answer) for answer in waiter.answers] == ["INFERENCE_UNAVAILABLE"]
    assert waiter.at[0] - start == pytest.approx(3.0)


@simulated
async def test_late_joiner_keeps_its_own_patience() -> None:
    """A request that joins a flight in trouble waits its own 30 s, not what was left of the first one's."""
    system = make_system()
    system.server.down = True
    first, late = RecordingWaiter(), RecordingWaiter()
    start = the_clock().monotonic()
    system.engine.submit(ASKED, first)
    await asyncio.sleep(25)
    system.engine.submit(ASKED, late)
    await asyncio.sleep(15)
    assert [code_of(answer) for answer in first.answers] == ["INFERENCE_UNAVAILABLE"]
    assert not late.answers
    await asyncio.sleep(5)
    system.server.down = False
    await asyncio.sleep(3)
    assert [answer.status for answer in late.answers] == ["succeeded"]
    assert late.answers[0].cache_status == "coalesced"
    assert late.at[0] - start > 40


@simulated
async def test_vanished_version_moves_unpinned_members() -> None:
    """When the fleet drops a version in flight, members without a number are answered by the new default."""
    system = make_system()
    system.server.latency_s = 1.0
    unpinned = [system.start(ASKED) for _ in range(3)]
    pinned = system.start(request(7, model_version="1"))
    await settle()
    promote(system, "two")
    answers = [await task for task in unpinned]
    assert {answer.model_version for answer in answers} == {"2"}
    assert outputs_of(answers[0]) == expected("two", ASKED)
    assert sum(len(heard.call.inputs[0].raw) for heard in system.server.heard if heard.call.model_version == "2") == 4
    gone = await pinned
    assert code_of(gone) == "VERSION_NOT_FOUND"
    key = answers[0].key
    assert key is not None
    hit = await system.ask(ASKED)
    assert (hit.cache_status, hit.key, hit.model_version) == ("hit", key, "2")


@simulated
async def test_nothing_of_a_vanished_version_is_stored() -> None:
    """An answer of the new version is stored under the new version's key and no other."""
    system = make_system()
    system.server.latency_s = 1.0
    task = system.start(ASKED)
    await settle()
    promote(system, "two")
    await task
    assert len(system.cache) == 1
    system.catalog.apply(model_record({"1": "one", "2": "two"}, "1"))
    assert code_of(await system.ask(request(7, cache_control="only-if-cached"))) == "CACHE_MISS"


@simulated
async def test_vanished_model_answers_not_found() -> None:
    """When the whole model is gone, waiting members hear MODEL_NOT_FOUND instead of waiting for it."""
    system = make_system()
    system.server.latency_s = 1.0
    task = system.start(ASKED)
    await settle()
    system.server.serves = {}
    system.catalog.discard(MODEL)
    assert code_of(await task) == "MODEL_NOT_FOUND"


@simulated
async def test_unannounced_gap_is_retried() -> None:
    """A version that a server does not serve for a moment, as after a restart, is asked again."""
    system = make_system()
    system.server.script.append(ModelNotReady("fake-0", "loading"))
    answer = await system.ask(ASKED)
    assert answer.status == "succeeded"
    assert system.calls == 2


@simulated
async def test_reentering_member_keeps_its_deadline() -> None:
    """A member that moves to another version does not get its time again."""
    system = make_system()
    system.server.latency_s = 1.0
    waiter = RecordingWaiter()
    start = the_clock().monotonic()
    system.engine.submit(request(7, timeout_ms=1800), waiter)
    await settle()
    promote(system, "two")
    await asyncio.sleep(5)
    assert [code_of(answer) for answer in waiter.answers] == ["EXPIRED"]
    assert waiter.at[0] - start == pytest.approx(1.8)


@simulated
async def test_cancelled_caller_leaves_the_flight() -> None:
    """A caller that is cancelled disturbs nobody; the others of its flight are answered."""
    system = make_system()
    one, other = system.start(ASKED), system.start(ASKED)
    await settle()
    one.cancel()
    assert (await other).status == "succeeded"
    with pytest.raises(asyncio.CancelledError):
        await one
    assert (await system.ask(ASKED)).cache_status == "hit"


@simulated
async def test_stop_ends_everything_that_runs() -> None:
    """After stop no call is out, none begins, and no task is left; queued flights do not start."""
    system = make_system(max_batch_size=1, batches_in_flight=1, servers=2)
    system.servers[1].down = True
    for server in system.servers:
        server.latency_s = 5.0
    waiters = [RecordingWaiter() for _ in range(5)]
    for number, waiter in enumerate(waiters):
        system.engine.submit(request(number), waiter)
    await asyncio.sleep(1)
    await system.engine.stop()
    calls = system.calls
    await asyncio.sleep(20)
    assert system.calls == calls
    assert sum(server.running for server in system.servers) == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert not any(waiter.answers for waiter in waiters)


@simulated
async def test_answered_request_is_let_go() -> None:
    """Once answered, nothing holds a request until its far deadline: memory follows what is in flight."""
    system = make_system()
    waiter = RecordingWaiter()
    watched = weakref.ref(waiter)
    system.engine.submit(request(7, timeout_ms=3_600_000), waiter)
    await asyncio.sleep(1)
    assert waiter.answers
    del waiter
    await settle()
    gc.collect()
    assert watched() is None


@pytest.mark.parametrize("parameters", [{"sequence_id": 5}, {"sequence_start": True}])
@simulated
async def test_requests_of_sequences_are_refused(parameters: dict[str, object]) -> None:
    """A request of a sequence is INVALID_REQUEST and reaches no server."""
    system = make_system()
    answer = await system.ask(request(7, parameters=parameters))
    assert code_of(answer) == "INVALID_REQUEST"
    assert "sequence" in str(answer.failure)
    assert system.calls == 0


@pytest.mark.parametrize("kind", ["decoupled", "stateful"])
@simulated
async def test_models_of_many_answers_are_refused(kind: str) -> None:
    """Decoupled and stateful models are INVALID_REQUEST, naming the model and why."""
    system = make_system(decoupled=kind == "decoupled", stateful=kind == "stateful")
    answer = await system.ask(ASKED)
    assert code_of(answer) == "INVALID_REQUEST"
    assert MODEL in str(answer.failure)
    assert system.calls == 0


@simulated
async def test_version_content_is_part_of_the_key() -> None:
    """The same number with other content is another model: its answers are computed anew."""
    system = make_system()
    await system.ask(ASKED)
    promote(system, "one, retrained", number="1")
    answer = await system.ask(ASKED)
    assert answer.cache_status == "miss"
    assert outputs_of(answer) == expected("one, retrained", ASKED)


def _switching(effective_at: float, *, previous: str | None = "1") -> ModelCatalog:
    record = model_record({"1": "one", "2": "two"}, "2", previous=previous, effective_at=effective_at)
    return ModelCatalog([record])


@pytest.mark.parametrize(
    ("now", "version", "answered_by"),
    [
        (9.999999, None, "1"),
        (10.0, None, "2"),
        (11.0, None, "2"),
        (9.0, "2", "2"),
        (11.0, "1", "1"),
    ],
)
def test_promotion_counts_from_effective_at(now: float, version: str | None, answered_by: str) -> None:
    """Until effective_at the previous version is the default, from then on the new one; a number names itself."""
    resolved = _switching(10.0).resolve(MODEL, version, UNIX_START + now)
    assert resolved.version == answered_by


def test_first_version_serves_before_its_time() -> None:
    """A model without a previous version is served by its default at once."""
    assert _switching(10.0, previous=None).resolve(MODEL, None, UNIX_START).version == "2"


@pytest.mark.parametrize(
    ("model", "version", "code", "named"),
    [
        ("absent", None, "MODEL_NOT_FOUND", ["'absent'", MODEL]),
        (MODEL, "3", "VERSION_NOT_FOUND", ["'3'", "1, 2"]),
        (MODEL, "01", "VERSION_NOT_FOUND", ["'01'"]),
    ],
)
def test_unserved_names_are_told(model: str, version: str | None, code: str, named: list[str]) -> None:
    """What is not served is refused by name, with what is served instead."""
    with pytest.raises(WireError) as raised:
        _switching(10.0).resolve(model, version, UNIX_START)
    assert raised.value.code == code
    assert all(word in raised.value.message for word in named)


@pytest.mark.parametrize(("appended", "answered_by"), [(9.0, "1"), (10.0, "2"), (12.0, "2")])
@simulated
async def test_slow_clock_cannot_undo_a_promotion(appended: float, answered_by: str) -> None:
    """A record appended after effective_at gets the new default, even where this clock is behind."""
    system = make_system(versions={"1": "one", "2": "two"})
    system.catalog.apply(model_record({"1": "one", "2": "two"}, "2", previous="1", effective_at=10.0))
    clock = the_clock()
    clock.skew_s = -30.0
    waiter = RecordingWaiter()
    system.engine.submit(ASKED, waiter, appended_at=UNIX_START + appended)
    await asyncio.sleep(1)
    assert waiter.answers[0].model_version == answered_by


@simulated
async def test_reentry_remembers_when_it_was_appended() -> None:
    """A member that enters again is resolved no earlier than its record was appended."""
    system = make_system(versions={"1": "one", "2": "two", "3": "three"})
    contents = {"1": "one", "2": "two", "3": "three"}
    system.catalog.apply(model_record(contents, "2", previous="1", effective_at=10.0))
    the_clock().skew_s = -30.0
    waiter = RecordingWaiter()
    system.server.latency_s = 1.0
    system.engine.submit(ASKED, waiter, appended_at=UNIX_START + 15.0)
    await settle()
    system.server.serves.pop((MODEL, "2"))
    system.catalog.apply(model_record({"1": "one", "3": "three"}, "3", previous="1", effective_at=12.0))
    await asyncio.sleep(10)
    assert [answer.model_version for answer in waiter.answers] == ["3"]


@simulated
async def test_batch_dependent_answers_are_replayed() -> None:
    """Where answers depend on their batch, a hit repeats the bytes that were given first."""
    system = make_system(loaded={"1": FakeVersion("one", row_depends_on_batch=True)})
    answers = await asyncio.gather(*(system.ask(request(number)) for number in range(4)))
    assert outputs_of(answers[0]) != expected("one", request(0))
    for number, answer in enumerate(answers):
        assert (await system.ask(request(number))).outputs is answer.outputs


@simulated
async def test_server_down_for_some_is_no_failure() -> None:
    """One dead instance of two costs nobody an answer."""
    system = make_system(servers=2)
    system.servers[0].down = True
    answers: list[Answer] = [await system.ask(request(number)) for number in range(40)]
    assert {answer.status for answer in answers} == {"succeeded"}
    assert {answer.instance for answer in answers} == {"fake-1"}


@simulated
async def test_clock_of_the_loop_and_the_engine_agree() -> None:
    """The virtual loop moves the very clock that the engine reads."""
    clock = the_clock()
    assert isinstance(clock, FakeClock)
    before = clock.now()
    await asyncio.sleep(2.5)
    assert clock.now() - before == pytest.approx(2.5)
