"""What a gateway takes on, and what it does when it has too much, or is told to stop."""

import asyncio
import contextlib
import json
from typing import Any

import pytest
from starlette.requests import Request

from pipeline.config import GatewaySettings
from pipeline.gateway.http.gate import PIECE_BYTES
from pipeline.gateway.http.limits import Limits
from pipeline.gateway.http.problem import SLOT, Problem
from tests.gateway.fake_inferences import a_result
from tests.gateway.front import BODY, Front, front, until

PLACE = "/v1/inferences"


def admitted(limits: Limits) -> Request:
    """A request that has a place."""
    return Request({"type": "http", "headers": [], SLOT: limits.admit()})


@pytest.mark.parametrize("places", [1, 2, 3, 4, 10, 1000])
def test_places_are_bounded_and_some_are_never_waited_on(places: int) -> None:
    """However many wait, others are taken in: at least a quarter of the places, one at least where there are two."""
    limits = Limits(GatewaySettings(max_in_flight=places))
    requests = [admitted(limits) for _ in range(places)]
    with pytest.raises(Problem) as refusal:
        limits.admit()
    assert refusal.value.status == 429
    for request in requests:
        with contextlib.suppress(Problem):
            limits.wait(request)
    assert limits.waiting == (1 if places == 1 else places - max(1, places // 4))
    for request in requests:
        limits.leave(request.scope[SLOT])
    assert (limits.in_flight, limits.waiting) == (0, 0)


def test_waiting_twice_is_waiting_once() -> None:
    """A request that asks again has its place already."""
    limits = Limits(GatewaySettings(max_in_flight=4))
    request = admitted(limits)
    limits.wait(request)
    limits.wait(request)
    assert limits.waiting == 1


def test_held_bytes_are_given_back_with_the_place() -> None:
    """What a request holds, it holds until it is over, and no byte longer."""
    limits = Limits(GatewaySettings(max_in_flight_bytes=100))
    first, second = admitted(limits), admitted(limits)
    limits.hold(first, 60)
    limits.hold(first, 40)
    with pytest.raises(Problem, match="no room for 1"):
        limits.hold(second, 1)
    limits.leave(first.scope[SLOT])
    limits.hold(second, 100)
    assert limits.refused == {"places": 0, "waiting": 0, "bytes": 1, "late": 0, "stopping": 0}


async def waiting_clients(gateway: Front, count: int) -> "list[asyncio.Task[Any]]":
    """So many long polls, waiting."""
    gateway.inferences.accept("r-1")
    asking = [asyncio.create_task(gateway.http.get(f"{PLACE}/r-1?wait=50")) for _ in range(count)]
    await until(lambda: gateway.inferences.waits == count)
    return asking


async def test_waiters_do_not_starve_submits() -> None:
    """With every place to wait on taken, requests are accepted; one more waiter is refused, or has its receipt."""
    async with front(max_in_flight=8) as gateway:
        asking = await waiting_clients(gateway, 6)
        assert await gateway.problem("GET", f"{PLACE}/r-1?wait=50") == (429, "OVERLOADED")
        assert await gateway.problem("GET", f"{PLACE}/r-1/events") == (429, "OVERLOADED")
        assert (await gateway.http.get(f"{PLACE}/r-1")).status_code == 202
        assert (await gateway.http.post(PLACE, json=BODY)).status_code == 202
        assert (await gateway.http.post(PLACE, json=BODY, headers={"prefer": "wait=50"})).status_code == 202
        gateway.inferences.answer("r-1", a_result())
        assert {response.status_code for response in await asyncio.gather(*asking)} == {200}


async def test_full_gateway_refuses_at_once_and_is_still_healthy() -> None:
    """429 with Retry-After for what finds no place; health and metrics need none."""
    async with front(max_in_flight=1) as gateway:
        asking = await waiting_clients(gateway, 1)
        response = await gateway.http.post(PLACE, json=BODY)
        assert (response.status_code, response.json()["code"]) == (429, "OVERLOADED")
        assert int(response.headers["retry-after"]) >= 1
        for path in ("/health/live", "/health/ready", "/metrics", "/status"):
            assert (await gateway.http.get(path)).status_code == 200
        assert 'pipeline_gateway_refused_total{room="places"} 1.0' in (await gateway.http.get("/metrics")).text
        gateway.inferences.answer("r-1", a_result())
        await asyncio.gather(*asking)
        assert (await gateway.http.post(PLACE, json=BODY)).status_code == 202


async def test_large_answer_without_room_is_refused_or_fetched_later() -> None:
    """Bytes of answers count as bodies' do: a GET is refused with 429, a POST that waits has its receipt."""
    result = a_result("r-1", tail=b"\0" * 5000)
    async with front(max_in_flight_bytes=1000) as gateway:
        gateway.inferences.answer("r-1", result)
        assert await gateway.problem("GET", f"{PLACE}/r-1") == (429, "OVERLOADED")
        assert gateway.limits.held_bytes == 0


async def test_body_is_not_held_while_its_answer_is_waited_for() -> None:
    """A few large requests that wait do not keep others out."""
    async with front(max_in_flight_bytes=1500) as gateway:
        body = json.dumps(BODY).encode().ljust(1000)
        asking = asyncio.create_task(gateway.http.post(PLACE, content=body, headers={"prefer": "wait=50"}))
        await until(lambda: gateway.inferences.waits)
        assert gateway.limits.held_bytes == 0
        assert (await gateway.http.post(PLACE, content=body)).status_code == 202
        gateway.inferences.answer("fresh-1", a_result("fresh-1"))
        assert (await asking).status_code == 200


async def test_stop_answers_who_waits_and_refuses_the_rest() -> None:
    """Waiting ends at once with what there is; what is new is sent elsewhere, and readiness says so first."""
    async with front(max_in_flight=8) as gateway:
        asking = await waiting_clients(gateway, 2)
        gateway.limits.stop()
        for response in await asyncio.gather(*asking):
            assert (response.status_code, response.json()["status"]) == (202, "pending")
            assert response.headers["connection"] == "close"
        refused = await gateway.http.post(PLACE, json=BODY)
        assert (refused.status_code, refused.json()["code"]) == (503, "STOPPING")
        assert (refused.headers["connection"], refused.headers["retry-after"]) == ("close", "1")
        ready = await gateway.http.get("/health/ready")
        assert (ready.status_code, ready.json()["ready"]) == (503, False)
        assert (await gateway.http.get("/health/live")).status_code == 200
        assert await gateway.limits.drained(5)


async def test_drain_has_a_limit() -> None:
    """A stop waits for what is in flight, and not for ever."""
    limits = Limits(GatewaySettings())
    slot = limits.admit()
    assert not await limits.drained(0.01)
    draining = asyncio.create_task(limits.drained(10))
    await asyncio.sleep(0)
    limits.leave(slot)
    assert await draining


async def test_client_that_goes_ends_its_wait() -> None:
    """A long poll whose client has gone waits no more, and its place is free."""
    async with front() as gateway:
        gateway.inferences.accept("r-1")
        gone = asyncio.Event()
        first = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Any:
            if first:
                return first.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(_: Any) -> None:
            return None

        scope = scope_of("GET", f"{PLACE}/r-1", b"wait=50")
        asking = asyncio.create_task(gateway.app(scope, receive, send))
        await until(lambda: gateway.inferences.waits)
        gone.set()
        await asking
        assert (gateway.inferences.waits, gateway.inferences.abandoned, gateway.limits.in_flight) == (0, 1, 0)
        assert len(gateway.inferences.looks) == 1  # nothing is looked up for nobody


def scope_of(method: str, path: str, query: bytes = b"", headers: Any = (), **more: Any) -> dict[str, Any]:
    """One request as a server tells an app of it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "root_path": "",
        "headers": list(headers),
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8080),
        **more,
    }


@pytest.mark.parametrize(("path", "is_stream"), [(f"{PLACE}/r-1", False), (f"{PLACE}/r-1/events", True)])
async def test_client_that_does_not_read_is_cut(path: str, *, is_stream: bool) -> None:
    """An answer nobody reads holds its place for as long as it may take, then the connection is ended."""
    async with front(body_timeout_s=0.1) as gateway:
        gateway.inferences.answer("r-1", a_result("r-1", tail=b"" if is_stream else b"\0" * 200_000))
        lost = asyncio.Event()
        sent = []

        async def receive() -> Any:
            await lost.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()  # the buffer is full, for ever

        scope = scope_of("GET", path, state={"abort": lost.set})
        await gateway.app(scope, receive, send)
        assert lost.is_set()
        assert len(sent[1]["body"]) <= PIECE_BYTES
        assert gateway.limits.in_flight == 0
        assert "pipeline_gateway_clients_cut_total 1.0" in (await gateway.http.get("/metrics")).text


@pytest.mark.parametrize("count", [0, 1, 2, 3])
@pytest.mark.parametrize("more", [-1, 0, 1])
async def test_pieces_of_an_answer_are_the_answer(count: int, more: int) -> None:
    """However an answer is cut on its way, its bytes are those of the result."""
    tail = bytes(range(256)) * (PIECE_BYTES // 256) * count
    result = a_result("r-1", tail=b"x" + tail)
    result = result._replace(value=result.value[: len(tail) + more] if count else result.value)
    async with front() as gateway:
        gateway.inferences.answer("r-1", result._replace(json_bytes=0))
        assert (await gateway.http.get(f"{PLACE}/r-1")).content == result.value


async def test_cancelled_request_gives_everything_back() -> None:
    """A server that is torn down takes its requests with it; no place is lost."""
    async with front() as gateway:
        [asking] = await waiting_clients(gateway, 1)
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking
        await until(lambda: not gateway.limits.in_flight)
        assert (gateway.limits.waiting, gateway.inferences.waits) == (0, 0)
