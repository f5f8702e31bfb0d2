"""Clients of four Tritons: engine and dispatcher as they are, and one that asks in turn."""

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from random import Random

from pipeline.adapters.system import SystemClock
from pipeline.adapters.triton import TritonServer
from pipeline.core.answer import Answer, StoredAnswer
from pipeline.core.catalog import ModelCatalog
from pipeline.core.response_cache import ResponseCache
from pipeline.core.routing import Router
from pipeline.dispatcher import Dispatcher
from pipeline.engine import InferenceEngine
from pipeline.errors import ServerUnavailable
from pipeline.ports import InferenceCall
from schemas.request import InferenceRequest

# What a plain client waits for one instance.
PLAIN_TIMEOUT_S = 1.0
# As the product does it.
ATTEMPT_TIMEOUT_S = 20.0
_LATE_S = 5.0


class RoundRobin(Router):
    """The plain way: one after the other, with the same ejection; probes are requests that somebody waits for."""

    def pick(self, now: float, tried: Collection[str] = ()) -> str:
        """The next in turn that may be asked."""
        loads = [load for load in self.instances.values() if load.name not in tried] or [*self.instances.values()]
        usable = [load for load in loads if not load.ejected or load.due_for_probe(now)] or loads
        return usable[self._calls % len(usable)].name


@dataclass(slots=True)
class Phase:
    """Milliseconds from the moment each request was due to its answer, and how many had none."""

    latencies_ms: list[float] = field(default_factory=list)
    failed: int = 0
    share: float = 0.0

    @property
    def p99_ms(self) -> float:
        """The 99th percentile."""
        return sorted(self.latencies_ms)[int(len(self.latencies_ms) * 0.99)]


class OurClient:
    """Engine and dispatcher, nothing cached."""

    def __init__(self, catalog: ModelCatalog, servers: Sequence[TritonServer], phase: Phase) -> None:
        self._phase = phase
        self._router = Router([server.name for server in servers], Random())
        self._engine = engine_on(catalog, servers, self._router)
        self._open = 0

    def ask(self, request: InferenceRequest, due: float, counted: bool) -> None:
        """One request; nobody waits here."""
        self._open += 1
        self._engine.submit(request, Later(partial(self._answered, due, counted)))

    def calls(self) -> dict[str, int]:
        """Calls so far, by instance."""
        return {name: load.calls for name, load in self._router.instances.items()}

    async def all_answered(self) -> None:
        """Returns once all are, or after a while."""
        await until(lambda: not self._open)
        self._phase.failed += self._open

    async def stop(self) -> None:
        """Gives up what is out."""
        await self._engine.stop()

    def _answered(self, due: float, counted: bool, answer: Answer) -> None:
        self._open -= 1
        if answer.status != "succeeded":
            self._phase.failed += 1
        elif counted:
            self._phase.latencies_ms.append((time.monotonic() - due) * 1e3)


class InTurnClient:
    """The plain way: a call for each request, to one instance after the other."""

    def __init__(self, catalog: ModelCatalog, servers: Sequence[TritonServer], phase: Phase) -> None:
        self._catalog = catalog
        self._servers = {server.name: server for server in servers}
        self._phase = phase
        self._router = RoundRobin(list(self._servers), Random())
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self, request: InferenceRequest, due: float, counted: bool) -> None:
        """One request; nobody waits here."""
        task = asyncio.create_task(self._run(request, due, counted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def calls(self) -> dict[str, int]:
        """Calls so far, by instance."""
        return {name: load.calls for name, load in self._router.instances.items()}

    async def all_answered(self) -> None:
        """Returns once all are, or after a while."""
        await until(lambda: not self._tasks)
        self._phase.failed += len(self._tasks)

    async def stop(self) -> None:
        """Gives up what is out."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, request: InferenceRequest, due: float, counted: bool) -> None:
        version = self._catalog.resolve(request.model_name, None, time.time())
        call = InferenceCall(request.model_name, version.version, [request.inputs[0].to_tensor()], version.all_outputs)
        tried: list[str] = []
        while len(tried) < len(self._servers):
            name = self._router.pick(time.monotonic(), tried)
            tried.append(name)
            number = self._router.begin(name, time.monotonic())
            try:
                await self._servers[name].infer(call, PLAIN_TIMEOUT_S)
            except ServerUnavailable:
                self._router.end(name, number, time.monotonic(), answered=False)
                continue
            self._router.end(name, number, time.monotonic(), answered=True)
            if counted:
                self._phase.latencies_ms.append((time.monotonic() - due) * 1e3)
            return
        self._phase.failed += 1


def engine_on(catalog: ModelCatalog, servers: Sequence[TritonServer], router: Router | None = None) -> InferenceEngine:
    """An engine on these servers whose cache holds nothing."""
    router = router or Router([server.name for server in servers], Random())
    dispatcher = Dispatcher(servers, router, SystemClock(), attempt_timeout_s=ATTEMPT_TIMEOUT_S, batches_in_flight=4)
    return InferenceEngine(
        catalog, ResponseCache[StoredAnswer](0), dispatcher, SystemClock(), ttl_s=1.0, unavailable_timeout_s=30.0
    )


@dataclass(slots=True, eq=False)
class Later:
    """Somebody who is told."""

    tell: Callable[[Answer], None]

    def answered(self, answer: Answer) -> None:
        """See `pipeline.core.coalescing.Waiter`."""
        self.tell(answer)


async def until(done: Callable[[], bool], limit_s: float = _LATE_S) -> None:
    """Returns once it is so, or after a while."""
    with suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            while not done():  # noqa: ASYNC110 - looked at from outside of what changes it
                await asyncio.sleep(0.01)
