"""Slots of shared memory: lent to one call at a time, again only after an answer, bounded, and nothing is left."""

import asyncio
import contextlib
import fcntl
import logging
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.adapters.triton_shared_memory import (
    SHARED_BYTES_MIN,
    Lease,
    SharedSlots,
    Slot,
    is_leftover,
    remove_leftovers,
)
from pipeline.errors import InferenceServerError, ModelFailed, ServerUnavailable
from schemas.tensor import Tensor
from tests.simulation.virtual_time import run_simulated

LARGE = SHARED_BYTES_MIN
MIB = 1 << 20


def blob(size: int, fill: int = 1, name: str = "x") -> Tensor:
    return Tensor(name, "UINT8", (size,), bytes([fill]) * size)


class FakeRegions:
    """A server's side: what it knows, what it refuses to forget, and how it fails."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}
        self.in_use: set[str] = set()
        self.failure: InferenceServerError | None = None
        self.registrations = 0

    async def register(self, name: str, size: int) -> None:
        self.registrations += 1
        if self.failure is not None:
            raise self.failure
        self.known[name] = size

    async def unregister(self, name: str) -> None:
        if isinstance(self.failure, ServerUnavailable):
            raise self.failure
        if name in self.in_use:
            raise ModelFailed("triton-0", "currently in use")
        self.known.pop(name, None)

    async def registered(self) -> list[str]:
        return list(self.known)


Scenario = Callable[[SharedSlots, FakeRegions], Awaitable[None]]


def run(scenario: Scenario, folder: Path, bytes_max: int = 4 * MIB, regions: FakeRegions | None = None) -> None:
    """Runs it in virtual time; at its end nothing of it is left in the folder or at the server."""
    server = regions or FakeRegions()

    async def main() -> None:
        slots = SharedSlots(server, bytes_max=bytes_max, folder=folder)
        await scenario(slots, server)
        server.in_use.clear()
        server.failure = None
        await slots.close()
        await slots.close()
        assert (names(folder), server.known) == (set(), {})

    run_simulated(main())


async def lent(slots: SharedSlots, size: int, seconds: float = 0.5) -> Lease:
    """A lease of the next call that gets one, as calls come one after the other."""
    for _ in range(20):
        lease = slots.lend([blob(size)], {})
        if lease is not None:
            return lease
        await asyncio.sleep(seconds)
    raise AssertionError(f"no slot for {size} bytes")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def bytes_on_disk(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir())


def region(lease: Lease) -> str:
    return lease.inputs[0].region


def test_slot_is_made_behind_and_lent_to_one_call(tmp_path: Path) -> None:
    """The first call gets none; then one call has the slot at a time, the tensors in it, and the next has it again."""

    async def scenario(slots: SharedSlots, regions: FakeRegions) -> None:
        assert slots.lend([blob(LARGE)], {}) is None
        first = await lent(slots, LARGE)
        assert slots.lend([blob(LARGE)], {}) is None
        path = tmp_path / region(first)
        assert path.read_bytes()[:LARGE] == b"\1" * LARGE
        first.end(answered=True)
        assert region(await lent(slots, LARGE)) in names(tmp_path)
        await asyncio.sleep(0.1)
        assert regions.known.keys() == names(tmp_path)

    run(scenario, tmp_path)


def test_parts_do_not_overlap_and_small_ones_travel(tmp_path: Path) -> None:
    """Large inputs and outputs have places of their own; what is small, and BYTES of any size, has none."""

    async def scenario(slots: SharedSlots, regions: FakeRegions) -> None:
        text = Tensor("t", "BYTES", (1,), (LARGE).to_bytes(4, "little") + bytes(LARGE))
        inputs = [blob(LARGE + 1, 1), blob(LARGE - 1, 2), text, blob(LARGE, 3)]
        (await lent(slots, 3 * MIB)).end(answered=True)
        lease = slots.lend(inputs, {"y": LARGE, "label": 8, "z": LARGE + 7})
        assert lease is not None
        assert (set(lease.inputs), set(lease.outputs)) == ({0, 3}, {"y", "z"})
        parts = sorted([*lease.inputs.values(), *lease.outputs.values()], key=lambda part: part.offset)
        assert all(one.offset + one.size <= other.offset for one, other in pairwise(parts))
        held = (tmp_path / region(lease)).read_bytes()
        for index in (0, 3):
            place = lease.inputs[index]
            assert held[place.offset : place.offset + place.size] == inputs[index].raw
        assert slots.lend([blob(LARGE - 1), text], {"label": 8}) is None

    run(scenario, tmp_path)


def test_output_that_was_not_written_is_none(tmp_path: Path) -> None:
    """What an earlier call left in a slot is never read as an answer, nor is more than there was room for."""

    async def scenario(slots: SharedSlots, regions: FakeRegions) -> None:
        (await lent(slots, 2 * LARGE)).end(answered=True)
        for fill in (b"a", b"b"):
            lease = slots.lend([], {"y": LARGE})
            assert lease is not None
            assert lease.read("y", LARGE) is None
            place = lease.outputs["y"]
            with (tmp_path / place.region).open("r+b") as file:
                file.seek(place.offset)
                file.write(fill * LARGE)
            assert lease.read("y", LARGE) == fill * LARGE
            assert lease.read("y", 100) == fill * 100
            assert lease.read("y", LARGE + 1) is None
            assert lease.read("z", 10) is None
            lease.end(answered=True)

    run(scenario, tmp_path)


def test_slot_without_an_answer_is_never_lent_again(tmp_path: Path) -> None:
    """It counts until the server lets go of it; then it is gone, and another is made."""

    async def scenario(slots: SharedSlots, regions: FakeRegions) -> None:
        lease = await lent(slots, 3 * MIB)
        name = region(lease)
        regions.in_use.add(name)
        lease.end(answered=False)
        for _ in range(10):
            assert slots.lend([blob(3 * MIB)], {}) is None
            assert slots.held_bytes == 3 * MIB
            await asyncio.sleep(1.0)
        regions.in_use.clear()
        again = await lent(slots, 3 * MIB)
        assert region(again) != name
        assert names(tmp_path) == {region(again)}

    run(scenario, tmp_path)


def test_all_slots_together_keep_to_the_bound(tmp_path: Path) -> None:
    """However many calls are out and retired, no more bytes are held than allowed; what is too large has no slot."""

    async def scenario(slots: SharedSlots, regions: FakeRegions) -> None:
        assert slots.lend([blob(4 * MIB + 1)], {}) is None
        held: list[Lease] = []
        for round_number in range(60):
            size = (LARGE, MIB, 2 * MIB)[round_number % 3]
            lease = slots.lend([blob(size)], {})
            if lease is not None:
                regions.in_use.add(region(lease))
                held.append(lease)
            if len(held) > 2:
                held.pop(0).end(answered=round_number % 2 == 0)
            await asyncio.sleep(0.1)
            assert slots.held_bytes <= 4 * MIB
            assert bytes_on_disk(tmp_path) <= 4 * MIB + 64 * 1024  # what the file system adds for itself
        assert held

    run(scenario, tmp_path)


def test_slot_grows_instead_of_another_being_made(tmp_path: Path) -> None:
    """Tensors of growing size need one slot, registered once."""

    async def scenario(slots: SharedSlots, regions: FakeRegions) -> None:
        for size in (LARGE, MIB, 3 * MIB, LARGE):
            lease = await lent(slots, size)
            assert (tmp_path / region(lease)).read_bytes()[:size] == b"\1" * size
            lease.end(answered=True)
        assert regions.registrations == 1
        assert slots.held_bytes == 3 * MIB

    run(scenario, tmp_path)


def test_slot_that_is_too_large_makes_room_for_small_ones(tmp_path: Path) -> None:
    """One large call does not take the room for good: once only small ones come, several of them have slots."""

    async def scenario(slots: SharedSlots, regions: FakeRegions) -> None:
        (await lent(slots, 4 * MIB)).end(answered=True)
        at_once: list[int] = []
        for _ in range(20):
            leases = [lease for _ in range(3) if (lease := slots.lend([blob(MIB)], {})) is not None]
            at_once.append(len(leases))
            await asyncio.sleep(1.0)
            for lease in leases:
                lease.end(answered=True)
        assert (at_once[0], at_once[-1]) == (1, 3)
        assert slots.held_bytes <= 4 * MIB

    run(scenario, tmp_path)


def test_slot_that_is_needed_makes_no_room(tmp_path: Path) -> None:
    """Calls that need all of a slot keep it, however many others want one."""

    async def scenario(slots: SharedSlots, regions: FakeRegions) -> None:
        (await lent(slots, 4 * MIB)).end(answered=True)
        for _ in range(30):
            lease = slots.lend([blob(4 * MIB)], {})
            assert lease is not None
            assert slots.lend([blob(MIB)], {}) is None
            await asyncio.sleep(1.0)
            lease.end(answered=True)
        assert regions.registrations == 1

    run(scenario, tmp_path)


@pytest.mark.parametrize("failure", [ModelFailed("t", "cannot open"), InferenceServerError("t", "unimplemented")])
def test_refusal_is_told_once_and_tried_rarely(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, failure: InferenceServerError
) -> None:
    """A server that does not see this memory is asked once a minute, the log says why once, and nobody waits."""

    async def scenario(slots: SharedSlots, regions: FakeRegions) -> None:
        regions.failure = failure
        for _ in range(110):
            assert slots.lend([blob(LARGE)], {}) is None
            await asyncio.sleep(1.0)
        assert regions.registrations == 2
        assert slots.held_bytes == 0
        regions.failure = None
        await lent(slots, LARGE, 10.0)

    with caplog.at_level(logging.INFO):
        run(scenario, tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        f"large tensors travel over gRPC, not in shared memory: {failure}"
    ]


def test_unreachable_server_is_tried_again_soon(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A server that is down is no server without shared memory: once it answers, a slot is made."""

    async def scenario(slots: SharedSlots, regions: FakeRegions) -> None:
        regions.failure = ServerUnavailable("t", "refused")
        for _ in range(5):
            assert slots.lend([blob(LARGE)], {}) is None
            await asyncio.sleep(1.0)
        regions.failure = None
        await lent(slots, LARGE)

    with caplog.at_level(logging.INFO):
        run(scenario, tmp_path)
    assert caplog.records == []


