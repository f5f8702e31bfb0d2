"""`map` and `infer` on an event loop: order, bounds, errors, cancellation, retries."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from random import Random
from typing import Any

import pytest

from pipeline.client import InferenceFailed, KafkaUnavailable, Progress
from pipeline.client.records import RequestRecord
from pipeline.client.retrying import Backoff, asked_for_s
from schemas.request import decode_request
from schemas.result import InferenceResult
from tests.client.held_client import HeldClient, Outcome, success
from tests.client.scripted_topics import failed_record, result_record

Inputs = dict[str, Any]


def inputs(count: int) -> list[Inputs]:
    """So many different inputs."""
    return [{"image": [number]} for number in range(count)]


async def ids_of(answers: AsyncIterator[Any]) -> list[str]:
    """The ids of answers, as they come."""
    return [answer.id if isinstance(answer, InferenceResult) else str(answer) async for answer in answers]


async def keep_ids(answers: AsyncIterator[InferenceResult], kept: list[str]) -> None:
    """Keeps the ids of answers, also of those before an error."""
    async for answer in answers:
        kept.append(answer.id)  # noqa: PERF401 - an error must not lose them


async def test_answers_keep_the_order_of_inputs() -> None:
    """Answers that come in the other direction are yielded in the order of the inputs."""
    client = HeldClient()
    listening = asyncio.create_task(ids_of(client.map("m", inputs(5), id_of=str)))
    await client.until_asked(5)
    for number in (4, 3, 2, 1, 0):
        client.answer(str(number))
    assert await listening == ["0", "1", "2", "3", "4"]


async def test_unordered_answers_are_yielded_as_they_come() -> None:
    """Without order the first answer is the first one yielded."""
    client = HeldClient()
    listening = asyncio.create_task(ids_of(client.map("m", inputs(3), ordered=False, id_of=str)))
    await client.until_asked(3)
    for number in (2, 0, 1):
        client.answer(str(number))
        await asyncio.sleep(0)
    assert await listening == ["2", "0", "1"]


@pytest.mark.parametrize("ordered", [True, False])
async def test_inputs_are_read_no_further_than_allowed(ordered: bool) -> None:
    """Exactly `concurrency` inputs are read ahead of the consumer, whether they are answered or not."""
    client = HeldClient()
    read = 0

    def counted() -> Iterator[Inputs]:
        nonlocal read
        for one in inputs(40):
            read += 1
            yield one

    async with aclosing(client.map("m", counted(), concurrency=4, ordered=ordered, id_of=str)) as answers:
        for consumed in range(20):
            waiting = asyncio.ensure_future(anext(answers))
            await client.until_asked(consumed + 4)
            # Whatever may happen before the next answer happens.
            for _ in range(10):
                await asyncio.sleep(0)
            assert (len(client.asked), read) == (consumed + 4, consumed + 4)
            client.answer(str(consumed))
            assert (await waiting).id == str(consumed)


async def test_slow_source_holds_no_answer_back() -> None:
    """An answer is yielded while the source of the next input is still waited for."""
    gate = asyncio.Event()

    async def slow() -> AsyncIterator[Inputs]:
        yield {"image": [0]}
        await gate.wait()
        yield {"image": [1]}

    seen = []
    async for answer in HeldClient(success).map("m", slow(), id_of=str):
        seen.append(answer.id)
        gate.set()
    assert seen == ["0", "1"]


async def test_first_error_is_raised_in_its_turn_and_stops_the_rest() -> None:
    """The answers before an error are yielded, the error is raised, what is out is no longer waited for."""
    client = HeldClient()
    seen: list[str] = []

    consuming = asyncio.create_task(keep_ids(client.map("m", inputs(9), concurrency=3, id_of=str), seen))
    await client.until_asked(3)
    client.answer("1", failed_record("1", 0, "MODEL_ERROR"))
    client.answer("0")
    with pytest.raises(InferenceFailed) as raised:
        await consuming
    assert (raised.value.request_id, seen) == ("1", ["0"])
    assert set(client.cancelled) == set(client.asked) - {"0", "1"}


async def test_errors_can_be_values() -> None:
    """With `return_exceptions` an error takes the place of its answer and the others go on."""

    def script(record: RequestRecord) -> Outcome:
        return KafkaUnavailable("gone") if record.id == "1" else result_record(record.id, 0)

    assert await ids_of(HeldClient(script).map("m", inputs(3), return_exceptions=True, id_of=str)) == ["0", "gone", "2"]


async def test_mistakes_are_raised_even_where_errors_are_values() -> None:
    """What is no error of the pipeline is a bug, and no answer."""

    def broken(number: int) -> str:
        raise KeyError(number)

    with pytest.raises(KeyError):
        await ids_of(HeldClient(success).map("m", inputs(3), return_exceptions=True, id_of=broken))


async def test_leaving_the_loop_stops_what_is_out() -> None:
    """A consumer that leaves early waits for nothing more, and reads nothing more."""
    client = HeldClient()
    async with aclosing(client.map("m", iter(inputs(100)), concurrency=4, id_of=str)) as answers:
        waiting = asyncio.ensure_future(anext(answers))
        await client.until_asked(4)
        client.answer("0")
        await waiting
    assert set(client.cancelled) == set(client.asked) - {"0"}
    assert len(client.asked) <= 5


async def test_cancelled_consumer_stops_what_is_out() -> None:
    """Cancelling the task that consumes cancels every request's waiting and the reading of the source."""
    client = HeldClient()
    ended = []

    async def source() -> AsyncIterator[Inputs]:
        try:
            yield {"image": [0]}
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    consuming = asyncio.create_task(ids_of(client.map("m", source(), id_of=str)))
    await client.until_asked(1)
    consuming.cancel()
    with pytest.raises(asyncio.CancelledError):
        await consuming
    assert (client.cancelled, ended) == (["0"], [True])


