"""Equal requests cost one inference."""

from collections import Counter

from tests.live.asking import Asking, echo_request, fresh_id, fresh_value
from tests.live.triton_statistics import TritonStatistics


async def test_concurrent_identical_requests_cost_one_inference(asking: Asking, statistics: TritonStatistics) -> None:
    """A hundred equal requests in flight run once, and all are given the same bytes."""
    before = await statistics.runs("echo")
    # Slow enough that all of them arrive while the first one runs.
    request = echo_request(fresh_value(), parameters={"delay_ms": 300})
    answers = await asking.ask_all([{**request, "id": fresh_id()} for _ in range(100)])
    after = await statistics.runs("echo")
    assert after.inferences - before.inferences == 1
    assert after.executions - before.executions == 1
    statuses = Counter(answer.cache_status for answer in answers)
    assert statuses["miss"] == 1
    assert statuses["coalesced"] + statuses["hit"] == 99
    assert len({outputs_text(answer.record.value) for answer in answers}) == 1
    assert len({answer.result.parameters.cache_key for answer in answers}) == 1


async def test_repeated_request_is_a_hit_with_the_same_bytes(asking: Asking, statistics: TritonStatistics) -> None:
    """A request that was answered before is answered from the cache, with the bytes of the first answer."""
    request = echo_request()
    first = await asking.ask(request)
    before = await statistics.runs("echo")
    second = await asking.ask({**request, "id": fresh_id()})
    assert (first.cache_status, second.cache_status) == ("miss", "hit")
    assert outputs_text(first.record.value) == outputs_text(second.record.value)
    assert second.result.parameters.cache_age_ms is not None
    assert await statistics.runs("echo") == before


def outputs_text(value: bytes) -> bytes:
    """The outputs of a JSON result as they stand in its bytes."""
    begin = value.index(b'"outputs":')
    return value[begin : value.index(b'"parameters":', begin)]
