"""The client of a real Triton: large tensors, memory shared with it, and what restarts and timeouts do to both.

Whatever happens to the memory, every call has its own answer, bit for bit, or an error of the port.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.adapters.triton import TritonRegions, TritonServer
from pipeline.adapters.triton_shared_memory import FOLDER, SHARED_BYTES_MIN, Lease, SharedSlots
from pipeline.errors import ModelFailed, ServerUnavailable
from pipeline.ports import InferenceCall
from schemas.tensor import DATATYPES, Tensor
from tests.adapters.triton_process import FIXED_BYTES, TritonProcess
from tests.contracts.inference_server import echo_call, echoed, eight_rows

pytestmark = [pytest.mark.live, pytest.mark.timeout(60)]

MIB = 1 << 20
LARGE = 2 * SHARED_BYTES_MIN
_WAIT_S = 30.0


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonProcess]:
    """One server for the module."""
    triton = TritonProcess(tmp_path_factory.mktemp("triton"))
    triton.start()
    try:
        yield triton
    finally:
        triton.kill()


@pytest.fixture
def triton(process: TritonProcess) -> TritonProcess:
    """The server, running."""
    process.ensure_running()
    return process


class WatchedSlots(SharedSlots):
    """Slots that remember what they lent, and how each lease ended."""

    def __init__(self, regions: TritonRegions, **options: Any) -> None:
        super().__init__(regions, **options)
        self.server = regions
        self.leases: list[Lease] = []
        self.ends: list[bool] = []

    def lend(self, inputs: Sequence[Tensor], output_sizes: Any) -> Lease | None:
        lease = super().lend(inputs, output_sizes)
        if lease is not None:
            self.leases.append(lease)
        return lease

    def _ended(self, slot: Any, answered: bool) -> None:
        self.ends.append(answered)
        super()._ended(slot, answered)

    def files(self) -> set[str]:
        """Segments of this process that are there."""
        return {path.name for path in FOLDER.glob(f"pipeline_slot_{os.getpid()}_*")}


class Connected:
    """A client with shared memory, and a look into that."""

    def __init__(self, address: str, bytes_max: int = 256 * MIB, folder: Path = FOLDER) -> None:
        made: list[WatchedSlots] = []

        def make(regions: TritonRegions) -> WatchedSlots:
            made.append(WatchedSlots(regions, bytes_max=bytes_max, folder=folder))
            return made[0]

        self.address = address
        self.server = TritonServer("triton-0", address, None, make)
        (self.slots,) = made

    async def ask(self, tensor: Tensor, timeout_s: float = 20.0, **parameters: Any) -> tuple[Tensor, ...]:
        """An echo."""
        call = echo_call(tensor, outputs=(f"{tensor.name}_echo",), parameters=parameters)
        return await self.server.infer(call, timeout_s)

    async def reached(self) -> None:
        """Returns when a small call is answered: the connection is there again."""
        async with asyncio.timeout(_WAIT_S):
            while True:
                try:
                    await self.ask(numbered(0, 8))
                except ServerUnavailable:
                    await asyncio.sleep(0.02)
                else:
                    return

    async def until_forgotten(self, name: str) -> None:
        """Returns when a segment is gone; the client looks once a second."""
        async with asyncio.timeout(_WAIT_S):
            while name in self.slots.files():  # noqa: ASYNC110 - the kernel has no event for it here
                await asyncio.sleep(0.02)
            assert name not in await self.slots.server.registered()

    async def warm(self, size: int = LARGE) -> None:
        """Returns when calls of this size have a slot."""
        async with asyncio.timeout(_WAIT_S):
            count = len(self.slots.leases)
            while len(self.slots.leases) == count:
                await self.ask(numbered(0, size))


@pytest.fixture
async def connected(triton: TritonProcess) -> AsyncIterator[Connected]:
    """A client with shared memory; at its end the server knows none of it, and nothing lies in /dev/shm."""
    client = Connected(triton.address)
    yield client
    triton.ensure_running()
    await client.server.close()
    assert client.slots.files() == set()


def numbered(number: int, size: int = LARGE) -> Tensor:
    """A tensor that no other call has."""
    return Tensor("uint8", "UINT8", (1, size), number.to_bytes(8, "little") * (size // 8))


@pytest.mark.parametrize("datatype", DATATYPES)
async def test_only_bytes_never_lie_in_shared_memory(connected: Connected, datatype: str) -> None:
    """Large tensors of every datatype but BYTES lie in a slot once there is one, and come back the same."""
    tensor = eight_rows(datatype, 1)
    await connected.warm(320_000)
    before = len(connected.slots.leases)
    assert await connected.ask(tensor) == (echoed(tensor),)
    assert len(connected.slots.leases) - before == (0 if datatype == "BYTES" else 1)


async def test_outputs_of_fixed_size_do_not_travel(connected: Connected) -> None:
    """An output whose size the configuration fixes is written to the slot, for every row of the batch."""
    x = Tensor("x", "UINT8", (2, FIXED_BYTES), os.urandom(2 * FIXED_BYTES))
    call = InferenceCall("fixed", "1", [x], [("label", {}), ("inverted", {})])
    inverted = bytes(255 - byte for byte in x.raw)
    label = b"".join(x.raw[start].to_bytes(4, "little") for start in (0, FIXED_BYTES))
    expected = (Tensor("label", "INT32", (2, 1), label), Tensor("inverted", "UINT8", (2, FIXED_BYTES), inverted))

    def placed() -> set[str]:
        return set(connected.slots.leases[-1].outputs) if connected.slots.leases else set()

    async with asyncio.timeout(_WAIT_S):
        while placed() != {"inverted"}:
            assert await connected.server.infer(call, 20.0) == expected
    assert connected.slots.ends[-1]


async def test_small_calls_pass_large_ones(triton: TritonProcess) -> None:
    """Small calls are answered while 64 MB are on their way, or at the model, and these come back bit for bit."""
    plain = TritonServer("triton-0", triton.address)
    x = Tensor("x", "UINT8", (1, FIXED_BYTES), bytes(FIXED_BYTES))
    label = InferenceCall("fixed", "1", [x], [("label", {})])
    slow = {"delay_ms": 2000}
    large = [
        asyncio.ensure_future(plain.infer(echo_call(numbered(n, 64 * MIB), parameters=slow), 60.0)) for n in range(2)
    ]
    try:
        for _ in range(3):
            await plain.infer(label, 20.0)
        assert not any(call.done() for call in large)
        for n, answer in enumerate(await asyncio.gather(*large)):
            assert answer == (echoed(numbered(n, 64 * MIB)),)
    finally:
        await plain.close()


async def test_slot_of_an_unanswered_call_is_not_used_while_it_runs(connected: Connected) -> None:
    """After a timeout the model goes on: calls meanwhile have other slots and their own answers; then it is gone."""
    await connected.warm()
    with pytest.raises(ServerUnavailable):
        await connected.ask(numbered(1), 0.3, delay_ms=1500)
    lost = region(connected.slots.leases[-1])
    for number in range(2, 30):
        assert await connected.ask(numbered(number)) == (echoed(numbered(number)),)
    used = {region(lease) for lease in connected.slots.leases[-20:]}
    assert lost not in used
    await connected.until_forgotten(lost)


async def test_cancelled_call_does_not_give_its_slot_back(connected: Connected) -> None:
    """Likewise after a cancellation: what nobody waits for any more may still be written."""
    await connected.warm()
    count = len(connected.slots.leases)
    task = asyncio.ensure_future(connected.ask(numbered(1), 20.0, delay_ms=800))
    await asyncio.sleep(0.05)  # the model runs by then, most often; the promise holds before, too
    assert len(connected.slots.leases) == count + 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    lost = region(connected.slots.leases[-1])
    assert connected.slots.ends[-1] is False
    await connected.warm()
    assert lost not in {region(lease) for lease in connected.slots.leases[count + 1 :]}
    await connected.until_forgotten(lost)


async def test_failed_model_is_told_once(connected: Connected) -> None:
    """A model's own failure in shared memory is a failure like any other, and the next call is answered."""
    await connected.warm()
    with pytest.raises(ModelFailed, match="out of ink"):
        await connected.ask(numbered(1), fail="out of ink")
    await connected.warm()


