"""`triton.…`: four real Tritons, one of them slow or stopped, or asked for twice as much as they can do."""

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt

from pipeline.adapters.triton import TritonServer
from pipeline.bench.effort import Effort
from pipeline.bench.figure import Bar, Figure, paired
from pipeline.bench.fleet_clients import PLAIN_TIMEOUT_S, InTurnClient, Later, OurClient, Phase, engine_on, until
from pipeline.bench.rig import Rig
from pipeline.bench.slow_link import SlowLink
from pipeline.bench.workload import MODEL, images
from pipeline.core.answer import Answer
from pipeline.core.catalog import ModelCatalog
from pipeline.errors import SettingsError
from pipeline.stack import StackPlan
from pipeline.stack.ports import PortBook
from pipeline.stack.process import Child
from pipeline.stack.triton import make_tritons, remove_shared_memory
from schemas.request import InferenceRequest, InputTensor

INSTANCES = 4
# Before the fault, and not counted: connections are made, times are learnt.
_RUN_IN_S = 2.0
# A call takes 5-10 ms, and this host pauses for 30-200: a shorter delay would be lost in that.
_DELAY_S = 0.3
_LATE_S = 5.0
_ROWS = 64
_IN_FLIGHT = 64
_OVERLOAD_TIMEOUT_MS = 500
_TROUBLES = {
    "slow_instance_p99": f"{_DELAY_S * 1e3:.0f} ms slower than the others",
    "stopped_instance_p99": "stopped: it accepts, and never answers",
}
_QUARTER, _TWICE, _MOST = Bar("ratio_at_most", 0.25), Bar("ratio_at_most", 2.0), Bar("ratio_at_least", 0.9)
_BACKENDS = Path(__file__).resolve().parents[2] / "infra" / "triton" / "backends"


@dataclass(slots=True)
class _Fleet:
    """Four Tritons; the last one, which gets into trouble, behind a link that can be slow."""

    last: Child
    link: SlowLink
    addresses: dict[str, str]
    catalog: ModelCatalog
    rig: Rig

    @asynccontextmanager
    async def servers(self) -> AsyncIterator[list[TritonServer]]:
        """Connections of their own for each phase."""
        servers = [TritonServer(name, address) for name, address in self.addresses.items()]
        try:
            yield servers
        finally:
            for server in servers:
                await server.close()


async def measure_slow(rig: Rig, effort: Effort) -> list[Figure]:
    """One of four is slow, on servers that are started for it; likewise the others."""
    async with _four_tritons(rig) as fleet:
        return await _faulted(fleet, effort, "slow_instance_p99", _slow)


async def measure_stopped(rig: Rig, effort: Effort) -> list[Figure]:
    """One of four is stopped."""
    async with _four_tritons(rig) as fleet:
        return await _faulted(fleet, effort, "stopped_instance_p99", _stopped)


async def measure_overload(rig: Rig, effort: Effort) -> list[Figure]:
    """Twice as much as four can do."""
    async with _four_tritons(rig) as fleet:
        return [await _overload(fleet, effort)]


@asynccontextmanager
async def _four_tritons(rig: Rig) -> AsyncIterator[_Fleet]:
    serving = rig.folder / "serving"
    if not (serving / MODEL).is_dir():
        raise SettingsError("the triton benchmarks stop and slow Tritons: unset PIPELINE_TRITON__URLS, they start four")
    folder = Path(tempfile.mkdtemp(prefix="fleet-", dir=rig.folder))
    (folder / "triton").mkdir()
    plan = StackPlan(folder, False, False, False, INSTANCES, serving_dir=serving, backends_dir=_BACKENDS)
    rig.tell(f"triton: starting {INSTANCES} Tritons")
    tritons = await make_tritons(plan, PortBook(folder / "ports.json"), dict(os.environ), folder)
    async with AsyncExitStack() as running:
        children = []
        for triton in tritons:
            running.callback(remove_shared_memory, triton.shm_prefix)
            child = Child(triton.spec, folder / f"{triton.name}.log")
            running.push_async_callback(child.stop)
            await child.start()
            children.append(child)
        for child in children:
            await child.wait_ready()
        link = await running.enter_async_context(SlowLink(tritons[-1].endpoint.grpc).opened())
        addresses = {triton.name: triton.endpoint.grpc for triton in tritons} | {tritons[-1].name: link.address}
        yield _Fleet(children[-1], link, addresses, ModelCatalog(rig.models.values()), rig)


