"""How misses leave: together where they may, in order, within limits, elsewhere when an instance does not answer."""

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from pipeline.core.answer import Answer
from pipeline.core.batching import BATCH_BYTES_MAX
from pipeline.errors import ModelFailed, ServerUnavailable
from pipeline.metrics import EngineMetrics
from pipeline.ports import InferenceCall
from schemas.request import InferenceRequest
from schemas.tensor import Tensor
from tests.simulation.fleet import FAILING_ROW, REFUSED_ROW, FakeVersion, right_outputs, rows_of
from tests.simulation.system import MODEL, System, code_of, expected, make_system, model_record, outputs_of, request
from tests.simulation.virtual_time import FakeClock, settle, simulated


class OddRowsFail:
    """A version that fails every call with an odd number in it."""

    def answer(self, instance: str, call: InferenceCall) -> tuple[Tensor, ...]:
        """As `content-1` does, else."""
        numbers = [int.from_bytes(row[-4:], "little") for row in rows_of(call.inputs, batched=True)]
        if any(number % 2 for number in numbers):
            raise ModelFailed(instance, "odd row")
        return right_outputs("content-1", call.inputs, call.parameters or {})


async def answers_of(system: System, *asked: InferenceRequest) -> list[Answer]:
    """All of these at the same time; every one that succeeds must have its own right answer."""
    answers = await asyncio.gather(*map(system.ask, asked))
    for one, answer in zip(asked, answers, strict=True):
        if answer.status == "succeeded":
            assert outputs_of(answer) == expected(f"content-{answer.model_version}", one)
    return answers


def system_of(**changes: Any) -> System:
    """A system whose version N has the content `content-N`."""
    return make_system(**{"versions": {"1": "content-1", "2": "content-2"}, **changes})


def batch_sizes(system: System) -> list[int]:
    """Rows of each call, in order."""
    return [heard.rows for server in system.servers for heard in server.heard]


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ({}, {}, True),
        ({"parameters": {"t": 1}}, {"parameters": {"t": 1}}, True),
        ({"parameters": {"t": 1}}, {"parameters": {"t": 1.0}}, False),
        ({"parameters": {"t": 1}}, {"parameters": {"t": True}}, False),
        ({"parameters": {"t": 0.0}}, {"parameters": {"t": -0.0}}, False),
        ({"parameters": {"t": 1}}, {"parameters": {"t": "1"}}, False),
        ({"parameters": {"priority": 1}}, {"parameters": {"priority": 2}}, False),
        ({"parameters": {"timeout": 5}}, {}, False),
        ({}, {"parameters": {"binary_data_output": True}}, True),
        ({}, {"outputs": [{"name": "y"}]}, False),
        ({}, {"outputs": [{"name": "y"}, {"name": "text"}]}, True),
        ({"outputs": [{"name": "y", "parameters": {"k": 1}}]}, {"outputs": [{"name": "y"}]}, False),
        ({}, {"model_version": "1"}, True),
        ({}, {"model_version": "2"}, False),
        ({}, {"tenant": "acme"}, True),
        ({}, {"timeout_ms": 5000}, True),
        ({}, {"enable_cache": False}, True),
    ],
)
@simulated
async def test_only_like_requests_share_a_batch(one: dict[str, Any], other: dict[str, Any], together: bool) -> None:
    """Requests leave in one call only where the call says the same for all of them."""
    system = system_of()
    answers = await answers_of(system, request(1, **one), request(2, **other))
    assert all(answer.status == "succeeded" for answer in answers)
    assert batch_sizes(system) == ([2] if together else [1, 1])


@simulated
async def test_other_shapes_leave_alone() -> None:
    """Rows of another length are another group; so is another order of the inputs."""
    system = system_of()
    wide = request(inputs=[{"name": "x", "datatype": "INT32", "shape": [1, 2], "data": [1, 2]}])
    await answers_of(system, request(1), wide, request(2))
    assert sorted(batch_sizes(system)) == [1, 2]