async def test_restarted_server_costs_no_request(connected: Connected, triton: TritonProcess) -> None:
    """A server that forgot its regions is asked over gRPC at once, and has new ones after."""
    await connected.warm()
    triton.kill()
    triton.start()
    await connected.reached()
    count, ended = len(connected.slots.leases), len(connected.slots.ends)
    answers = await asyncio.gather(*(connected.ask(numbered(number)) for number in range(8)))
    assert answers == [(echoed(numbered(number)),) for number in range(8)]
    assert connected.slots.ends[ended:].count(False) == 1, "the lost slot was tried once"
    await connected.warm()
    assert connected.slots.ends[-1] is True
    assert region(connected.slots.leases[-1]) != region(connected.slots.leases[count])


async def test_stopped_server_keeps_its_slots(connected: Connected, triton: TritonProcess) -> None:
    """What a stopped server may still write counts as held, and nobody else gets it; it goes on, and lets go."""
    await connected.warm()
    triton.pause()
    try:
        with pytest.raises(ServerUnavailable):
            await connected.ask(numbered(1), 0.5)
        lost = region(connected.slots.leases[-1])
        assert connected.slots.held_bytes >= LARGE
        assert lost in connected.slots.files()
    finally:
        triton.go_on()
    await connected.until_forgotten(lost)
    await connected.warm()


async def test_server_elsewhere_is_asked_over_grpc(
    triton: TritonProcess, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that does not see this process's memory says so when it is asked to open it: gRPC, told once."""
    client = Connected(triton.address, folder=tmp_path)
    with caplog.at_level(logging.INFO):
        for number in range(20):
            assert await client.ask(numbered(number)) == (echoed(numbered(number)),)
    assert client.slots.leases == []
    assert [record.getMessage()[:40] for record in caplog.records] == ["large tensors travel over gRPC, not in s"]
    await client.server.close()
    assert list(tmp_path.glob("*")) == []  # noqa: ASYNC240 - a folder of the test's own


async def test_server_forgets_what_is_closed(triton: TritonProcess) -> None:
    """After closing the server knows none of this process's memory, and nothing of it lies in /dev/shm."""
    client = Connected(triton.address)
    await client.warm()
    assert client.slots.files() <= set(await client.slots.server.registered())
    assert client.slots.files() != set()
    names = client.slots.files()
    await client.server.close()
    assert client.slots.files() == set()
    other = Connected(triton.address)
    assert names.isdisjoint(await other.slots.server.registered())
    await other.server.close()


def region(lease: Lease) -> str:
    return next(iter([*lease.inputs.values(), *lease.outputs.values()])).region
