"""/v1/inferences: receipts, results, idempotency, waiting."""

import asyncio
from typing import Any

import pytest

from pipeline.core.stored_result import StoredResult
from tests.gateway.fake_inferences import a_result
from tests.gateway.front import BODY, Front, front, until

PLACE = "/v1/inferences"


async def test_receipt_says_where_the_result_will_be() -> None:
    """202 with Location, the id and links, and nothing that a cache may keep."""
    async with front() as gateway:
        response = await gateway.http.post(PLACE, json=BODY | {"id": "r-1"})
    assert (response.status_code, response.headers["location"]) == (202, f"{PLACE}/r-1")
    assert response.json() == {
        "id": "r-1",
        "status": "accepted",
        "links": {"self": f"{PLACE}/r-1", "events": f"{PLACE}/r-1/events"},
    }
    assert response.headers["cache-control"] == "no-store"


async def test_submission_carries_who_and_where_from() -> None:
    """The peer's address and the trace go with the request; a broken trace does not."""
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    async with front() as gateway:
        await gateway.http.post(PLACE, json=BODY, headers={"traceparent": trace, "x-forwarded-for": "6.6.6.6"})
        await gateway.http.post(PLACE, json=BODY, headers={"traceparent": "nonsense"})
    first, second = gateway.inferences.submissions
    assert (first.tenant, first.source_ip, first.request_id, first.traceparent) == (
        None, "127.0.0.1", None, trace.encode(),
    )  # fmt: skip
    assert second.traceparent is None


async def test_source_behind_a_trusted_proxy_is_the_client() -> None:
    """The proxy's word is taken where the settings name it."""
    async with front(trusted_proxies=("127.0.0.0/8",)) as gateway:
        await gateway.http.post(PLACE, json=BODY, headers={"x-forwarded-for": "6.6.6.6, 203.0.113.7"})
    assert gateway.inferences.submissions[0].source_ip == "203.0.113.7"


async def test_equal_keys_are_one_id() -> None:
    """An Idempotency-Key, quoted or bare, always stands for the same id; another key for another one."""
    async with front() as gateway:
        ids = []
        for key in ("order-1", '"order-1"', "order-2"):
            response = await gateway.http.post(PLACE, json=BODY, headers={"idempotency-key": key})
            assert response.status_code == 202
            ids.append(response.json()["id"])
    assert ids[0] == ids[1] != ids[2]
    assert [submission.request_id for submission in gateway.inferences.submissions] == ids


async def test_key_with_another_body_is_refused() -> None:
    """422 for a key that came with other content before."""
    async with front() as gateway:
        headers = {"idempotency-key": "order-1"}
        await gateway.http.post(PLACE, json=BODY, headers=headers)
        found = await gateway.problem("POST", PLACE, json=BODY | {"model_name": "other"}, headers=headers)
    assert found == (422, "ID_REUSED")


@pytest.mark.parametrize("keys", [[""], ["a b"], ["k" * 256], ["\u00e9"], ["one", "two"]])
async def test_broken_key_is_refused(keys: list[str]) -> None:
    """What is no key of 1 to 255 visible ASCII characters is told, before anything is sent."""
    async with front() as gateway:
        headers = [("idempotency-key", key.encode()) for key in keys]
        assert await gateway.problem("POST", PLACE, json=BODY, headers=headers) == (400, "INVALID_REQUEST")
    assert gateway.inferences.submissions == []


@pytest.mark.parametrize("tail", [b"", b"\x00\xff\r\n\x01\x02\x03\x04"])
async def test_result_is_the_very_record(tail: bytes) -> None:
    """The bytes of the topic, JSON or binary, with the JSON's length where tensors follow it."""
    result = a_result("r-1", tail=tail)
    async with front() as gateway:
        gateway.inferences.answer("r-1", result)
        response = await gateway.http.get(f"{PLACE}/r-1")
    assert (response.status_code, response.content) == (200, result.value)
    if tail:
        assert response.headers["content-type"] == "application/octet-stream"
        assert response.headers["inference-header-content-length"] == str(result.json_bytes)
    else:
        assert response.headers["content-type"] == "application/json"
        assert "inference-header-content-length" not in response.headers