@simulated
async def test_what_arrives_together_rides_together() -> None:
    """All requests of one turn of the loop leave at once, up to the model's largest batch, in their order."""
    system = system_of()
    await answers_of(system, *(request(number) for number in range(20)))
    assert sorted(batch_sizes(system), reverse=True) == [8, 8, 4]
    sent = b"".join(heard.call.inputs[0].raw for heard in system.server.heard)
    assert sent == b"".join(number.to_bytes(4, "little") for number in range(20))


@simulated
async def test_idle_server_is_never_kept_waiting() -> None:
    """A lone request leaves in the very moment it comes."""
    system = system_of()
    task = system.start(request(1))
    await settle()
    assert system.calls == 1
    assert system.server.heard[0].at == system.clock.monotonic()
    await task


@simulated
async def test_requests_collect_while_a_batch_is_out() -> None:
    """What comes while a partial batch is out waits for it, then leaves as one batch."""
    system = system_of()
    tasks = [system.start(request(0))]
    for number in range(1, 6):
        await asyncio.sleep(0.001)
        tasks.append(system.start(request(number)))
    await asyncio.gather(*tasks)
    assert batch_sizes(system) == [1, 5]
    first, second = system.server.heard
    assert first.ended_at == second.at


@pytest.mark.parametrize(("servers", "window", "running"), [(1, 1, 1), (1, 4, 4), (2, 2, 4)])
@simulated
async def test_full_batches_stay_within_the_window(servers: int, window: int, running: int) -> None:
    """Full batches go out up to the window of each instance, no more, however many wait."""
    system = system_of(servers=servers, batches_in_flight=window)
    tasks = [system.start(request(number)) for number in range(8 * 12)]
    await settle()
    assert sum(server.running for server in system.servers) == running
    await asyncio.gather(*tasks)
    assert set(batch_sizes(system)) == {8}


@simulated
async def test_rows_of_a_request_stay_together() -> None:
    """A request's rows are never divided, and no batch has more rows than the model takes."""
    system = system_of()
    sizes = [3, 3, 3, 8, 1, 7, 2, 6]
    asked = [request(*range(100 * index, 100 * index + size)) for index, size in enumerate(sizes)]
    await answers_of(system, *asked)
    assert sum(batch_sizes(system)) == sum(sizes)
    assert max(batch_sizes(system)) <= 8
    assert batch_sizes(system) == [6, 3, 8, 8, 8]


@simulated
async def test_large_tensors_are_not_joined() -> None:
    """A batch ends before it passes the bytes that joining is worth."""
    system = system_of()
    length = BATCH_BYTES_MAX // 4 // 2
    asked = [
        request(inputs=[{"name": "x", "datatype": "INT32", "shape": [1, length], "data": [index] * length}])
        for index in range(4)
    ]
    await answers_of(system, *asked)
    assert batch_sizes(system) == [2, 2]


@pytest.mark.parametrize("changes", [{"max_batch_size": 0}, {"client_batching": False}, {"max_batch_size": 1}])
@simulated
async def test_unbatchable_models_are_called_singly(changes: dict[str, Any]) -> None:
    """A model without a batch axis, or whose owner said so, gets every request in a call of its own."""
    system = make_system(**changes)
    batched = changes.get("max_batch_size") != 0
    shape = [1, 1] if batched else [1]
    inputs = [[{"name": "x", "datatype": "INT32", "shape": shape, "data": [number]}] for number in range(6)]
    asked = [request(inputs=given) for given in inputs]
    answers = await asyncio.gather(*map(system.ask, asked))
    for one, answer in zip(asked, answers, strict=True):
        assert outputs_of(answer) == expected("one", one, batched=batched)
    assert batch_sizes(system) == [1] * 6
    assert system.server.running_max == 4


