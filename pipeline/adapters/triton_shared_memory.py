"""Memory that this process shares with a Triton on the same host: large tensors are copied once, not sent.

A *slot* is a segment in /dev/shm that one server has registered, and that one call at a time writes to and reads from.
Slots are made behind, one at a time, while the calls that would have liked one travel over gRPC. Three rules make them
safe:

- Registering one is the proof that the server sees this very memory: it opens a segment whose name nobody can guess.
- A slot is lent again only after an answer. After anything else (timeout, cancellation, a broken connection, a refusal)
  the server may still read it, or write its outputs late: measured on Triton 2.51, it does. Such a slot is retired:
  its memory is never used again, and counts until the server lets go of it.
- The kernel sets every page aside before it is written: in a full /dev/shm a write would end the process (SIGBUS).

Segments carry their owner's process and hold a file lock while it lives; what a SIGKILL leaves is removed by the next
start.
"""

import asyncio
import fcntl
import logging
import mmap
import os
import secrets
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pipeline.core.infer_messages import Place
from pipeline.errors import InferenceServerError, ServerUnavailable
from schemas.tensor import Tensor

logger = logging.getLogger(__name__)

FOLDER = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lies, not a temporary file
_PREFIX = "pipeline_slot_"
_reserved = attrgetter("reserved")
# Where it begins to pay. Measured on Triton 2.51, calls/s against gRPC: 64 KiB 0.7-1.1, 128 KiB 0.9-1.7, 256 KiB
# 1.1-2.3, 8 MiB 1.4-5 (docs/large-tensors.md).
SHARED_BYTES_MIN = 256 << 10
# Vector instructions of models' kernels like tensors to begin so.
_ALIGNMENT = 64
_CANARY_BYTES = 16
# Pages are set aside in steps of this, so that tensors of nearly one size do not ask for a page each time.
_STEP_BYTES = 256 << 10
# A slot is as large as the pool's bound, its pages come with use; no record needs more than 1 GiB.
_SLOT_BYTES_MAX = 1 << 30
# More than the calls that are out to one instance at a time; each holds a file descriptor.
_SLOTS_MAX = 64
# Between two tries to have a server let go of a segment, or after it could not be reached.
_PAUSE_S = 1.0
# A slot that no call of more than half its size needed for so long makes room for others.
_IDLE_S = 10.0
# After a server refused one, or /dev/shm was full: a server elsewhere is asked so often, and no request waits for it.
_REFUSED_PAUSE_S = 60.0


class Regions(Protocol):
    """The calls of one server that make memory known to it."""

    async def register(self, name: str, size: int) -> None:
        """Makes the segment `/dev/shm/<name>` known under its own name.

        Raises:
            ServerUnavailable: no answer; it may be known all the same.
            InferenceServerError: refused: the server does not see it, or does not do this at all.
        """

    async def unregister(self, name: str) -> None:
        """Makes it forget a segment; one it does not know is forgotten already.

        Raises:
            InferenceServerError: no answer, or a call still uses it.
        """

    async def registered(self) -> list[str]:
        """The names of all it knows, other processes' included.

        Raises:
            InferenceServerError: no answer, or it does not do this at all.
        """


