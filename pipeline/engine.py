"""The inference engine: validate, resolve the version, look up, coalesce, dispatch, store.

`perform_inference_with_cache_check` is the whole of it for one request. The worker's hot path calls `submit`, which
makes the same decisions without a task: a hit is answered in the call itself, a miss answers its waiter later.

Everything here runs on one event loop and takes no locks.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from pipeline.core.answer import Answer, failed, stored_answer
from pipeline.core.cache_key import CacheScope, cache_key, content_digest, encode_outputs
from pipeline.core.cache_policy import DEFAULT, CachePolicy, parse_cache_control
from pipeline.core.catalog import ModelCatalog, ServedVersion
from pipeline.core.coalescing import Flight, Member, Waiter
from pipeline.core.parameters import sort_parameters
from pipeline.core.validation import check_inputs, requested_outputs
from pipeline.dispatcher import Dispatched, Dispatcher
from pipeline.errors import InferenceServerError, InvalidTensor, ModelFailed, ModelNotReady, ServerUnavailable
from pipeline.metrics import EngineMetrics
from pipeline.ports import AnswerCache, Clock
from schemas.errors import ErrorCode, WireError
from schemas.request import InferenceRequest
from schemas.result import CacheStatus

_BYPASS = CachePolicy(read=False, store=False, join=False)
# An unavailable fleet is asked again after this, doubling: it costs nothing, and a restart takes seconds.
_RETRY_FIRST_S = 0.05
_RETRY_MAX_S = 2.0


@dataclass(slots=True)
class Prepared:
    """What the engine made of a request on its way: the caller's log and duplicates' check use it again.

    Attributes:
        content: the digest of inputs and parameters, empty where they were not valid.
        input_bytes: raw bytes of all inputs.
    """

    content: bytes = b""
    input_bytes: int = 0


class InferenceEngine:
    """Answers inference requests from its cache, from a flight in progress, or from the fleet.

    Args:
        catalog: which versions are served.
        cache: stored answers.
        dispatcher: runs flights on the fleet.
        clock: time.
        ttl_s: how long answers are kept where the model's owner says nothing.
        unavailable_timeout_s: how long a request without a deadline waits for an instance that answers.
    """

    def __init__(
        self,
        catalog: ModelCatalog,
        cache: AnswerCache,
        dispatcher: Dispatcher,
        clock: Clock,
        *,
        ttl_s: float,
        unavailable_timeout_s: float,
        metrics: EngineMetrics | None = None,
    ) -> None:
        self.catalog = catalog
        self._cache = cache
        self._dispatcher = dispatcher
        self._clock = clock
        self._ttl_s = ttl_s
        self._unavailable_timeout_s = unavailable_timeout_s
        self._metrics = metrics or EngineMetrics()
        self._flights: dict[bytes, Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        dispatcher.on_done = self._dispatched

    async def perform_inference_with_cache_check(
        self, request: InferenceRequest, enable_cache: bool | None = None
    ) -> Answer:
        """Answers one request.

        Args:
            request: what to infer; its inputs' `data` is JSON data or raw bytes.
            enable_cache: whether the cache is asked, filled and shared for this request. A hit returns the stored
                answer at once; a miss is computed and stored; False does neither, and joins no other request.
                None: as the request's own `enable_cache` says.

        Returns:
            The answer. A request that cannot be served is answered too: its `failure` says why.
        """
        waiter = _FutureWaiter(asyncio.get_running_loop().create_future())
        answer = self.submit(request, waiter, enable_cache=enable_cache)
        return answer if answer is not None else await waiter.future

    def submit(
        self,
        request: InferenceRequest,
        waiter: Waiter,
        *,
        enable_cache: bool | None = None,
        requested_at: float | None = None,
        appended_at: float = 0.0,
        prepared: Prepared | None = None,
    ) -> Answer | None:
        """Answers at once where that can be done, else later through `waiter`.

        Args:
            request: what to infer.
            waiter: gets the answer, if this call returns None. Exactly one of both happens.
            enable_cache: as for `perform_inference_with_cache_check`.
            requested_at: from when the request's timeout counts, Unix seconds; None: its own, or now.
            appended_at: when its record was appended, Unix seconds.
            prepared: is filled with what was computed on the way.
        """
        enabled = request.enable_cache if enable_cache is None else enable_cache
        now = self._clock.now()
        try:
            deadline = self._deadline(request, requested_at, now)
            return self._begin(request, waiter, enabled, deadline, max(now, appended_at), prepared or Prepared())
        except WireError as error:
            return failed(error, model_version=request.model_version)

    async def stop(self) -> None:
        """Gives up all that runs; waiters get no answer."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._dispatcher.stop()

    def report_bugs_to(self, tell: Callable[[BaseException], None]) -> None:
        """Who is told of a bug that left somebody without an answer; else the event loop's own handler is."""
        self._dispatcher.on_bug = tell

    @property
    def flights_running(self) -> int:
        """How many distinct keys are being computed now."""
        return len(self._flights)

    def _deadline(self, request: InferenceRequest, requested_at: float | None, now: float) -> float | None:
        """The request's deadline in monotonic seconds.

        Raises:
            WireError: EXPIRED when it has passed already: nothing is executed.
        """
        if request.timeout_ms is None:
            return None
        if requested_at is None:
            requested_at = request.requested_at.timestamp() if request.requested_at else now
        left = requested_at + request.timeout_ms / 1e3 - now
        if left <= 0:
            raise _expired(request)
        return self._clock.monotonic() + left

    def _begin(
        self,
        request: InferenceRequest,
        waiter: Waiter,
        enabled: bool,
        deadline: float | None,
        resolve_at: float,
        prepared: Prepared,
    ) -> Answer | None:
        policy = parse_cache_control(request.cache_control) if request.cache_control else DEFAULT
        version = self.catalog.resolve(request.model_name, request.model_version, resolve_at)
        parameters = sort_parameters(request.parameters)
        if parameters.sequenced or not version.is_plain:
            raise _unserved(version)
        tensors = check_inputs(version, request)
        outputs = requested_outputs(version, request)
        encoded = version.all_outputs_encoded if outputs is version.all_outputs else encode_outputs(outputs)
        prepared.content = content = content_digest(tensors, parameters.keyed)
        prepared.input_bytes = sum([len(tensor.raw) for tensor in tensors])
        key: bytes | None = None
        scope: CacheScope | None = None
        if not enabled or not version.signature.cacheable:
            if policy.only_stored:
                raise WireError(ErrorCode.CACHE_MISS, "cache_control: only-if-cached, and the cache is off")
            policy = _BYPASS
        else:
            scope = version.scope_of(request.tenant)
            key = cache_key(scope, content, encoded)
            if policy.read and (answer := self._look_up(key, version, policy)) is not None:
                return answer
            if policy.only_stored:
                raise WireError(ErrorCode.CACHE_MISS, "cache_control: only-if-cached, and no answer is stored")
        member = self._member(request, waiter, enabled, policy, key, deadline, resolve_at)
        if key is not None and policy.join and (flight := self._flights.get(key)) is not None:
            member.cache_status = "coalesced"
            self._metrics.count(version.model_name, "coalesced")
            flight.join(member)
            return None
        self._metrics.count(version.model_name, member.cache_status)
        flight = Flight(key, scope, version, tensors, outputs, encoded, parameters.keyed, parameters.server)
        flight.join(member)
        if key is not None:
            self._flights[key] = flight
        self._dispatcher.submit(flight)
        return None

    def _look_up(self, key: bytes, version: ServedVersion, policy: CachePolicy) -> Answer | None:
        now = self._clock.monotonic()
        stored = self._cache.get(key, now)
        if stored is None:
            return None
        age_s = max(now - stored.stored_at, 0.0)
        if policy.max_age_s is not None and age_s > policy.max_age_s:
            return None
        self._metrics.count(version.model_name, "hit")
        return Answer("succeeded", version.version, stored, None, "hit", key, age_s)

    def _member(
        self,
        request: InferenceRequest,
        waiter: Waiter,
        enabled: bool,
        policy: CachePolicy,
        key: bytes | None,
        deadline: float | None,
        resolve_at: float,
    ) -> Member:
        status: CacheStatus = "bypass" if key is None else "miss" if policy.read else "refresh"
        give_up_at = deadline if deadline is not None else self._clock.monotonic() + self._unavailable_timeout_s
        member = Member(waiter, request, status, policy.store, enabled, deadline, give_up_at, resolve_at)
        if deadline is not None:
            delay = max(deadline - self._clock.monotonic(), 0.0)
            member.timer = asyncio.get_running_loop().call_later(delay, self._expire, member)
        return member

    def _expire(self, member: Member) -> None:
        if member.done:
            return
        reason = member.flight.unavailable if member.flight else None
        error = _expired(member.request) if reason is None else _unavailable(reason)
        self._tell(member, failed(error, member.cache_status))

    def _dispatched(self, flight: Flight, outcome: Dispatched | None) -> None:
        """A flight came back: with outputs, with the reason why not, or unflown because nobody waits any more."""
        if outcome is None:
            self._land(flight)
        elif outcome.error is None:
            self._succeed(flight, outcome)
        elif isinstance(outcome.error, ServerUnavailable | ModelNotReady):
            self._spawn(self._try_again(flight, outcome.error))
        else:
            self._land(flight)
            self._fail(flight.waiting(), WireError(_code(outcome.error), outcome.error.reason), flight, outcome)

    def _succeed(self, flight: Flight, outcome: Dispatched) -> None:
        newest = self._land(flight)
        now = self._clock.monotonic()
        stored = stored_answer(outcome.outputs, stored_at=now, instance=outcome.instance)
        # A flight that a no-cache request overtook must not put its older answer over that one's. A version whose
        # content was replaced meanwhile may have answered with the new one under the old key.
        if flight.scope is not None and newest and flight.store and self.catalog.is_served(flight.version):
            assert flight.key is not None, "a scope comes with a key"
            ttl_s = flight.version.signature.cache_ttl_seconds
            self._cache.put(flight.key, stored, now + (self._ttl_s if ttl_s is None else ttl_s), flight.scope)
        for member in flight.waiting():
            self._tell(
                member,
                Answer(
                    "succeeded", flight.version.version, stored, None, member.cache_status, flight.key, None,
                    outcome.dispatched_at, outcome.inference_s, outcome.instance,
                ),
            )  # fmt: skip

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
                version = self.catalog.resolve(flight.version.model_name, member.request.model_version, resolve_at)
            except WireError as error:
                self._fail([member], error, flight)
                continue
            if version.version == flight.version.version and version.fingerprint == flight.version.fingerprint:
                continue
            _settle(member)
            answer = self._resubmit(member, resolve_at)
            if answer is not None:
                member.waiter.answered(answer)

    def _resubmit(self, member: Member, resolve_at: float) -> Answer | None:
        try:
            return self._begin(
                member.request, member.waiter, member.enable_cache, member.deadline, resolve_at, Prepared()
            )
        except WireError as error:
            return failed(error, member.cache_status)

    def _land(self, flight: Flight) -> bool:
        """Takes a flight off the table; False where a newer one of its key took its place."""
        if flight.key is None or self._flights.get(flight.key) is not flight:
            return False
        del self._flights[flight.key]
        return True

    def _fail(self, members: list[Member], error: WireError, flight: Flight, outcome: Dispatched | None = None) -> None:
        for member in members:
            answer = failed(error, member.cache_status, flight.version.version)
            answer.key = flight.key
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


@dataclass(slots=True, eq=False)
class _FutureWaiter:
    """Waits in a future; a caller who was cancelled needs no answer."""

    future: "asyncio.Future[Answer]"

    def answered(self, answer: Answer) -> None:
        if not self.future.done():
            self.future.set_result(answer)


def _expired(request: InferenceRequest) -> WireError:
    return WireError(ErrorCode.EXPIRED, f"timeout_ms: {request.timeout_ms} ms from requested_at have passed")


def _code(error: InferenceServerError) -> ErrorCode:
    if isinstance(error, InvalidTensor):
        return ErrorCode.INVALID_INPUT
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


def _unserved(version: ServedVersion) -> WireError:
    """Of kinds of models that need more than one answer, or more than one request, to make sense."""
    kind = "a decoupled model" if version.signature.decoupled else "a sequence"
    return WireError(ErrorCode.INVALID_REQUEST, f"model_name: {version.model_name!r:.80}: {kind} is not served")
