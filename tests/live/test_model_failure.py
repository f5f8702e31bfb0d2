"""What a model's failure means for those who asked, and for those who ask again."""

import asyncio
from collections import Counter

from tests.live.asking import Asking, echo_request, fresh_id, fresh_value
from tests.live.triton_statistics import TritonStatistics


async def test_model_failure_is_shared_and_not_cached(asking: Asking, statistics: TritonStatistics) -> None:
    """Equal requests share the failure of the one run they had; the next such request runs anew."""
    before = await statistics.runs("echo")
    request = echo_request(fresh_value(), parameters={"delay_ms": 300, "fail": "out of ink"})
    answers = await asking.ask_all([{**request, "id": fresh_id()} for _ in range(20)])
    assert Counter((answer.status, answer.error) for answer in answers) == {("failed", "MODEL_ERROR"): 20}
    assert Counter(answer.cache_status for answer in answers) == {"miss": 1, "coalesced": 19}
    assert all("out of ink" in answer.message for answer in answers)
    assert (await statistics.runs("echo")).inferences - before.inferences == 1
    again = await asking.ask({**request, "id": fresh_id()})
    assert (again.error, again.cache_status) == ("MODEL_ERROR", "miss")
    assert (await statistics.runs("echo")).inferences - before.inferences == 2


async def test_one_bad_row_of_a_batch_fails_alone(asking: Asking, statistics: TritonStatistics) -> None:
    """Requests that travelled in one batch with a bad one are answered all the same."""
    requests = []
    for index in range(64):
        request = echo_request()
        bad = {"name": "fail", "datatype": "BOOL", "shape": [1, 1], "data": [index == 40]}
        requests.append({**request, "inputs": [*request["inputs"], bad]})
    before = await statistics.runs("echo")
    # One partition: they are taken together.
    answers = await asyncio.gather(*(asking.ask(request, partition=1) for request in requests))
    after = await statistics.runs("echo")
    assert [index for index, answer in enumerate(answers) if answer.status != "succeeded"] == [40]
    assert answers[40].error == "INVALID_INPUT"
    for request, answer in zip(requests, answers, strict=True):
        if answer.status == "succeeded":
            assert answer.result.outputs is not None
            assert answer.result.outputs[0].data == request["inputs"][0]["data"]
    assert after.executions - before.executions < after.inferences - before.inferences, "nothing was batched"