@pytest.mark.parametrize(
    ("result", "cache_status", "age"),
    [
        (a_result(cache_status="hit", cache_age_ms=2500), "pipeline; hit", "2"),
        (a_result(cache_status="miss"), "pipeline; fwd=miss; stored", None),
        (a_result(cache_status="coalesced", tail=b"1234"), "pipeline; fwd=miss; collapsed", None),
        (a_result(cache_status="refresh"), "pipeline; fwd=request; stored", None),
        (a_result(cache_status="bypass"), "pipeline; fwd=bypass", None),
        (a_result(cache_status="miss", status="failed"), "pipeline; fwd=miss", None),
        (a_result(cache_status=["odd"], cache_age_ms=-1), None, None),
        (a_result(), None, None),
        (StoredResult(bytes(16), 0, b"written by somebody else"), None, None),
    ],
)
async def test_cache_headers_say_how_the_answer_came(
    result: StoredResult, cache_status: str | None, age: str | None
) -> None:
    """RFC 9211 and Age from the result's parameters; nothing where it says nothing."""
    async with front() as gateway:
        gateway.inferences.answer("r-1", result)
        response = await gateway.http.get(f"{PLACE}/r-1")
    assert response.status_code == 200
    assert (response.headers.get("cache-status"), response.headers.get("age")) == (cache_status, age)


async def test_pending_unknown_and_gone_are_told_apart() -> None:
    """202 for an accepted id without a result, 404 for one nobody knows, 410 for one whose bytes are gone."""
    async with front() as gateway:
        gateway.inferences.accept("pending")
        gateway.inferences.lose("gone")
        response = await gateway.http.get(f"{PLACE}/pending")
        assert (response.status_code, response.json()["status"]) == (202, "pending")
        assert await gateway.problem("GET", f"{PLACE}/unknown") == (404, "NOT_FOUND")
        assert await gateway.problem("GET", f"{PLACE}/gone") == (410, "RESULT_GONE")


@pytest.mark.parametrize("name", ["a b", "x" * 129, "%00", "\u00e9", "a%2Fb", "..", "a;b", "{id}", "*"])
@pytest.mark.parametrize("rest", ["", "/events", "?wait=5"])
async def test_what_is_no_id_is_asked_of_nobody(name: str, rest: str) -> None:
    """404 at once for what no request can be called."""
    async with front() as gateway:
        assert await gateway.problem("GET", f"{PLACE}/{name}{rest}") == (404, "NOT_FOUND")
    assert gateway.inferences.looks == []


@pytest.mark.parametrize("wait", ["abc", "-1", "1e9", "1.5", "", "NaN", "\u0661x", "1;2"])
async def test_malformed_wait_is_refused(wait: str) -> None:
    """A wait that is no whole number of seconds is told, and nothing is looked up."""
    async with front() as gateway:
        assert await gateway.problem("GET", f"{PLACE}/r-1", params={"wait": wait}) == (400, "INVALID_REQUEST")
    assert gateway.inferences.looks == []


@pytest.mark.parametrize(("asked", "given"), [("0", 0.0), ("7", 7.0), ("3600", 55.0), ("999999999999", 55.0)])
async def test_wait_is_cut_to_its_limit(asked: str, given: float) -> None:
    """`?wait=N` waits N seconds, at most as long as the settings say."""
    async with front() as gateway:
        gateway.inferences.answer("r-1", a_result())
        await gateway.http.get(f"{PLACE}/r-1?wait={asked}")
    assert gateway.inferences.looks == [(None, "r-1", given)]


async def test_long_poll_ends_with_the_result() -> None:
    """Whoever waits has the result when it comes."""
    async with front() as gateway:
        gateway.inferences.accept("r-1")
        asking = asyncio.create_task(gateway.http.get(f"{PLACE}/r-1?wait=50"))
        await until(lambda: gateway.inferences.waits)
        assert gateway.limits.waiting == 1
        gateway.inferences.answer("r-1", a_result())
        assert (await asking).content == a_result().value
    assert (gateway.limits.waiting, gateway.limits.in_flight) == (0, 0)


