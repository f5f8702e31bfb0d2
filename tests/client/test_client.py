"""The client's promises, on topics that answer as the test says."""

import asyncio
import gc

import numpy as np
import pytest

from pipeline.client import KafkaUnavailable, ResultNotReceived, outputs_as_numpy
from pipeline.client.pending import ResultRecord
from pipeline.client.records import RequestRecord
from pipeline.errors import InferenceFailed
from schemas.errors import ErrorCode
from schemas.request import decode_request
from tests.client.scripted_topics import PARTITIONS, ScriptedClient, failed_record, result_record

PIXELS = np.zeros((1, 64), np.float32)


async def test_infer_returns_the_answer_of_its_own_request() -> None:
    """An answer is given to the request whose id it names, with its outputs as numpy arrays."""
    async with ScriptedClient(lambda record, partition: [result_record(record.id, partition)]) as client:
        result = await client.infer("digits", {"image": PIXELS}, id="mine")
    assert (result.id, result.parameters.cache_status) == ("mine", "miss")
    assert {name: array.tolist() for name, array in outputs_as_numpy(result).items()} == {"label": [[7]]}


async def test_first_result_of_an_id_counts() -> None:
    """A later result with the same id is ignored."""

    def twice(record: RequestRecord, partition: int) -> list[ResultRecord]:
        return [result_record("x", partition, model_version=version) for version in ("1", "2")]

    async with ScriptedClient(twice) as client:
        result = await client.infer("digits", {"image": PIXELS}, id="x")
    assert result.model_version == "1"


async def test_same_id_in_another_partition_is_ignored() -> None:
    """A result counts only in the partition of its request: an id elsewhere is another request."""
    async with ScriptedClient(
        lambda record, partition: [
            result_record(record.id, (partition + 1) % PARTITIONS, model_version="9"),
            result_record(record.id, partition, model_version="2"),
        ]
    ) as client:
        result = await client.infer("digits", {"image": PIXELS})
    assert result.model_version == "2"


async def test_others_results_are_never_parsed() -> None:
    """A result for somebody else is passed by on its header alone, even if its value is broken."""
    async with ScriptedClient(
        lambda record, partition: [
            result_record("other", partition)._replace(value=b"not JSON"),
            result_record(record.id, partition)._replace(headers=[]),
            result_record(record.id, partition),
        ]
    ) as client:
        assert (await client.infer("digits", {"image": PIXELS})).status == "succeeded"


async def test_failed_answer_raises_its_code() -> None:
    """`infer` raises what a failed answer says; `answer` returns it as it stands."""
    async with ScriptedClient(lambda record, p: [failed_record(record.id, p, "MODEL_NOT_FOUND")]) as client:
        with pytest.raises(InferenceFailed, match="as the script says") as raised:
            await client.infer("nope", {"image": PIXELS}, id="r-1")
        submitted = await client.submit("nope", {"image": PIXELS})
        answer = await submitted.answer()
    assert (raised.value.code, raised.value.request_id) == (ErrorCode.MODEL_NOT_FOUND, "r-1")
    assert answer.status == "failed"


async def test_missing_answer_ends_in_a_typed_error() -> None:
    """A wait without an answer ends at its limit and says that the answer may still come."""
    async with ScriptedClient(lambda record, partition: [], answer_timeout_s=0.01) as client:
        with pytest.raises(ResultNotReceived, match="it may still come"):
            await client.infer("digits", {"image": PIXELS})


async def test_late_answer_is_found_by_a_second_wait() -> None:
    """A receipt can be asked again after a wait was given up."""
    async with ScriptedClient(lambda record, partition: []) as client:
        submitted = await client.submit("digits", {"image": PIXELS})
        with pytest.raises(ResultNotReceived):
            await submitted.result(timeout_s=0.01)
        client.answers.put_nowait(result_record(submitted.id, submitted.partition))
        assert (await submitted.result(timeout_s=5)).status == "succeeded"


async def test_lost_connection_ends_every_wait() -> None:
    """When results cannot be read any more, waiting and later requests fail at once."""
    async with ScriptedClient(lambda record, partition: []) as client:
        submitted = [await client.submit("digits", {"image": PIXELS}) for _ in range(3)]
        client.answers.put_nowait(KafkaUnavailable("the broker is gone"))
        outcomes = await asyncio.gather(*(one.result() for one in submitted), return_exceptions=True)
        assert [str(outcome) for outcome in outcomes] == ["the broker is gone"] * 3
        with pytest.raises(KafkaUnavailable, match="the broker is gone"):
            await client.submit("digits", {"image": PIXELS})


async def test_close_ends_every_wait() -> None:
    """Closing the client tells whoever still waits."""
    async with ScriptedClient(lambda record, partition: []) as client:
        submitted = await client.submit("digits", {"image": PIXELS})
    with pytest.raises(KafkaUnavailable, match="closed"):
        await submitted.result()


async def test_unconnected_client_says_so() -> None:
    """A client that was not entered refuses with the way to use it."""
    with pytest.raises(KafkaUnavailable, match="async with"):
        await ScriptedClient(lambda record, partition: []).submit("digits", {"image": PIXELS})


async def test_pending_requests_are_bounded() -> None:
    """One request more than allowed is refused as OVERLOADED and is not sent."""
    async with ScriptedClient(lambda record, partition: [], pending_max=2) as client:
        receipts = [await client.submit("digits", {"image": PIXELS}) for _ in range(2)]
        with pytest.raises(InferenceFailed) as raised:
            await client.submit("digits", {"image": PIXELS})
        assert raised.value.code is ErrorCode.OVERLOADED
        assert len(client.requests.records) == len(receipts)


async def test_forgotten_receipts_free_their_place() -> None:
    """Requests whose receipt nobody keeps do not count against the bound."""
    async with ScriptedClient(lambda record, partition: [], pending_max=1) as client:
        for _ in range(5):
            await client.submit("digits", {"image": PIXELS})
            gc.collect()
        assert len(client.requests.records) == 5


async def test_invalid_request_is_refused_before_sending() -> None:
    """What the worker would refuse fails at once with the worker's code."""
    async with ScriptedClient(lambda record, partition: []) as client:
        with pytest.raises(InferenceFailed) as raised:
            await client.infer("digits", {"image": [[1], [2, 3]]})
        assert raised.value.code is ErrorCode.INVALID_INPUT
        assert client.requests.records == []


async def test_timeout_travels_with_the_request() -> None:
    """`timeout_s` is the request's own deadline on the wire, in milliseconds."""
    async with ScriptedClient(lambda record, partition: [result_record(record.id, partition)]) as client:
        await client.infer("digits", {"image": PIXELS}, timeout_s=1.5, enable_cache=False, tenant="acme")
    ((record, _),) = client.requests.records
    request = decode_request(record.value, record.headers)
    assert (request.timeout_ms, request.enable_cache, request.tenant) == (1500, False, "acme")


async def test_cancelled_wait_leaves_others_alone() -> None:
    """Cancelling one waiter does not take the answer from another."""
    async with ScriptedClient(lambda record, partition: []) as client:
        submitted = await client.submit("digits", {"image": PIXELS})
        first, second = (asyncio.create_task(submitted.result()) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        client.answers.put_nowait(result_record(submitted.id, submitted.partition))
        assert (await second).status == "succeeded"
        assert first.cancelled()