def test_full_memory_is_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where /dev/shm has no room, calls get no slot, or no larger one; those there are stay in use."""

    def full(file: int, offset: int, size: int) -> None:
        if size > MIB:
            raise OSError(28, "No space left on device")
        allocate(file, offset, size)

    allocate = os.posix_fallocate
    monkeypatch.setattr(os, "posix_fallocate", full)

    async def scenario(slots: SharedSlots, regions: FakeRegions) -> None:
        (await lent(slots, MIB)).end(answered=True)
        assert slots.lend([blob(2 * MIB)], {}) is None
        lease = slots.lend([blob(MIB)], {})
        assert lease is not None
        assert slots.lend([blob(2 * MIB)], {}) is None

    run(scenario, tmp_path)


def test_call_that_is_out_at_the_end_can_still_be_read(tmp_path: Path) -> None:
    """Closing takes names away, not memory that somebody reads."""

    async def scenario(slots: SharedSlots, regions: FakeRegions) -> None:
        (await lent(slots, 2 * LARGE)).end(answered=True)
        lease = slots.lend([], {"y": LARGE})
        assert lease is not None
        place = lease.outputs["y"]
        with (tmp_path / place.region).open("r+b") as file:
            file.seek(place.offset)
            file.write(b"y" * LARGE)
        await slots.close()
        assert lease.read("y", LARGE) == b"y" * LARGE
        lease.end(answered=True)
        assert slots.lend([blob(LARGE)], {}) is None

    run(scenario, tmp_path)


@pytest.fixture
def killed(tmp_path: Path) -> str:
    """The name of a segment whose process was killed."""
    code = (
        "import sys, signal, os; from pathlib import Path; from pipeline.adapters.triton_shared_memory import Slot; "
        "slot = Slot(4096, Path(sys.argv[1])); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run((sys.executable, "-c", code, str(tmp_path)), check=False).returncode == -9
    (path,) = tmp_path.iterdir()
    return path.name


def test_segments_of_the_killed_are_removed_by_the_next_start(tmp_path: Path, killed: str) -> None:
    """What a killed process left goes; a living one's, and what is somebody else's, stays."""
    slot = Slot(4096, tmp_path)
    others = [tmp_path / name for name in ("pipeline_0123_0_x", "pipeline_slot_x_1_2", "psm_1234")]
    for path in others:
        path.touch()
    assert remove_leftovers(tmp_path) == [killed]
    assert {path.name for path in tmp_path.iterdir()} == {slot.name, *(path.name for path in others)}
    slot.remove()
    assert not is_leftover(slot.name, tmp_path)


def test_owner_in_another_container_keeps_its_segments(tmp_path: Path, killed: str) -> None:
    """Whose process cannot be seen but holds the lock is alive."""
    with locked(tmp_path / killed):
        assert remove_leftovers(tmp_path) == []
    assert remove_leftovers(tmp_path) == [killed]


def test_segment_of_a_number_used_again_is_left_over(tmp_path: Path, killed: str) -> None:
    """A living process with the number of the dead one, started at another time, owns nothing of it."""
    name = killed.split("_")
    name[2] = str(os.getpid())
    (tmp_path / killed).rename(tmp_path / "_".join(name))
    assert remove_leftovers(tmp_path) == ["_".join(name)]


def test_server_forgets_what_the_killed_had_registered(tmp_path: Path, killed: str) -> None:
    """Its memory would stay with the server for ever; regions of others are not touched."""
    (tmp_path / killed).unlink()
    regions = FakeRegions()
    regions.known = {killed: 4096, "somebody_else": 4096}

    async def scenario(slots: SharedSlots, server: FakeRegions) -> None:
        assert slots.lend([], {}) is None
        await asyncio.sleep(0.1)
        assert server.known == {"somebody_else": 4096}
        server.known.clear()

    run(scenario, tmp_path, regions=regions)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    file = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
