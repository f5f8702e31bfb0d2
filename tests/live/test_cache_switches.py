"""The cache switch of each request, and RFC 9111's words."""

import re

import orjson
import pytest

from tests.live.asking import Answered, Asking, echo_request, fresh_id, fresh_value
from tests.live.processes import ServiceProcess
from tests.live.triton_statistics import TritonStatistics
from tests.live.waiting import until


async def ask_again(asking: Asking, value: float, **members: object) -> Answered:
    answer = await asking.ask(echo_request(value, **members))
    assert answer.status == "succeeded" or answer.error == "CACHE_MISS", answer.message
    return answer


async def test_disabled_cache_neither_reads_nor_stores(asking: Asking, statistics: TritonStatistics) -> None:
    """`enable_cache: false` runs every time, says bypass, has no key, and leaves nothing for others."""
    value = fresh_value()
    before = await statistics.runs("echo")
    answers = [await ask_again(asking, value, enable_cache=False) for _ in range(2)]
    assert [answer.cache_status for answer in answers] == ["bypass", "bypass"]
    assert [answer.result.parameters.cache_key for answer in answers] == [None, None]
    assert (await ask_again(asking, value)).cache_status == "miss"
    assert (await ask_again(asking, value, enable_cache=False)).cache_status == "bypass"
    assert (await statistics.runs("echo")).inferences - before.inferences == 4


async def test_disabled_cache_does_not_coalesce(asking: Asking, statistics: TritonStatistics) -> None:
    """Equal requests in flight run each by itself where the cache is switched off."""
    before = await statistics.runs("echo")
    request = echo_request(enable_cache=False, parameters={"delay_ms": 100})
    answers = await asking.ask_all([{**request, "id": fresh_id()} for _ in range(4)])
    assert {answer.cache_status for answer in answers} == {"bypass"}
    assert (await statistics.runs("echo")).inferences - before.inferences == 4


async def test_no_cache_computes_then_stores(asking: Asking) -> None:
    """no-cache says refresh and replaces what is stored: the hit after it is younger."""
    value = fresh_value()
    await ask_again(asking, value)
    refreshed = await ask_again(asking, value, cache_control="no-cache")
    assert refreshed.cache_status == "refresh"
    hit = await ask_again(asking, value)
    assert hit.cache_status == "hit"
    assert hit.result.parameters.cache_age_ms is not None
    age_ms = (hit.result.completed_at - refreshed.result.completed_at).total_seconds() * 1e3
    assert hit.result.parameters.cache_age_ms <= age_ms + 1000


async def look_ups(worker: ServiceProcess) -> float:
    """Returns how many look-ups in the shared cache have ended."""
    _, text = await worker.get("/metrics")
    ended = re.findall(r"^pipeline_shared_cache_look_ups_total\{[^}]*\} (\S+)$", text, re.MULTILINE)
    return sum(map(float, ended))


async def test_no_cache_joins_no_running_request(
    asking: Asking, worker: ServiceProcess, statistics: TritonStatistics
) -> None:
    """no-cache never takes the answer of a flight that was there before it."""
    before, looked_up = await statistics.runs("echo"), await look_ups(worker)
    request = echo_request(parameters={"delay_ms": 400})
    # One partition keeps their order.
    first = await asking.send(orjson.dumps(request), partition=0)

    async def is_computed() -> bool:
        return await look_ups(worker) > looked_up

    await until(is_computed, 10.0, "the shared cache was asked for the first request")
    second = await asking.send(orjson.dumps({**request, "id": fresh_id(), "cache_control": "no-cache"}), partition=0)
    assert (await asking.answer(first)).cache_status == "miss"
    assert (await asking.answer(second)).cache_status == "refresh"
    assert (await statistics.runs("echo")).inferences - before.inferences == 2


async def test_no_store_reads_but_does_not_store(asking: Asking) -> None:
    """no-store leaves nothing behind, and takes what is there."""
    value = fresh_value()
    assert (await ask_again(asking, value, cache_control="no-store")).cache_status == "miss"
    assert (await ask_again(asking, value)).cache_status == "miss"
    assert (await ask_again(asking, value, cache_control="no-store")).cache_status == "hit"


async def test_max_age_takes_only_young_answers(asking: Asking) -> None:
    """max-age bounds the age of a stored answer; 0 takes none."""
    value = fresh_value()
    await ask_again(asking, value)
    assert (await ask_again(asking, value, cache_control="max-age=3600")).cache_status == "hit"
    assert (await ask_again(asking, value, cache_control="max-age=0")).cache_status == "miss"


async def test_only_if_cached_computes_nothing(asking: Asking, statistics: TritonStatistics) -> None:
    """only-if-cached gets the stored answer, or CACHE_MISS without a run."""
    value = fresh_value()
    before = await statistics.runs("echo")
    missed = await ask_again(asking, value, cache_control="only-if-cached")
    assert (missed.status, missed.error) == ("failed", "CACHE_MISS")
    assert await statistics.runs("echo") == before
    await ask_again(asking, value)
    assert (await ask_again(asking, value, cache_control="only-if-cached")).cache_status == "hit"


@pytest.mark.parametrize("words", ["immutable", "No-Cache, x-own=1", ""])
async def test_unknown_words_are_ignored(asking: Asking, words: str) -> None:
    """Words that RFC 9111 does not have change nothing; case does not matter."""
    answer = await ask_again(asking, fresh_value(), cache_control=words)
    assert answer.cache_status == ("refresh" if "o-C" in words else "miss")


async def test_tenants_never_share_an_answer(asking: Asking) -> None:
    """The same request of another tenant is another request."""
    value = fresh_value()
    first = await ask_again(asking, value, tenant="acme")
    other = await ask_again(asking, value, tenant="umbrella")
    again = await ask_again(asking, value, tenant="acme")
    assert [answer.cache_status for answer in (first, other, again)] == ["miss", "miss", "hit"]


async def test_pinned_default_version_shares_the_answer(asking: Asking) -> None:
    """The key has the version that answers: asking for the default by its number finds the same answer."""
    value = fresh_value()
    first = await ask_again(asking, value)
    pinned = await ask_again(asking, value, model_version="1")
    assert (first.result.model_version, pinned.cache_status) == ("1", "hit")