@pytest.mark.parametrize(("bad", "code"), [(FAILING_ROW, "MODEL_ERROR"), (REFUSED_ROW, "INVALID_INPUT")])
@simulated
async def test_bad_row_fails_alone(bad: int, code: str) -> None:
    """One row that fails its batch fails its own request only; the others get their answers."""
    system = system_of()
    numbers = [1, 2, 3, bad, 5, 6, 7]
    answers = await answers_of(system, *map(request, numbers))
    assert [code_of(answer) for answer in answers] == ["", "", "", code, "", "", ""]
    assert batch_sizes(system) == [7, 3, 4, 2, 2, 1, 1]


@simulated
async def test_parts_of_a_failed_batch_are_few_at_once() -> None:
    """However many rows fail, at most eight parts run at a time; who expired meanwhile is left out."""
    system = system_of(max_batch_size=64)
    system.server.latency_s = 1.0
    system.server.serves = dict.fromkeys(system.server.serves, OddRowsFail())
    tasks = [system.start(request(number, timeout_ms=1500 if number < 4 else None)) for number in range(32)]
    codes = [code_of(await task) for task in tasks]
    assert system.server.running_max == 8
    assert codes == ["EXPIRED"] * 4 + ["", "MODEL_ERROR"] * 14
    assert system.calls == 1 + 2 + 4 + 8 + 16 + 24


@pytest.mark.parametrize("wrong", [lambda rows: 1, lambda rows: rows + 1, lambda rows: 0])
@simulated
async def test_unsplittable_model_falls_back_to_singles(wrong: Any) -> None:
    """A model that answers with another number of rows is asked one by one, at once and from then on."""
    system = system_of(loaded={"1": FakeVersion("content-1", rows_answered=wrong)})
    first = await answers_of(system, *(request(number) for number in range(6)))
    assert all(answer.status == "succeeded" for answer in first)
    assert batch_sizes(system) == [6] + [1] * 6
    await answers_of(system, *(request(number) for number in range(10, 15)))
    assert batch_sizes(system)[7:] == [1] * 5


@simulated
async def test_unsplittable_model_is_remembered_under_load() -> None:
    """The queue that was waiting when the model showed itself unsplittable is not batched any more either."""
    system = system_of(loaded={"1": FakeVersion("content-1", rows_answered=lambda rows: 1)}, batches_in_flight=1)
    await answers_of(system, *(request(number) for number in range(30)))
    assert [size for size in batch_sizes(system) if size > 1] == [8]


@simulated
async def test_unavailable_instance_passes_the_batch_on() -> None:
    """A batch that gets no answer goes to another instance as it is, not row by row."""
    system = system_of(servers=2)
    for server in system.servers:
        server.script.append(ServerUnavailable(server.name, "queue full"))
    system.servers[1].script.clear()
    system.servers[0].latency_s = 0.001
    answers = await answers_of(system, *(request(number) for number in range(6)))
    assert {answer.status for answer in answers} == {"succeeded"}
    assert set(batch_sizes(system)) == {6}


@simulated
async def test_model_failure_is_not_tried_elsewhere() -> None:
    """A failure of the model itself is an answer: no second instance is asked."""
    system = system_of(servers=3)
    for server in system.servers:
        server.script.append(ModelFailed(server.name, "no"))
    (answer,) = await answers_of(system, request(1))
    assert code_of(answer) == "MODEL_ERROR"
    assert system.calls == 1


@pytest.mark.parametrize(
    ("timeouts", "passed_on"),
    [([500], 0.5), ([None], 20.0), ([500, 1500], 1.5), ([500, None], 20.0), ([60_000], 20.0)],
)
@simulated
async def test_call_gets_the_longest_deadline(timeouts: list[int | None], passed_on: float) -> None:
    """A call may take until the last of its waiters gives up, but no longer than one attempt."""
    system = system_of()
    asked = [request(index, timeout_ms=timeout) for index, timeout in enumerate(timeouts)]
    await answers_of(system, *asked)
    (heard,) = system.server.heard
    assert heard.timeout_s == pytest.approx(passed_on)