class Slot:
    """One segment. `memory` is as large as the pool's bound; `reserved` bytes of it may be touched.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, size: int, folder: Path = FOLDER) -> None:
        self.name = f"{_PREFIX}{os.getpid()}_{_started(os.getpid())}_{secrets.token_hex(12)}"
        self.size = size
        self.reserved = 0
        self.needed_at = 0.0
        self._path = folder / self.name
        self._file = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            os.ftruncate(self._file, size)
            self.memory = memoryview(mmap.mmap(self._file, size))
        except OSError:
            self.remove()
            raise

    def reserve(self, size: int) -> None:
        """Sets `size` bytes aside.

        Raises:
            OSError: /dev/shm has no room for them.
        """
        # 0.25 ms a MiB, once: the kernel clears the pages.
        os.posix_fallocate(self._file, 0, size)
        self.reserved = max(self.reserved, size)

    def remove(self) -> None:
        """Takes its name away; its memory lives on while somebody has it mapped. Idempotent."""
        if self._file >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = -1


class Lease:
    """A slot that is lent to one call, its inputs in it. See `SharedSlots.lend`."""

    __slots__ = ("_canaries", "_end", "_slot", "inputs", "outputs")

    def __init__(self, slot: Slot, layout: "_Layout", tensors: Sequence[Tensor], end: Callable[[Slot, bool], None]):
        self._slot = slot
        self._end = end
        self.inputs = {index: Place(slot.name, *part) for index, part in layout.inputs.items()}
        self.outputs = {name: Place(slot.name, *part) for name, part in layout.outputs.items()}
        self._canaries: dict[str, bytes] = {}
        for index, (offset, size) in layout.inputs.items():
            slot.memory[offset : offset + size] = tensors[index].raw
        for name, (offset, _) in layout.outputs.items():
            self._canaries[name] = slot.memory[offset : offset + _CANARY_BYTES] = os.urandom(_CANARY_BYTES)

    def read(self, name: str, size: int) -> bytes | None:
        """An output's bytes. None where it has no place here, does not fit, or nothing was written.

        What lies there unwritten is an earlier call's: the first bytes are random until the server replaces them.
        """
        place = self.outputs.get(name)
        if place is None or size > place.size:
            return None
        start = self._slot.memory[place.offset : place.offset + _CANARY_BYTES]
        if start == self._canaries[name]:
            return None
        return bytes(self._slot.memory[place.offset : place.offset + size])

    def end(self, *, answered: bool) -> None:
        """The call is over; without an answer the server may still read and write here."""
        self._end(self._slot, answered)


class _Layout(NamedTuple):
    """Which tensors of a call lie where in a slot: (offset, bytes), inputs by position, outputs by name."""

    inputs: dict[int, tuple[int, int]]
    outputs: dict[str, tuple[int, int]]
    size: int


def _layout(tensors: Sequence[Tensor], output_sizes: Mapping[str, int]) -> _Layout:
    end = 0
    inputs: dict[int, tuple[int, int]] = {}
    outputs: dict[str, tuple[int, int]] = {}
    for index, (_, datatype, _, raw) in enumerate(tensors):
        if len(raw) >= SHARED_BYTES_MIN and datatype != "BYTES":
            inputs[index] = (end, len(raw))
            end += _rounded(len(raw), _ALIGNMENT)
    for name, size in output_sizes.items():
        if size >= SHARED_BYTES_MIN:
            outputs[name] = (end, size)
            end += _rounded(size, _ALIGNMENT)
    return _Layout(inputs, outputs, _rounded(end, _STEP_BYTES))


class SharedSlots:
    """The slots of one server: none while it sees nothing of this host's memory.

    Everything runs on one event loop.

    Args:
        regions: the server's calls.
        bytes_max: what all slots may take together, retired ones included.
        folder: where segments are made.
    """

    def __init__(self, regions: Regions, *, bytes_max: int, folder: Path = FOLDER) -> None:
        self._regions = regions
        self._folder = folder
        self._bytes_max = bytes_max
        self._slots: set[Slot] = set()
        self._free: list[Slot] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._slot_bytes = min(bytes_max, _SLOT_BYTES_MAX)
        self._making = self._crowded = False
        self._make_after = 0.0
        self._used = False
        self._told = False
        self._closed = False
        _sweep_once()

    @property
    def held_bytes(self) -> int:
        """What all slots take now, retired ones included until their server has let go of them."""
        return sum(slot.reserved for slot in self._slots)

    def lend(self, inputs: Sequence[Tensor], output_sizes: Mapping[str, int]) -> Lease | None:
        """A slot with a call's large inputs in it, and with room for its large outputs of known size.

        None where it would not pay, or no slot is free; then one is made behind, if there is room for it.

        Args:
            inputs: the call's tensors.
            output_sizes: bytes of its outputs that have a known size.
        """
        if not self._used:
            self._used = True
            self._spawn(self._forget_leftovers())
        layout = _layout(inputs, output_sizes)
        if not layout.size or layout.size > self._slot_bytes or self._closed:
            return None
        slot = self._free_slot(layout.size)
        if slot is None:
            self._want(layout.size)
            return None
        self._free.remove(slot)
        if 2 * layout.size > slot.reserved:
            slot.needed_at = asyncio.get_running_loop().time()
        return Lease(slot, layout, inputs, self._ended)

    async def close(self) -> None:
        """The server forgets all segments, if it answers, and their names are removed. Idempotent.

        Calls that are out can still read their answers.
        """
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        slots, self._slots = self._slots, set()
        self._free.clear()
        forgotten = (self._regions.unregister(slot.name) for slot in slots)
        for told in await asyncio.gather(*forgotten, return_exceptions=True):
            if isinstance(told, BaseException) and not isinstance(told, InferenceServerError):
                logger.error("a segment was not unregistered: %r", told)
        for slot in slots:
            slot.remove()

    def _free_slot(self, size: int) -> Slot | None:
        """The smallest free slot that has these bytes, or else the largest, grown to have them."""
        fitting = [slot for slot in self._free if slot.reserved >= size]
        if fitting:
            return min(fitting, key=_reserved)
        slot = max(self._free, key=_reserved, default=None)
        if slot is None or self.held_bytes + size - slot.reserved > self._bytes_max:
            return None
        try:
            slot.reserve(size)
        except OSError:
            return None
        return slot

    def _want(self, size: int) -> None:
        """Has a slot made, one at a time; where there is no room, one that nobody needs is given up."""
        if self.held_bytes + size > self._bytes_max or len(self._slots) >= _SLOTS_MAX:
            self._crowded = True
            self._shed()
        elif not self._making and asyncio.get_running_loop().time() >= self._make_after:
            try:
                slot = Slot(self._slot_bytes, self._folder)
                self._slots.add(slot)
                slot.reserve(size)
            except OSError as error:
                self._refused(error)
            else:
                self._making = True
                self._spawn(self._register(slot))

    def _shed(self) -> None:
        """Gives up the largest free slot that no call of about its size needed lately."""
        long_ago = asyncio.get_running_loop().time() - _IDLE_S
        idle = [slot for slot in self._free if slot.needed_at < long_ago]
        if idle:
            self._crowded = False
            slot = max(idle, key=_reserved)
            self._free.remove(slot)
            self._spawn(self._release(slot))

    def _ended(self, slot: Slot, answered: bool) -> None:
        if self._closed:
            return
        if not answered:
            self._spawn(self._release(slot))
            return
        self._free.append(slot)
        if self._crowded:
            self._shed()

    async def _register(self, slot: Slot) -> None:
        try:
            await self._regions.register(slot.name, slot.size)
        except ServerUnavailable:
            self._pause(_PAUSE_S)
        except InferenceServerError as error:
            self._refused(error)
        else:
            self._ended(slot, answered=True)
            return
        finally:
            self._making = False
        await self._release(slot)

    def _refused(self, error: Exception) -> None:
        self._pause(_REFUSED_PAUSE_S)
        if not self._told:
            self._told = True
            logger.info("large tensors travel over gRPC, not in shared memory: %s", error)

    def _pause(self, seconds: float) -> None:
        self._make_after = asyncio.get_running_loop().time() + seconds

    async def _release(self, slot: Slot) -> None:
        """The server forgets the segment, whenever it is done with it; then its memory is given back."""
        while True:
            try:
                await self._regions.unregister(slot.name)
                break
            except InferenceServerError:
                await asyncio.sleep(_PAUSE_S)
        self._slots.discard(slot)
        slot.remove()

    async def _forget_leftovers(self) -> None:
        """A server keeps the memory of processes that were killed until it is told to forget it."""
        try:
            for name in filter(is_leftover, await self._regions.registered()):
                await self._regions.unregister(name)
        except InferenceServerError as error:
            logger.debug("regions of earlier processes may be left: %s", error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _rounded(size: int, step: int) -> int:
    return -(-size // step) * step


@cache
def _sweep_once() -> None:
    for name in remove_leftovers(FOLDER):
        logger.info("removed the shared memory %s of a process that was killed", name)


def remove_leftovers(folder: Path) -> list[str]:
    """Removes the segments whose owners are gone, and names them."""
    removed = [path for path in folder.glob(f"{_PREFIX}*") if is_leftover(path.name, folder)]
    for path in removed:
        path.unlink(missing_ok=True)
    return [path.name for path in removed]


def is_leftover(name: str, folder: Path = FOLDER) -> bool:
    """Whether a segment's owner is gone.

    Its number and start time are in the name, and it holds the file's lock as long as it lives: that tells of owners
    whom this process cannot see (another container's, with the same /dev/shm).
    """
    pid, _, rest = name.removeprefix(_PREFIX).partition("_")
    if not name.startswith(_PREFIX) or not pid.isdigit() or _started(int(pid)) == rest.partition("_")[0]:
        return False
    try:
        file = os.open(folder / name, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True  # a server may still know it
    except OSError:
        return False  # another user's
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(file)


def _started(pid: int) -> str:
    """When a process started, in the kernel's ticks since boot; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