@pytest.mark.parametrize("prefer", ["wait=10", "respond-async, wait=10", "foo; bar=1, WAIT = 10", 'wait="10"; x=y'])
async def test_preferred_wait_brings_the_result(prefer: str) -> None:
    """`Prefer: wait=N` (RFC 7240) answers 200 with the result and says that it was followed."""
    async with front(echoes=True) as gateway:
        response = await gateway.http.post(PLACE, json=BODY | {"id": "r-1"}, headers={"prefer": prefer})
    assert (response.status_code, response.headers["preference-applied"]) == (200, "wait=10")
    assert response.headers["content-location"] == f"{PLACE}/r-1"
    assert response.json()["id"] == "r-1"


@pytest.mark.parametrize("prefer", ["wait", "wait=", "wait=-1", "wait=1e9", "wait=x, wait=10", "waiting=10", ",;=,"])
async def test_broken_preference_is_ignored(prefer: str) -> None:
    """RFC 7240: what cannot be followed is no error; the missing Preference-Applied tells."""
    async with front(echoes=True) as gateway:
        response = await gateway.http.post(PLACE, json=BODY, headers={"prefer": prefer})
    assert response.status_code == 202
    assert "preference-applied" not in response.headers


async def test_wait_that_ends_without_a_result_is_a_receipt() -> None:
    """202 when the time is up: the request is accepted all the same."""
    async with front(wait_max_s=0.05) as gateway:
        response = await gateway.http.post(PLACE, json=BODY, headers={"prefer": "wait=50"})
    assert response.status_code == 202
    assert "preference-applied" not in response.headers


async def test_accepted_request_is_never_answered_with_an_error() -> None:
    """Once Kafka has it, what keeps the result away (a store that is down) leads to a receipt."""
    async with front(echoes=True) as gateway:
        gateway.inferences.store_answers = False
        response = await gateway.http.post(PLACE, json=BODY, headers={"prefer": "wait=5"})
    assert response.status_code == 202


@pytest.mark.parametrize(
    ("attribute", "method", "path", "expected"),
    [
        ("kafka_answers", "POST", PLACE, (503, "KAFKA_UNAVAILABLE")),
        ("store_answers", "GET", f"{PLACE}/r-1", (503, "RESULTS_UNAVAILABLE")),
        ("store_answers", "GET", f"{PLACE}/r-1/events", (503, "RESULTS_UNAVAILABLE")),
    ],
)
async def test_outage_is_told_with_when_to_retry(
    attribute: str, method: str, path: str, expected: tuple[int, str]
) -> None:
    """503 and Retry-After while Kafka or everything that knows results is away."""
    async with front() as gateway:
        setattr(gateway.inferences, attribute, False)
        options: dict[str, Any] = {"json": BODY} if method == "POST" else {}
        assert await gateway.problem(method, path, **options) == expected
        response = await gateway.http.request(method, path, **options)
    assert int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    "body",
    ["{", "[]", "1", "null", '{"model_name": "m"}', '{"model_name": "m", "inputs": [], "wrong": 1}', '{"a": NaN}'],
)
async def test_invalid_record_is_refused_at_once(body: str) -> None:
    """Syntax is checked before anything is sent."""
    async with front() as gateway:
        assert await gateway.problem("POST", PLACE, content=body) == (400, "INVALID_REQUEST")


async def _look(gateway: Front, method: str, path: str) -> tuple[int, bytes, str | None]:
    response = await gateway.http.request(method, path)
    return response.status_code, response.content, response.headers.get("content-length")


async def test_head_of_a_result_has_its_length() -> None:
    """HEAD says what GET would, of results, of what is pending and of what is not there."""
    result = a_result("r-1")
    async with front() as gateway:
        gateway.inferences.answer("r-1", result)
        gateway.inferences.accept("r-2")
        for path in (f"{PLACE}/r-1", f"{PLACE}/r-2", f"{PLACE}/r-3"):
            status, _, length = await _look(gateway, "GET", path)
            assert await _look(gateway, "HEAD", path) == (status, b"", length)
