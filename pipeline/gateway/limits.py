"""What one gateway takes on: requests in number, bodies and answers in bytes. What finds no room is refused at once.

A request that only waits for an answer costs 20 KB and may last a minute; one that is read or written costs the bytes
it holds and lasts milliseconds. They share the places, and waiting ones never have the last quarter: however many wait,
requests are taken in.
"""

import asyncio

from starlette.requests import Request

from pipeline.config import GatewaySettings
from pipeline.gateway.problem import SLOT, HttpCode, Problem
from schemas.errors import ErrorCode

# Places turn over within milliseconds, but for those who wait.
_RETRY_AFTER_S = 1


class Slot:
    """One request's place, and what it holds until it is over.

    Attributes:
        waits: it waits for an answer, or did.
        held_bytes: of its body, and of its answer.
        request_id: for the log, once it is known.
        code: of the problem it was answered with.
        detail: likewise.
    """

    __slots__ = ("code", "detail", "held_bytes", "request_id", "waits")

    def __init__(self) -> None:
        self.waits = False
        self.held_bytes = 0
        self.request_id: str | None = None
        self.code: str | None = None
        self.detail: str | None = None


def slot_of(request: Request) -> Slot:
    """The place of a request that was admitted."""
    slot: Slot = request.scope[SLOT]
    return slot


class Limits:
    """The places and bytes of one gateway; one event loop.

    Attributes:
        in_flight: requests that have a place.
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
        self.refused = {"places": 0, "waiting": 0, "bytes": 0, "stopping": 0}
        self.stopping = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def admit(self) -> Slot:
        """A place for one more request; `leave` gives it back.

        Raises:
            Problem: 429, all are taken; 503, the gateway is being stopped.
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
        self.in_flight += 1
        self._empty.clear()
        return Slot()

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

    def _overloaded(self, what: str, detail: str) -> Problem:
        self.refused[what] += 1
        return Problem(429, ErrorCode.OVERLOADED, detail, retry_after_s=_RETRY_AFTER_S)
