"""Server-sent events: what is told, in which order, and how a stream ends."""

import asyncio
import json
from typing import Any

import pytest

from pipeline.core.stored_result import StoredResult
from pipeline.gateway.routes.sse import event
from tests.gateway.fake_inferences import a_result
from tests.gateway.front import front, until
from tests.gateway.test_limits import scope_of

PLACE = "/v1/inferences/r-1"
LINKS = {"self": PLACE, "events": f"{PLACE}/events"}


def parsed(stream: str) -> list[tuple[str, str | None, str]]:
    """Events as an EventSource reads them: name, id, data."""
    events = []
    for block in stream.split("\n\n"):
        fields = [line.partition(": ")[::2] for line in block.split("\n") if line and not line.startswith(":")]
        data = "\n".join(value for name, value in fields if name == "data")
        if data:
            named = dict(fields)
            events.append((named["event"], named.get("id"), data))
    return events


async def test_answered_request_tells_all_at_once() -> None:
    """`accepted`, then `result` with the record, and the end; no cache and no proxy keeps anything back."""
    async with front() as gateway:
        gateway.inferences.answer("r-1", a_result("r-1"))
        response = await gateway.http.get(f"{PLACE}/events")
    accepted, result = parsed(response.text)
    assert (accepted[0], accepted[1]) == ("accepted", "accepted")
    assert json.loads(accepted[2]) == {"id": "r-1", "status": "accepted", "links": LINKS}
    assert result == ("result", "result", a_result("r-1").value.decode())
    assert response.headers["content-type"].startswith("text/event-stream")
    assert (response.headers["cache-control"], response.headers["x-accel-buffering"]) == ("no-store", "no")


async def test_binary_result_is_told_by_its_links() -> None:
    """Text cannot carry raw tensors: the event says where they are."""
    async with front() as gateway:
        gateway.inferences.answer("r-1", a_result("r-1", tail=b"\0\n\r\xff"))
        response = await gateway.http.get(f"{PLACE}/events")
    assert json.loads(parsed(response.text)[1][2]) == {"id": "r-1", "links": LINKS}


async def test_unknown_gone_and_malformed_are_no_streams() -> None:
    """What cannot be told of is a problem, before any stream begins."""
    async with front() as gateway:
        gateway.inferences.lose("gone")
        assert await gateway.problem("GET", "/v1/inferences/unknown/events") == (404, "NOT_FOUND")
        assert await gateway.problem("GET", "/v1/inferences/gone/events") == (410, "RESULT_GONE")


async def test_reconnecting_client_hears_what_it_has_not_heard() -> None:
    """`Last-Event-ID: accepted` is told the result alone; after `result`, 204 ends an EventSource's tries."""
    async with front() as gateway:
        gateway.inferences.answer("r-1", a_result("r-1"))
        again = await gateway.http.get(f"{PLACE}/events", headers={"last-event-id": "accepted"})
        done = await gateway.http.get(f"{PLACE}/events", headers={"last-event-id": "result"})
        odd = await gateway.http.get(f"{PLACE}/events", headers={b"last-event-id": b"\xe9 whatever"})
    assert [name for name, _, _ in parsed(again.text)] == ["result"]
    assert (done.status_code, done.content) == (204, b"")
    assert [name for name, _, _ in parsed(odd.text)] == ["accepted", "result"]


class Listener:
    """A client of one stream, within this process."""

    def __init__(self) -> None:
        self.heard = b""
        self.gone = asyncio.Event()

    async def receive(self) -> Any:
        """Nothing but the client's leaving."""
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        """Hears what is sent."""
        self.heard += message.get("body", b"")


async def test_heartbeats_come_until_the_result_does() -> None:
    """Comments keep the connection while nothing happens, and an EventSource does not see them."""
    async with front(heartbeat_s=0.01) as gateway:
        gateway.inferences.accept("r-1")
        listener = Listener()
        streaming = asyncio.create_task(
            gateway.app(scope_of("GET", f"{PLACE}/events"), listener.receive, listener.send)
        )
        await until(lambda: listener.heard.count(b"\n:") >= 3)
        assert gateway.limits.waiting == 1
        gateway.inferences.answer("r-1", a_result("r-1"))
        await streaming
    assert [name for name, _, _ in parsed(listener.heard.decode())] == ["accepted", "result"]
    assert (gateway.limits.waiting, gateway.limits.in_flight) == (0, 0)


@pytest.mark.parametrize("end", ["client", "stop", "store", "forgotten"])
async def test_stream_ends_with_nothing_left(end: str) -> None:
    """The client goes, the gateway stops, or nobody knows the request any more: nobody waits, no place is taken."""
    async with front(heartbeat_s=0.01) as gateway:
        gateway.inferences.accept("r-1")
        listener = Listener()
        streaming = asyncio.create_task(
            gateway.app(scope_of("GET", f"{PLACE}/events"), listener.receive, listener.send)
        )
        await until(lambda: b"accepted" in listener.heard and gateway.inferences.waits)
        match end:
            case "client":
                listener.gone.set()
            case "stop":
                gateway.limits.stop()
            case "store":
                gateway.inferences.store_answers = False
            case "forgotten":
                gateway.inferences.forget("r-1")
        await streaming
        assert [name for name, _, _ in parsed(listener.heard.decode())] == ["accepted"]
        assert (gateway.inferences.waits, gateway.limits.waiting, gateway.limits.in_flight) == (0, 0, 0)


@pytest.mark.parametrize("data", [b"one\ntwo", b"one\r\ntwo", b"one\rtwo"])
def test_line_ends_do_not_break_an_event(data: bytes) -> None:
    """Whatever ends a line within the data, it is one event of two lines."""
    assert parsed(event("result", data).decode()) == [("result", None, "one\ntwo")]


async def test_result_with_line_ends_is_one_event() -> None:
    """A record that somebody wrote over several lines is one `result`."""
    async with front() as gateway:
        gateway.inferences.answer("r-1", StoredResult(bytes(16), 0, b'{\n"event": "x",\n\n"id": "r-1"}'))
        response = await gateway.http.get(f"{PLACE}/events")
    assert [name for name, _, _ in parsed(response.text)] == ["accepted", "result"]
    assert json.loads(parsed(response.text)[1][2]) == {"event": "x", "id": "r-1"}