async def test_source_that_fails_is_told_after_its_answers() -> None:
    """What the source gave before it failed is answered first."""

    def source() -> Iterator[Inputs]:
        yield from inputs(2)
        raise OSError("the disk is gone")

    seen: list[str] = []
    with pytest.raises(OSError, match="disk"):
        await keep_ids(HeldClient(success).map("m", source(), id_of=str), seen)
    assert seen == ["0", "1"]


async def test_progress_counts_everything() -> None:
    """Every answer is told once, with hits, failures and the total where it can be known."""

    def script(record: RequestRecord) -> Outcome:
        if record.id == "0":
            return failed_record("0", 0, "MODEL_ERROR")
        return result_record(record.id, 0, parameters={"cache_status": "hit" if record.id == "1" else "miss"})

    told: list[Progress] = []
    client = HeldClient(script)
    await ids_of(client.map("m", inputs(3), return_exceptions=True, on_progress=told.append, id_of=str))
    assert [one.done for one in told] == [1, 2, 3]
    assert told[-1] == Progress(taken=3, done=3, failed=1, hits=1, total=3)
    await ids_of(client.map("m", iter(inputs(1)), on_progress=told.append))
    assert told[-1].total is None


async def test_failing_progress_is_raised_at_once() -> None:
    """What `on_progress` raises ends the map, though other answers are still out."""
    client = HeldClient()

    def stop(progress: Progress) -> None:
        raise RuntimeError("enough")

    consuming = asyncio.create_task(ids_of(client.map("m", inputs(2), on_progress=stop, id_of=str)))
    await client.until_asked(2)
    client.answer("1")
    with pytest.raises(RuntimeError, match="enough"):
        await consuming
    assert client.cancelled == ["0"]


async def test_nothing_is_mapped_to_nothing() -> None:
    """No inputs, no answers; room for none at all is refused."""
    assert await ids_of(HeldClient().map("m", [])) == []
    with pytest.raises(ValueError, match="concurrency is 0"):
        HeldClient().map("m", [], concurrency=0)


async def test_retries_ask_again_under_fresh_ids() -> None:
    """An answer that can be another one later is asked for again, as often as allowed and under another id."""
    codes = iter(["OVERLOADED", "INFERENCE_UNAVAILABLE", None])

    def script(record: RequestRecord) -> Outcome:
        code = next(codes)
        return result_record(record.id, 0) if code is None else failed_record(record.id, 0, code)

    client = HeldClient(script)
    result = await client.infer("m", {"image": [1]}, id="mine", retries=2, timeout_s=30)
    assert client.asked[0] == "mine"
    assert len(set(client.asked)) == 3
    assert result.id == client.asked[-1]


@pytest.mark.parametrize(
    ("code", "retries", "timeout_s"),
    [("OVERLOADED", 0, None), ("INVALID_INPUT", 5, None), ("EXPIRED", 5, None), ("OVERLOADED", 5, 0.0)],
)
async def test_what_no_retry_helps_is_raised_at_once(code: str, retries: int, timeout_s: float | None) -> None:
    """No retry without leave, of what stays wrong, or past the caller's time."""
    client = HeldClient(lambda record: failed_record(record.id, 0, code))
    with pytest.raises(InferenceFailed, match=code):
        await client.infer("m", {"image": [1]}, retries=retries, timeout_s=timeout_s)
    assert len(client.asked) == 1


async def test_retry_has_what_is_left_of_the_time() -> None:
    """One deadline covers all attempts: each later one says less on the wire."""
    records: list[RequestRecord] = []

    def script(record: RequestRecord) -> Outcome:
        records.append(record)
        return failed_record(record.id, 0, "OVERLOADED") if len(records) < 3 else result_record(record.id, 0)

    await HeldClient(script).infer("m", {"image": [1]}, retries=9, timeout_s=30)
    limits = [decode_request(record.value).timeout_ms or 0 for record in records]
    assert limits[0] == 30_000
    assert limits == sorted(limits, reverse=True)
    assert limits[-1] < limits[0]


async def test_awaiting_a_receipt_is_its_result() -> None:
    """`await submitted` is `await submitted.result()`."""
    submitted = await HeldClient(success).submit("m", {"image": [1]}, id="mine")
    assert (await submitted).id == "mine"
    assert submitted.receipt == {"id": "mine", "partition": 0, "offset": 0}


def test_pauses_grow_to_a_bound_behind_what_was_asked_for() -> None:
    """Pauses are random within a bound that doubles up to its limit; a server's own pause comes before."""
    backoff = Backoff(Random(1), first_s=1.0, most_s=4.0)
    pauses = [[Backoff(Random(seed), first_s=1.0, most_s=4.0) for seed in range(300)]]
    bounds = [max(one.next_s() for one in pauses[0]) for _ in range(4)]
    assert [round(bound) for bound in bounds] == [1, 2, 4, 4]
    assert 10 <= backoff.next_s(at_least_s=10) <= 11
    backoff.reset()
    assert backoff.next_s() <= 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, 0), ("0", 0), ("120", 120), (" 5 ", 5), ("-1", 0), ("1.5", 0), ("soon", 0), ("", 0), ("9" * 50, 0),
        ("Thu, 01 Jan 1970 00:01:00 GMT", 30), ("Thu, 01 Jan 1970 00:00:10 GMT", 0), ("Thu, 99 Foo 1970", 0),
    ],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date(text: str | None, seconds: float) -> None:
    """Both forms of RFC 9110 are read; anything else asks for nothing."""
    assert asked_for_s(text, now=30.0) == seconds