@asynccontextmanager
async def _slow(fleet: _Fleet) -> AsyncIterator[None]:
    """Its answers come later."""
    fleet.link.delay_s = _DELAY_S
    try:
        yield
    finally:
        fleet.link.delay_s = 0.0


@asynccontextmanager
async def _stopped(fleet: _Fleet) -> AsyncIterator[None]:
    """Accepts what comes, and does nothing."""
    _signal(fleet.last, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal(fleet.last, signal.SIGCONT)


@asynccontextmanager
async def _healthy(fleet: _Fleet) -> AsyncIterator[None]:
    """As it is."""
    yield


def _signal(child: Child, number: signal.Signals) -> None:
    if child.pid is not None:
        with suppress(ProcessLookupError):
            os.kill(child.pid, number)


_Fault = Callable[[_Fleet], AbstractAsyncContextManager[None]]


async def _faulted(fleet: _Fleet, effort: Effort, name: str, fault: _Fault) -> list[Figure]:
    healthy: list[Phase] = []
    ours: list[Phase] = []
    plain: list[Phase] = []
    for _ in range(effort.fleet_rounds):
        healthy.append(await _phase(fleet, effort, _healthy))
        ours.append(await _phase(fleet, effort, fault))
        plain.append(await _phase(fleet, effort, fault, in_turn=True))
        p99 = ", ".join(f"{phases[-1].p99_ms:.1f} ms" for phases in (healthy, ours, plain))
        fleet.rig.tell(f"{name}: p99 of a healthy fleet, with one in trouble, and round robin's: {p99}")
    values, in_turn, before = ([phase.p99_ms for phase in phases] for phases in (ours, plain, healthy))
    how = (
        f"p99 from due to answered, {effort.fleet_rate} requests/s of digits through engine and dispatcher, one of "
        f"{INSTANCES} Tritons {_TROUBLES[name]}"
    )
    notes = {
        "failed": float(sum(phase.failed for phase in ours)),
        "failed_round_robin": float(sum(phase.failed for phase in plain)),
        "calls_to_it_round_robin": median(phase.share for phase in plain),
        "calls_to_it": median(phase.share for phase in ours),
        "busiest_of_healthy": max(phase.share for phase in healthy),
    }
    return [
        paired(
            f"triton.{name}", "ms", values, in_turn, _QUARTER, how=how, notes=notes,
            yardstick_how=f"round robin, {PLAIN_TIMEOUT_S:g} s a try, three strikes and out",
        ),
        paired(
            f"triton.{name}_cost", "ms", values, before, _TWICE, how="the same",
            yardstick_how="the same while all of them are healthy",
        ),
    ]  # fmt: skip


async def _phase(fleet: _Fleet, effort: Effort, fault: _Fault, *, in_turn: bool = False) -> Phase:
    """Requests at a steady rate; once the run-in is over the last instance is in trouble, and all count."""
    phase = Phase()
    async with fleet.servers() as servers:
        client = InTurnClient(fleet.catalog, servers, phase) if in_turn else OurClient(fleet.catalog, servers, phase)
        requests = [_request(image) for image in images(100)]
        await _steadily(client, requests, effort.fleet_rate, _RUN_IN_S, counted=False)
        before = client.calls()
        async with fault(fleet):
            await _steadily(client, requests, effort.fleet_rate, effort.fleet_seconds, counted=True)
            await client.all_answered()
        calls = {name: count - before.get(name, 0) for name, count in client.calls().items()}
        phase.share = (max(calls.values()) if fault is _healthy else calls[servers[-1].name]) / sum(calls.values())
        await client.stop()
    return phase


async def _steadily(
    client: OurClient | InTurnClient,
    requests: Sequence[InferenceRequest],
    rate: float,
    seconds: float,
    *,
    counted: bool,
) -> None:
    began = time.monotonic()
    for number in range(int(rate * seconds)):
        due = began + number / rate
        await asyncio.sleep(max(due - time.monotonic(), 0.0))
        client.ask(requests[number % len(requests)], due, counted)


async def _overload(fleet: _Fleet, effort: Effort) -> Figure:
    """What is answered in time at twice the rate that the fleet can do, beside that rate."""
    peaks: list[float] = []
    goodputs: list[float] = []
    for _ in range(effort.fleet_rounds):
        async with fleet.servers() as servers:
            before = await _peak(fleet, effort, servers)
            goodput = await _goodput(fleet, effort, servers, 2 * before)
            peak = (before + await _peak(fleet, effort, servers)) / 2
        peaks.append(peak)
        goodputs.append(goodput)
        fleet.rig.tell(f"overload_goodput: peak {peak:,.0f}/s, in time at twice that {goodput:,.0f}/s")
    return paired(
        "triton.overload_goodput", "requests/s", goodputs, peaks, _MOST,
        how=f"answers within {_OVERLOAD_TIMEOUT_MS} ms to requests of {_ROWS} rows of digits at twice the peak's rate",
        yardstick_how=f"the peak, before and after: {_IN_FLIGHT} in flight, an answer followed by the next request",
    )  # fmt: skip


async def _peak(fleet: _Fleet, effort: Effort, servers: Sequence[TritonServer]) -> float:
    engine = engine_on(fleet.catalog, servers)
    requests = [_request(image) for image in _large_images()]
    ends_at = time.monotonic() + effort.fleet_seconds
    done = 0

    def answered(answer: Answer) -> None:
        nonlocal done
        done += answer.status == "succeeded"
        if time.monotonic() < ends_at:
            engine.submit(requests[done % len(requests)], Later(answered))

    for request in requests[:_IN_FLIGHT]:
        engine.submit(request, Later(answered))
    await until(lambda: time.monotonic() >= ends_at, effort.fleet_seconds + _LATE_S)
    rate = done / effort.fleet_seconds
    await engine.stop()
    return rate


async def _goodput(fleet: _Fleet, effort: Effort, servers: Sequence[TritonServer], rate: float) -> float:
    engine = engine_on(fleet.catalog, servers)
    requests = [_request(image, _OVERLOAD_TIMEOUT_MS) for image in _large_images()]
    began = time.monotonic()
    # A request counts from when it was due, also where this loop is late.
    offset = time.time() - began
    in_time = sent = 0

    def answered(due: float, answer: Answer) -> None:
        nonlocal in_time
        in_time += answer.status == "succeeded" and time.monotonic() - due <= _OVERLOAD_TIMEOUT_MS / 1e3

    while (now := time.monotonic()) - began < effort.fleet_seconds:
        while (due := began + sent / rate) <= now:
            sent += 1
            engine.submit(requests[sent % len(requests)], Later(partial(answered, due)), requested_at=due + offset)
        await asyncio.sleep(0.001)
    await asyncio.sleep(_OVERLOAD_TIMEOUT_MS / 1e3)
    await engine.stop()
    return in_time / effort.fleet_seconds


def _request(image: npt.NDArray[np.float32], timeout_ms: int | None = None) -> InferenceRequest:
    tensor = InputTensor(name="image", datatype="FP32", shape=list(image.shape), data=image.tobytes())
    return InferenceRequest(model_name=MODEL, inputs=[tensor], enable_cache=False, timeout_ms=timeout_ms)


def _large_images() -> list[npt.NDArray[np.float32]]:
    rng = np.random.default_rng()
    return [rng.uniform(0.0, 16.0, (_ROWS, 64)).astype(np.float32) for _ in range(_IN_FLIGHT)]
