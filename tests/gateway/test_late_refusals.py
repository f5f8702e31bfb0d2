"""A gateway that is late: work is turned away before it costs anything, and nothing else is."""

import asyncio
import json

import pytest

from pipeline.config import GatewaySettings
from pipeline.gateway.http.limits import LATE_S, LATE_TURNS, ROOM_MIN, Limits
from pipeline.gateway.http.problem import Problem
from schemas.errors import ErrorCode
from tests.gateway.front import BODY
from tests.gateway.raw_http import get, post, served

JSON_BYTES = json.dumps(BODY).encode()
V2 = b"POST /v2/models/m/infer HTTP/1.1\r\nhost: gw\r\nContent-Length: 2\r\n\r\n{}"


def late() -> Problem:
    """What a gateway says that is."""
    return Problem(429, ErrorCode.OVERLOADED, "this gateway is late", retry_after_s=1)


async def test_whole_request_is_turned_away_on_a_line_that_goes_on() -> None:
    """429 with Retry-After and a code, for each protocol in its words; the next request on the line is answered."""
    async with served() as gateway, gateway.line() as line:
        gateway.connections.refusal = late
        for _ in range(2):
            line.send(post(JSON_BYTES))
            answer = await line.answer()
            assert (answer.status, answer.code, answer.headers["retry-after"]) == (429, "OVERLOADED", "1")
            line.send(V2)
            answer = await line.answer()
            assert (answer.status, json.loads(answer.body)) == (429, {"error": "this gateway is late"})
        line.send(get(b"/health/live"))
        assert (await line.answer()).status == 200
        gateway.connections.refusal = lambda: None
        line.send(post(JSON_BYTES))
        assert (await line.answer()).status == 202
        assert len(gateway.inferences.submissions) == 1


@pytest.mark.parametrize(
    "sent",
    [
        post(JSON_BYTES)[:-1],
        post(JSON_BYTES) + b"x",
        post(JSON_BYTES, b"content-length: %d" % len(JSON_BYTES)),
        post(JSON_BYTES, b"tRansFer-encoding: chunked"),
        post(JSON_BYTES, b"content-length : 3"),
        get(b"/v1/inferences/r-1"),
    ],
)
async def test_what_is_no_whole_request_is_left_to_the_parser(sent: bytes) -> None:
    """Half a request, more than one, an ambiguous length, and what brings no work: nothing is decided about them."""
    async with served() as gateway, gateway.line() as line:
        asked = []
        gateway.connections.refusal = lambda: asked.append(1)
        line.send(sent)
        line.send(get(b"/health/live", b"connection: close"))
        with_parser = await line.answer()
        assert with_parser.status != 429
    assert asked == []


def test_room_follows_late_turns_and_comes_back() -> None:
    """Two late turns, one after the other, leave room for fewer than there are; turns on time bring all of it back."""
    limits = Limits(GatewaySettings(max_in_flight=1000))
    places = [limits.admit() for _ in range(500)]
    limits.note_turn(2 * LATE_S)
    assert limits.room == 1000, "one may be anything"
    limits.note_turn(2 * LATE_S)
    assert limits.room == 350
    for place in places[:200]:
        limits.leave(place)
    limits.note_turn(2 * LATE_S)
    assert limits.room == 210
    seen = []
    for _ in range(20):
        limits.note_turn(0)
        seen.append(limits.room)
    assert seen == sorted(seen)
    assert seen[-1] == 1000


def test_late_host_leaves_room_for_a_few() -> None:
    """Turns that are late for ever, whoever's fault it is, are no reason to refuse everybody."""
    limits = Limits(GatewaySettings(max_in_flight=1000))
    for _ in range(1000):
        limits.note_turn(10 * LATE_S)
    assert limits.room == ROOM_MIN
    few = Limits(GatewaySettings(max_in_flight=8))
    for _ in range(10):
        few.note_turn(10 * LATE_S)
    assert few.room == 8


async def test_late_gateway_refuses_work_alone() -> None:
    """What brings no work is admitted as before: what was taken in already is let out."""
    limits = Limits(GatewaySettings(max_in_flight=1000))
    places = [limits.admit(brings_work=True) for _ in range(ROOM_MIN)]
    for _ in range(LATE_TURNS):
        limits.note_turn(2 * LATE_S)
    with pytest.raises(Problem) as refusal:
        limits.admit(brings_work=True)
    assert (refusal.value.status, refusal.value.code) == (429, ErrorCode.OVERLOADED)
    assert limits.refused["late"] == 1
    places.append(limits.admit())
    for place in places:
        limits.leave(place)
    assert limits.refusal() is None


async def test_turns_are_watched_while_there_is_work() -> None:
    """The event loop's own turns are looked at, and no longer once nothing is in flight; then there is all the room."""
    limits = Limits(GatewaySettings(max_in_flight=100))
    place = limits.admit(brings_work=True)
    for _ in range(LATE_TURNS):
        limits.note_turn(2 * LATE_S)
    assert limits.room == ROOM_MIN
    limits.leave(place)
    async with asyncio.timeout(5):
        while limits._ticks:  # noqa: ASYNC110 - a timer of the loop's own
            await asyncio.sleep(0.01)
    assert limits.room == 100
