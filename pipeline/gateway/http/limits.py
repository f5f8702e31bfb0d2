"""What one gateway takes on: requests in number, bodies and answers in bytes. What finds no room is refused at once.

A request that only waits for an answer costs 20 KB and may last a minute; one that is read or written costs the bytes
it holds and lasts milliseconds. They share the places, and waiting ones never have the last quarter: however many wait,
requests are taken in.

Past this process's own capacity each request that is taken in makes every turn of the event loop longer, and all places
filled mean answers after seconds. So there is room for fewer while turns are late, and for more again while they are on
time, in the way of TCP (RFC 5681). Requests that wait for a slow model, or for Kafka, make no turn late, however many
they are.
"""

import asyncio

from starlette.requests import Request

from pipeline.config import GatewaySettings
from pipeline.gateway.delivery.current_request import RequestNames
from pipeline.gateway.http.problem import SLOT, HttpCode, Problem
from schemas.errors import ErrorCode

# A request takes some seven turns: an eighth of a second then, where an idle gateway takes 10 ms.
LATE_S = 0.01
_TICK_S = 0.01
# One late turn is a large body, or a host that paused; the turn after it is on time again.
LATE_TURNS = 2
_LESS, _MORE = 0.7, 1.1
# So few are answered within a tenth of a second: who is late is the host, and refusing would help nobody.
ROOM_MIN = 64
# Places turn over within milliseconds, but for those who wait.
_RETRY_AFTER_S = 1


class Slot(RequestNames):
    """One request's place, its names for the log, and what it holds until it is over.

    Attributes:
        waits: it waits for an answer, or did.
        held_bytes: of its body, and of its answer.
        code: of the problem it was answered with, for the log.
        detail: likewise.
        headers: that its answer has besides, whatever it is.
    """

    __slots__ = ("code", "detail", "headers", "held_bytes", "waits")

    def __init__(self) -> None:
        super().__init__()
        self.waits = False
        self.held_bytes = 0
        self.code: str | None = None
        self.detail: str | None = None
        self.headers: list[tuple[bytes, bytes]] = []


def slot_of(request: Request) -> Slot:
    """The place of a request that was admitted."""
    slot: Slot = request.scope[SLOT]
    return slot


class Limits:
    """The places and bytes of one gateway; one event loop.

    Attributes:
        in_flight: requests that have a place.
        room: how many may be in flight for more work to be taken in; fewer than there are places while turns are late.
        waiting: those of them that wait for an answer.
        held_bytes: of bodies and answers.
        waiting_max: places that may be waited on.
        refused: how many were refused, by what there was no room for.
        stopping: set when the gateway is to end: who waits answers with what there is.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self._places = settings.max_in_flight
        self._bytes = settings.max_in_flight_bytes
        # One place alone cannot be divided.
        self.waiting_max = max(1, self._places - max(1, self._places // 4))
        self.in_flight = 0
        self.waiting = 0
        self.held_bytes = 0
        self.refused = {"places": 0, "waiting": 0, "bytes": 0, "late": 0, "stopping": 0}
        self.stopping = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self.room = self._places
        self._late_turns = 0
        self._ticks = False

    def admit(self, *, brings_work: bool = False) -> Slot:
        """A place for one more request; `leave` gives it back.

        Args:
            brings_work: it is to be taken in; what was taken in already is let out, however late it is.

        Raises:
            Problem: 429, all are taken, or this process is behind; 503, the gateway is being stopped.
        """
        if self.stopping.is_set():
            self.refused["stopping"] += 1
            raise Problem(
                503,
                HttpCode.STOPPING,
                "this gateway is being stopped and takes nothing on: another one does, or it when it is back",
                retry_after_s=_RETRY_AFTER_S,
            )
        if self.in_flight >= self._places:
            raise self._overloaded("places", f"{self.in_flight} requests are in flight, as many as may be")
        if brings_work and (problem := self.refusal()) is not None:
            raise problem
        self.in_flight += 1
        self._empty.clear()
        return Slot()

    def refusal(self) -> Problem | None:
        """Why no more work is taken in at present, counted as one refusal; None: it is."""
        if not self._ticks:
            self._tick_later()
        if self.in_flight < self.room:
            return None
        return self._overloaded("late", f"this gateway is late, with {self.in_flight} requests in flight")

    def note_turn(self, late_s: float) -> None:
        """A turn of the event loop came so many seconds late: what there is room for follows."""
        if late_s <= LATE_S:
            self._late_turns = 0
            self.room = min(int(self.room * _MORE) + 1, self._places)
            return
        self._late_turns += 1
        if self._late_turns >= LATE_TURNS:
            self.room = min(max(int(self.in_flight * _LESS), ROOM_MIN), self._places)

    def leave(self, slot: Slot) -> None:
        """The request is over: what it held is free."""
        self.in_flight -= 1
        self.waiting -= slot.waits
        self.held_bytes -= slot.held_bytes
        if not self.in_flight:
            self._empty.set()

    def wait(self, request: Request) -> None:
        """From now on this request waits for an answer; once is enough, and it lasts until the request is over.

        Raises:
            Problem: 429, as many wait as may.
        """
        slot = slot_of(request)
        if slot.waits:
            return
        if self.waiting >= self.waiting_max:
            raise self._overloaded("waiting", f"{self.waiting} requests wait for their answers, as many as may")
        slot.waits = True
        self.waiting += 1

    def hold(self, request: Request, size: int) -> None:
        """So many more bytes are held for this request until it is over.

        Raises:
            Problem: 429, there is no room for them.
        """
        if self.held_bytes + size > self._bytes:
            raise self._overloaded(
                "bytes",
                f"{self.held_bytes} bytes of requests and answers are held, of {self._bytes}: no room for {size}",
            )
        slot_of(request).held_bytes += size
        self.held_bytes += size

    def let_go(self, request: Request) -> None:
        """What this request held so far is gone: a body that Kafka has is not held while its answer is waited for."""
        slot = slot_of(request)
        self.held_bytes -= slot.held_bytes
        slot.held_bytes = 0

    def stop(self) -> None:
        """Nothing more is taken on, and whoever waits answers with what there is."""
        self.stopping.set()

    async def drained(self, limit_s: float) -> bool:
        """Waits until no request is in flight, `limit_s` at most; whether none is."""
        try:
            async with asyncio.timeout(limit_s):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    def _tick_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._ticks = True
        loop.call_at(due := loop.time() + _TICK_S, self._tick, due)

    def _tick(self, due: float) -> None:
        self.note_turn(asyncio.get_running_loop().time() - due)
        self._ticks = False
        if self.in_flight:
            self._tick_later()
        else:
            self.room = self._places

    def _overloaded(self, what: str, detail: str) -> Problem:
        self.refused[what] += 1
        return Problem(429, ErrorCode.OVERLOADED, detail, retry_after_s=_RETRY_AFTER_S)
