"""The inference engine: validate, resolve the version, look up, coalesce, dispatch, store.

`perform_inference_with_cache_check` is the whole of it for one request. The worker's hot path calls `submit`, which
makes the same decisions without a task: a hit is answered in the call itself, a miss answers its waiter later.

Everything here runs on one event loop and takes no locks.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.cache_levels import CacheLevels
from pipeline.core.answer import Answer, StoredAnswer, failed
from pipeline.core.cache_key import CacheScope, cache_key, content_digest, encode_outputs
from pipeline.core.cache_policy import DEFAULT, CachePolicy, parse_cache_control
from pipeline.core.catalog import ModelCatalog, ServedVersion
from pipeline.core.coalescing import Flight, Member, Waiter
from pipeline.core.parameters import sort_parameters
from pipeline.core.response_cache import Cleared
from pipeline.core.trace_context import Span
from pipeline.core.validation import check_inputs, requested_outputs
from pipeline.dispatcher import Dispatcher, FleetView
from pipeline.flights import Flights, expired
from pipeline.metrics import EngineMetrics
from pipeline.ports import AnswerCache, Clock, SharedCache
from schemas.decoded import DecodedRequest
from schemas.errors import ErrorCode, WireError

_BYPASS = CachePolicy(read=False, store=False, join=False)


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
        shared: answers of all workers, asked before anything is computed.
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
        shared: SharedCache | None = None,
        ttl_s: float,
        unavailable_timeout_s: float,
        metrics: EngineMetrics | None = None,
    ) -> None:
        self.catalog = catalog
        self._cache = CacheLevels(cache, shared, clock)
        self._dispatcher = dispatcher
        self._clock = clock
        self._metrics = metrics or EngineMetrics()
        self._flights = Flights(
            catalog,
            self._cache,
            dispatcher,
            clock,
            ttl_s=ttl_s,
            unavailable_timeout_s=unavailable_timeout_s,
            metrics=self._metrics,
            resubmit=self._resubmit,
        )

    async def perform_inference_with_cache_check(
        self, request: DecodedRequest, enable_cache: bool | None = None
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
        request: DecodedRequest,
        waiter: Waiter,
        *,
        enable_cache: bool | None = None,
        requested_at: float | None = None,
        appended_at: float = 0.0,
        prepared: Prepared | None = None,
        span: Span | None = None,
    ) -> Answer | None:
        """Answers at once where that can be done, else later through `waiter`.

        Args:
            request: what to infer.
            waiter: gets the answer, if this call returns None. Exactly one of both happens.
            enable_cache: as for `perform_inference_with_cache_check`.
            requested_at: from when the request's timeout counts, Unix seconds; None: its own, or now.
            appended_at: when its record was appended, Unix seconds.
            prepared: is filled with what was computed on the way.
            span: of the request, where somebody follows it: the calls that are made for it are its children.
        """
        enabled = request.enable_cache if enable_cache is None else enable_cache
        now = self._clock.now()
        try:
            deadline = self._deadline(request, requested_at, now)
            return self._begin(request, waiter, enabled, deadline, max(now, appended_at), prepared or Prepared(), span)
        except WireError as error:
            return failed(error, model_version=request.model_version)

    async def stop(self) -> None:
        """Gives up all that runs; waiters get no answer."""
        await self._flights.stop()
        await self._dispatcher.stop()

    def clear(self, wanted: Callable[[CacheScope], bool]) -> Cleared:
        """Forgets the answers that this process has stored for these scopes; what is on its way is not stored."""
        self._flights.forget(wanted)
        return self._cache.clear_own(wanted)

    def report_bugs_to(self, tell: Callable[[BaseException], None]) -> None:
        """Who is told of a bug that left somebody without an answer; else the event loop's own handler is."""
        self._dispatcher.on_bug = tell

    def fleet(self) -> FleetView:
        """Every instance and every model's queue, as this process sees them now."""
        return self._dispatcher.view()

    @property
    def flights_running(self) -> int:
        """How many distinct keys are being computed, or looked for, now."""
        return len(self._flights)

    def _deadline(self, request: DecodedRequest, requested_at: float | None, now: float) -> float | None:
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
            raise expired(request)
        return self._clock.monotonic() + left

    def _begin(
        self,
        request: DecodedRequest,
        waiter: Waiter,
        enabled: bool,
        deadline: float | None,
        resolve_at: float,
        prepared: Prepared,
        span: Span | None,
    ) -> Answer | None:
        policy = parse_cache_control(request.cache_control) if request.cache_control else DEFAULT
        version = self.catalog.resolve(request.model_name, request.model_version, resolve_at)
        parameters = sort_parameters(request.parameters)
        if parameters.sequenced or not version.is_plain:
            raise _unserved(version)
        tensors = check_inputs(version, request)
        prepared.content = content = content_digest(tensors, parameters.keyed)
        if (trial := version.trial) is not None and request.model_version is None and trial.takes(content, resolve_at):
            version = trial.version
            tensors = check_inputs(version, request)
        outputs = requested_outputs(version, request)
        encoded = version.all_outputs_encoded if outputs is version.all_outputs else encode_outputs(outputs)
        prepared.input_bytes = input_bytes = sum([len(tensor.raw) for tensor in tensors])
        key: bytes | None = None
        stored: StoredAnswer | None = None
        if not enabled or not version.signature.cacheable:
            if policy.only_stored:
                raise WireError(ErrorCode.CACHE_MISS, "cache_control: only-if-cached, and the cache is off")
            policy = _BYPASS
        else:
            key = cache_key(version.scope_of(request.tenant), content, encoded)
            now = self._clock.monotonic()
            stored = self._cache.get(key, now) if policy.read else None
            if stored is not None and policy.takes(age_s := max(now - stored.stored_at, 0.0)):
                self._metrics.count_hit(version.model_name, age_s)
                return Answer("succeeded", version.version, stored, None, "hit", key, age_s)
        member = Member(waiter, request, "bypass", policy, enabled, deadline, 0.0, resolve_at, span=span)
        if key is not None and self._flights.join(key, member):
            return None
        flight = Flight(
            key, request.tenant, version, tensors, outputs, encoded, parameters.keyed, parameters.server, input_bytes
        )
        flight.replaces = stored is not None or not policy.read
        return self._flights.take_off(flight, member)

    def _resubmit(self, member: Member, resolve_at: float) -> Answer | None:
        try:
            return self._begin(
                member.request, member.waiter, member.enable_cache, member.deadline, resolve_at, Prepared(), member.span
            )
        except WireError as error:
            return failed(error, member.cache_status)


@dataclass(slots=True, eq=False)
class _FutureWaiter:
    """Waits in a future; a caller who was cancelled needs no answer."""

    future: "asyncio.Future[Answer]"

    def answered(self, answer: Answer) -> None:
        if not self.future.done():
            self.future.set_result(answer)


def _unserved(version: ServedVersion) -> WireError:
    """Of kinds of models that need more than one answer, or more than one request, to make sense."""
    kind = "a decoupled model" if version.signature.decoupled else "a sequence"
    return WireError(ErrorCode.INVALID_REQUEST, f"model_name: {version.model_name!r:.80}: {kind} is not served")