@simulated
async def test_short_deadline_does_not_kill_its_neighbours() -> None:
    """In one batch each request expires by itself; the call goes on for the others."""
    system = system_of()
    system.server.latency_s = 1.0
    answers = await answers_of(system, request(1, timeout_ms=300), request(2), request(3, timeout_ms=5000))
    assert [code_of(answer) for answer in answers] == ["EXPIRED", "", ""]
    assert batch_sizes(system) == [3]


@simulated
async def test_call_names_version_outputs_and_parameters() -> None:
    """The server is told the very version, the outputs in the order asked, and what reaches the model."""
    system = system_of()
    asked = request(
        4,
        model_version="2",
        outputs=[{"name": "text"}, {"name": "y", "parameters": {"binary_data": True, "k": 3}}],
        parameters={"t": 0.5, "priority": 2, "binary_data_output": True},
    )
    await answers_of(system, asked)
    call = system.server.heard[0].call
    assert (call.model_name, call.model_version) == (MODEL, "2")
    assert list(call.outputs) == [("text", {}), ("y", {"k": 3})]
    assert call.parameters == {"t": 0.5, "priority": 2}


@simulated
async def test_fleet_without_instances_is_unavailable() -> None:
    """No configured instance is an outage like any other, and is told as one."""
    system = make_system(servers=0, unavailable_timeout_s=1.0)
    assert code_of(await system.ask(request(1))) == "INFERENCE_UNAVAILABLE"


@simulated
async def test_groups_are_let_go() -> None:
    """A group that has nothing waiting and nothing out is forgotten: groups do not pile up."""
    system = system_of()
    await answers_of(system, *(request(number, parameters={"t": number}) for number in range(50)))
    await settle()
    assert not len(system.dispatcher._queue)


@simulated
async def test_new_content_is_a_new_group() -> None:
    """Requests of the old content of a version never share a call with those of the new one."""
    system = system_of()
    old = system.start(request(1))
    system.start(request(0))
    await settle()
    waiting = system.start(request(2))
    await settle()
    system.catalog.apply(model_record({"1": "other"}, "1"))
    other = system.start(request(3))
    await settle()
    await asyncio.gather(old, waiting, other)
    assert batch_sizes(system) == [2, 1, 1]


async def knowing(system: System, count: int = 64) -> None:
    """Makes so many calls of one row, one by one, that what they take is known."""
    for number in range(count):
        assert (await system.ask(request(10_000 + number))).status == "succeeded"


@simulated
async def test_silent_instance_costs_five_times_the_usual() -> None:
    """A call that an instance swallows is soon answered by another, not after its timeout; the first is cancelled."""
    system = system_of(servers=2)
    await knowing(system)
    silent, other = system.servers
    silent.hangs = True
    other.latency_s = 0.02  # the silent one looks better
    began = system.clock.monotonic()
    answers = [await system.ask(request(number)) for number in range(20)]
    assert {answer.status for answer in answers} == {"succeeded"}
    assert silent.cancelled >= 1
    assert silent.running <= 1, "but for a probe nothing is left there"
    assert system.clock.monotonic() - began <= 20 * 0.02 + 3 * 0.05 + 1e-6
    assert max(answer.inference_s or 0.0 for answer in answers) < 0.03


@simulated
async def test_slower_model_still_has_its_answer() -> None:
    """A model that takes fifty times what it took is not cut off: the first attempt is heard, few copies are made."""
    system = system_of(servers=2)
    await knowing(system)
    before = system.calls
    for server in system.servers:
        server.latency_s = 0.5
    began = system.clock.monotonic()
    answers = [await system.ask(request(number)) for number in range(40)]
    assert {answer.status for answer in answers} == {"succeeded"}
    assert system.clock.monotonic() - began == pytest.approx(20.0)
    assert system.calls - before <= 40 + 14


@simulated
async def test_retries_are_a_budget() -> None:
    """While no instance answers, there are few calls more than requests and rounds; all are answered once one does."""
    system = system_of(servers=4)
    for server in system.servers:
        server.down = True
    tasks = [system.start(request(number, parameters={"t": number})) for number in range(30)]
    await settle()
    first_round = system.calls
    assert first_round <= 30 + 10 + 3
    await asyncio.sleep(3)
    for server in system.servers:
        server.down = False
    assert {(await task).status for task in tasks} == {"succeeded"}


