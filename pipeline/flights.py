"""Flights: what is computed for whom. The engine's own part that lasts longer than one call.

A request without a stored answer here joins the flight of its key, or takes off with one of its own. Where there is a
shared cache, a flight first asks it, and is dispatched for those whom its answer does not help. It lands with outputs
for all its members, or with the reason why there are none; while no instance answers it waits and tries again.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from pipeline.cache_levels import CacheLevels
from pipeline.core.answer import Answer, failed, stored_answers
from pipeline.core.cache_key import CacheScope
from pipeline.core.catalog import ModelCatalog
from pipeline.core.coalescing import Flight, Member
from pipeline.core.fleet_queue import FleetOverloaded
from pipeline.dispatcher import Dispatched, Dispatcher
from pipeline.errors import InferenceServerError, InvalidTensor, ModelFailed, ModelNotReady, ServerUnavailable
from pipeline.metrics import EngineMetrics
from pipeline.ports import Clock, SharedAnswer
from schemas.decoded import DecodedRequest
from schemas.errors import ErrorCode, WireError

# An unavailable fleet is asked again after this, doubling: it costs nothing, and a restart takes seconds.
_RETRY_FIRST_S = 0.05
_RETRY_MAX_S = 2.0
_NOT_STORED = WireError(ErrorCode.CACHE_MISS, "cache_control: only-if-cached, and no answer is stored")


class Flights:
    """The flights under way.

    Args:
        catalog: which versions are served.
        cache: where answers are stored, and looked for beyond this process.
        dispatcher: runs flights on the fleet.
        clock: time.
        ttl_s: how long answers are kept where the model's owner says nothing.
        unavailable_timeout_s: how long a request without a deadline waits for an instance that answers.
        metrics: counts.
        resubmit: begins a member's request anew: its version is gone, the default is another one by now.
    """

    def __init__(
        self,
        catalog: ModelCatalog,
        cache: CacheLevels,
        dispatcher: Dispatcher,
        clock: Clock,
        *,
        ttl_s: float,
        unavailable_timeout_s: float,
        metrics: EngineMetrics,
        resubmit: Callable[[Member, float], Answer | None],
    ) -> None:
        self._catalog = catalog
        self._cache = cache
        self._dispatcher = dispatcher
        self._clock = clock
        self._ttl_s = ttl_s
        self._unavailable_timeout_s = unavailable_timeout_s
        self._metrics = metrics
        self._resubmit = resubmit
        self._flights: dict[bytes, Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        dispatcher.on_done = self._dispatched

    def __len__(self) -> int:
        """How many distinct keys are being computed, or looked for, now."""
        return len(self._flights)

    def forget(self, wanted: Callable[[CacheScope], bool]) -> None:
        """What has been begun for these scopes is not stored any more: somebody clears the cache."""
        for flight in self._flights.values():
            if wanted(flight.scope):
                flight.forgotten = True

    async def stop(self) -> None:
        """Gives up all that waits; nobody is told."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def join(self, key: bytes, member: Member) -> bool:
        """Lets a request without a stored answer here wait for the flight of its key, where there is one it may."""
        running = self._flights.get(key)
        policy = member.policy
        if running is None or not (policy.join or (policy.only_stored and policy.read and running.looking)):
            return False
        member.cache_status = "coalesced"
        self._seat(member, running)
        return True

    def take_off(self, flight: Flight, member: Member) -> Answer | None:
        """A request that joined no flight is the first of its own.

        Returns:
            None: the member is told. An answer only where nothing may be computed, and nowhere else can be asked.
        """
        key, policy = flight.key, member.policy
        if key is not None:
            running = self._flights.get(key)
            if policy.read and running is None:
                flight.looking = self._cache.ask_shared(key, flight.scope, partial(self._looked_up, flight, key))
            member.cache_status = "miss" if policy.read else "refresh"
            if policy.only_stored and not flight.looking:
                self._metrics.count(flight.version.model_name, member.cache_status)
                return _failure(_NOT_STORED, member, flight)
            # One that may not store would keep the running one from being stored: it flies beside it.
            if running is None or policy.store:
                self._flights[key] = flight
        self._seat(member, flight)
        if not flight.looking:
            self._dispatcher.submit(flight)
        return None

    def _seat(self, member: Member, flight: Flight) -> None:
        """One more who waits for this flight. How it met the cache is known once the shared one was asked."""
        flight.join(member)
        now = self._clock.monotonic()
        member.give_up_at = member.deadline if member.deadline is not None else now + self._unavailable_timeout_s
        if member.deadline is not None and member.timer is None:
            delay = max(member.deadline - now, 0.0)
            member.timer = asyncio.get_running_loop().call_later(delay, self._expire, member)
        if not flight.looking:
            self._metrics.count(flight.version.model_name, member.cache_status)

    def _looked_up(self, flight: Flight, key: bytes, found: SharedAnswer | None) -> None:
        """The shared cache has an answer or has none, or took too long."""
        flight.looking = False
        if found is not None and not flight.forgotten:
            if flight.store and self._flights.get(key) is flight:
                self._cache.adopt(key, flight.scope, found)
            self._hand_out(flight, found)
        self._fail([member for member in flight.waiting() if member.policy.only_stored], _NOT_STORED, flight)
        waiting = flight.waiting()
        newer = self._flights.get(key)
        if not waiting:
            self._land(flight)
        elif newer is not None and newer is not flight:
            for member in waiting:  # a no-cache request computes already what they wait for
                member.cache_status = "coalesced"
                self._seat(member, newer)
        else:
            waiting[0].cache_status = "miss"
            for member in waiting:
                self._metrics.count(flight.version.model_name, member.cache_status)
            self._dispatcher.submit(flight)

    def _hand_out(self, flight: Flight, found: SharedAnswer) -> None:
        """Gives a shared answer to everybody for whom it is young enough."""
        version = flight.version
        for member in flight.waiting():
            if not member.policy.takes(found.age_s):
                flight.replaces = True
                continue
            self._metrics.count_hit(version.model_name, found.age_s)
            answer = Answer("succeeded", version.version, found.answer, None, "hit", flight.key, found.age_s)
            self._tell(member, answer)

    def _expire(self, member: Member) -> None:
        if member.done:
            return
        reason = member.flight.unavailable if member.flight else None
        error = expired(member.request) if reason is None else _unavailable(reason)
        self._tell(member, failed(error, member.cache_status))

    def _dispatched(self, flights: Sequence[Flight], outcome: Dispatched | None) -> None:
        """Flights came back: with outputs, with the reason why not, or unflown because nobody waits any more."""
        if outcome is not None and outcome.error is None:
            self._succeed(flights, outcome)
            return
        for flight in flights:
            if outcome is None:
                self._land(flight)
            else:
                self._miscarry(flight, outcome)

    def _succeed(self, flights: Sequence[Flight], outcome: Dispatched) -> None:
        now = self._clock.monotonic()
        answers = stored_answers(outcome.outputs, outcome.parts, stored_at=now, instance=outcome.instance)
        # A version whose content was replaced meanwhile may have answered with the new one under the old keys.
        is_served = self._catalog.is_served(flights[0].version)
        for flight, stored in zip(flights, answers, strict=True):
            key, version, newest = flight.key, flight.version, self._land(flight)
            # A flight that a no-cache request overtook must not put its older answer over that one's.
            if key is not None and newest and is_served and flight.store:
                own_ttl_s = version.signature.cache_ttl_seconds
                ttl_s = self._ttl_s if own_ttl_s is None else own_ttl_s
                self._cache.keep(key, flight.scope, stored, ttl_s, replace=flight.replaces)
            for member in flight.waiting():
                self._tell(
                    member,
                    Answer(
                        "succeeded", version.version, stored, None, member.cache_status, key, None,
                        outcome.dispatched_at, outcome.inference_s, outcome.instance,
                    ),
                )  # fmt: skip

    def _miscarry(self, flight: Flight, outcome: Dispatched) -> None:
        error = outcome.error
        assert error is not None, "the caller looked"
        if not isinstance(error, ServerUnavailable | ModelNotReady):
            self._land(flight)
            self._fail(flight.waiting(), WireError(_code(error), error.reason), flight, outcome)
        elif len(self._tasks) < self._dispatcher.waiting_max:
            self._spawn(self._try_again(flight, error))
        else:
            self._land(flight)
            full = f"no instance answers, and as many wait for one as may: {error.reason}"
            self._fail(flight.waiting(), WireError(ErrorCode.OVERLOADED, full), flight, outcome)

    async def _try_again(self, flight: Flight, error: InferenceServerError) -> None:
        """Nobody answered. Members whose time is up hear it; the others wait a little and queue again."""
        flight.unavailable = str(error)
        flight.tries += 1
        await asyncio.sleep(min(_RETRY_FIRST_S * 2 ** (flight.tries - 1), _RETRY_MAX_S))
        now = self._clock.monotonic()
        overdue = [member for member in flight.waiting() if member.give_up_at <= now]
        self._fail(overdue, _unavailable(flight.unavailable), flight)
        if isinstance(error, ModelNotReady):
            self._enter_again(flight)
        if flight.waiting():
            self._dispatcher.submit(flight)
        else:
            self._land(flight)

    def _enter_again(self, flight: Flight) -> None:
        """The version is gone from the fleet: members follow the default, those that named a number hear it is gone."""
        for member in flight.waiting():
            resolve_at = max(self._clock.now(), member.resolve_at)
            try:
                version = self._catalog.resolve(flight.version.model_name, member.request.model_version, resolve_at)
            except WireError as error:
                self._fail([member], error, flight)
                continue
            answering = version if version.trial is None else version.trial.version
            if any(flight.version.is_content_of(one) for one in (version, answering)):
                continue
            _settle(member)
            answer = self._resubmit(member, resolve_at)
            if answer is not None:
                member.waiter.answered(answer)

    def _land(self, flight: Flight) -> bool:
        """Takes a flight off the table; False where a newer one of its key took its place."""
        if flight.key is None or self._flights.get(flight.key) is not flight:
            return False
        del self._flights[flight.key]
        return True

    def _fail(self, members: list[Member], error: WireError, flight: Flight, outcome: Dispatched | None = None) -> None:
        for member in members:
            answer = _failure(error, member, flight)
            if outcome is not None:
                answer.dispatched_at, answer.inference_s = outcome.dispatched_at, outcome.inference_s
                answer.instance = outcome.instance
            self._tell(member, answer)

    def _tell(self, member: Member, answer: Answer) -> None:
        _settle(member)
        member.waiter.answered(answer)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (bug := task.exception()) is not None:
            self._dispatcher.on_bug(bug)


def _failure(error: WireError, member: Member, flight: Flight) -> Answer:
    answer = failed(error, member.cache_status, flight.version.version)
    answer.key = flight.key
    return answer


def expired(request: DecodedRequest) -> WireError:
    """A request's time was up before it had an answer."""
    return WireError(ErrorCode.EXPIRED, f"timeout_ms: {request.timeout_ms} ms from requested_at have passed")


def _code(error: InferenceServerError) -> ErrorCode:
    if isinstance(error, InvalidTensor):
        return ErrorCode.INVALID_INPUT
    if isinstance(error, FleetOverloaded):
        return ErrorCode.OVERLOADED
    return ErrorCode.MODEL_ERROR if isinstance(error, ModelFailed) else ErrorCode.INTERNAL


def _settle(member: Member) -> None:
    member.done = True
    # Flight and member would hold each other, and all tensors, until the garbage collector comes by: measured, 1.7 GB.
    member.flight = None
    if member.timer is not None:
        member.timer.cancel()
        member.timer = None


def _unavailable(reason: str) -> WireError:
    return WireError(ErrorCode.INFERENCE_UNAVAILABLE, f"no instance answers: {reason}")