@simulated
async def test_ejected_instance_is_probed_behind_a_request() -> None:
    """Nobody waits for the copy that finds out whether an instance is back; when it is, it is used again."""
    system = system_of(servers=2)
    down = system.servers[0]
    down.down = True
    for number in range(20):
        await system.ask(request(number))
    assert system.router.instances[down.name].ejected
    down.down, down.hangs = False, True
    began = system.clock.monotonic()
    for number in range(100, 200):
        await system.ask(request(number))
    assert system.clock.monotonic() - began == pytest.approx(1.0)
    down.hangs = False
    for number in range(200, 2200):
        await system.ask(request(number))
    assert not system.router.instances[down.name].ejected
    view = next(view for view in system.dispatcher.view().instances if view.name == down.name)
    assert view.probes >= 2
    assert view.share == 1.0


@simulated
async def test_pause_of_this_process_is_no_failure_of_an_instance() -> None:
    """Calls that end in a timeout because this process stood still are no strikes, whatever the wall clock says."""
    system = system_of(servers=2, attempt_timeout_s=1.0)
    for server in system.servers:
        server.latency_s = 5.0
    tasks = [system.start(request(number, parameters={"t": number})) for number in range(6)]
    await asyncio.sleep(0.15)
    for server in system.servers:
        server.latency_s = 0.01
    assert isinstance(system.clock, FakeClock)
    system.clock.advance(10.0)  # nothing runs meanwhile: all six are out of time when it goes on
    assert {(await task).status for task in tasks} == {"succeeded"}
    loads = system.router.instances.values()
    assert all(load.unanswered == load.ejections == 0 and load.latency_s < 1.0 for load in loads), loads


@simulated
async def test_near_deadline_leaves_alone_before_the_batch() -> None:
    """One whose time ends before a batch would is sent by itself; it does not drag the others, nor wait for them."""
    system = system_of(batches_in_flight=1)
    system.server.latency_s = lambda call: 0.02 * call.inputs[0].shape[0]
    for number in range(40):
        await asyncio.gather(*(system.ask(request(100 * number + row)) for row in range(1, 7)))
    before = len(system.server.heard)
    near = request(9_999, timeout_ms=60)
    answers = await answers_of(system, *(request(9_000 + row) for row in range(4)), near, request(9_500))
    assert [code_of(answer) for answer in answers] == [""] * 6
    assert [heard.rows for heard in system.server.heard[before:]] == [1, 5]


@simulated
async def test_metrics_tell_who_got_what() -> None:
    """Calls by instance and outcome, retries, what waits: all of it can be scraped."""
    registry = CollectorRegistry()
    system = system_of(servers=2, metrics=EngineMetrics(registry))
    down, other = system.servers
    down.down = True
    for number in range(20):
        await system.ask(request(number))
    waiting = [system.start(request(number, parameters={"t": 1})) for number in range(30, 60)]
    await settle()

    def reading(name: str, **labels: str) -> float:
        return registry.get_sample_value(name, labels) or 0.0

    assert reading("pipeline_instance_calls_total", instance=other.name, outcome="answered") == 20
    assert reading("pipeline_instance_calls_total", instance=down.name, outcome="unavailable") >= 3
    assert reading("pipeline_instance_retries_total", instance=other.name) >= 3
    assert reading("pipeline_instance_ejected", instance=down.name) == 1
    assert reading("pipeline_instance_ejections_total", instance=down.name) == 1
    assert reading("pipeline_instance_in_flight", instance=other.name) == reading(
        "pipeline_fleet_in_flight", model_name=MODEL
    )
    assert reading("pipeline_fleet_queue", model_name=MODEL) == 30 - 8 * reading(
        "pipeline_fleet_in_flight", model_name=MODEL
    )
    await asyncio.gather(*waiting)
