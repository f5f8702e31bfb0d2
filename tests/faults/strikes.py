"""One fault: it begins, and what is returned ends it."""

import fcntl
import os
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.faults.load import Load
from tests.faults.product import READY_TIMEOUT_S, Servers, Service, Services
from tests.faults.schedule import Planned
from tests.faults.waiting import NotInTimeError, wait_until

# ioctl numbers and the flag of ext4's and xfs's immutable attribute (linux/fs.h).
_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS, _FS_IMMUTABLE_FL = 0x80086601, 0x40086602, 0x10
_TRITONS = ("triton-0", "triton-1")
_BURST_TIMEOUT_S = 120.0
_EXTRA_WORKER = "worker-extra"

End = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Rig:
    """What faults happen to.

    Attributes:
        burst: how many requests are waiting when everything comes back from a refill.
    """

    servers: Servers
    services: Services
    load: Load
    burst: int


def begin(rig: Rig, planned: Planned) -> tuple[str, End]:
    """Strikes; returns the victim's name and what ends the fault.

    Raises:
        NotInTimeError: something did not stop or start as it must.
    """
    verb, _, noun = planned.kind.name.partition(" ")
    match planned.kind.name:
        case "restart worker":
            return _restart_worker(rig, planned)
        case "worker joins and leaves":
            rig.services.add(_EXTRA_WORKER, "worker")
            return _EXTRA_WORKER, lambda: rig.services.stop([_EXTRA_WORKER])
        case "clickhouse cannot write":
            return "clickhouse", _forbid_writes(rig.servers.data_dir / "clickhouse")
        case "restart stack":
            return _restart_stack(rig, signal.SIGTERM)
        case "kill stack":
            return _restart_stack(rig, signal.SIGKILL)
        case "refill":
            return _refill(rig)
    victim, pid = _find(rig, noun, planned.choice)
    if verb == "kill":
        os.kill(pid, signal.SIGKILL)
        return victim, _nothing
    os.kill(pid, signal.SIGSTOP)
    return victim, lambda: _continue(pid)


def _find(rig: Rig, noun: str, choice: int) -> tuple[str, int]:
    """A victim of this kind that runs, and its process."""
    if noun in ("worker", "sink"):
        running: list[Service] = []

        def runs() -> bool:
            running[:] = [one for one in rig.services.all(noun) if one.pid is not None]
            return bool(running)

        wait_until(runs, READY_TIMEOUT_S, f"a {noun} runs")
        service = running[choice % len(running)]
        return service.name, service.pid or 0
    name = _TRITONS[choice % len(_TRITONS)] if noun == "triton" else noun
    return name, rig.servers.pid(name)


def _nothing() -> None:
    """A process that was killed is started again by whoever keeps it."""


def _continue(pid: int) -> None:
    # Its keeper may have ended it meanwhile.
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def _restart_worker(rig: Rig, planned: Planned) -> tuple[str, End]:
    workers = rig.services.all("worker")
    worker = workers[planned.choice % len(workers)]
    rig.services.stop([worker.name])
    worker.wanted = True
    return worker.name, _nothing


def _restart_stack(rig: Rig, number: signal.Signals) -> tuple[str, End]:
    code = rig.servers.end(number)
    expected = 0 if number == signal.SIGTERM else -number
    if code != expected:
        raise NotInTimeError(f"`pipeline up` ended with {code} after {number.name}, expected {expected}")
    return "all servers", rig.servers.start


def _refill(rig: Rig) -> tuple[str, End]:
    services = rig.services.all()
    rig.services.stop([one.name for one in services])
    rig.load.burst(rig.burst, _BURST_TIMEOUT_S)

    def end() -> None:
        for service in services:
            service.wanted = True

    return f"{rig.burst} requests", end


def _forbid_writes(folder: Path) -> End:
    """No part can be made in any table's folder, as on a disk that is full or read-only.

    The immutable attribute, because nothing else refuses root. A limit of the file size (RLIMIT_FSIZE) will not do: the
    embedded engine takes a failed write() for a successful one, and its damaged parts would be no fault of the sink.
    """
    folders = [table for table in (folder / "store").glob("*/*") if table.is_dir()]
    for table in folders:
        _set_immutable(table, on=True)

    def end() -> None:
        for table in folders:
            _set_immutable(table, on=False)

    return end


def release_writes(data_dir: Path) -> None:
    """Makes every folder of ClickHouse writable again, after a run that was cut short."""
    for table in (data_dir / "clickhouse" / "store").glob("*/*"):
        if table.is_dir():
            _set_immutable(table, on=False)


def can_forbid_writes(data_dir: Path) -> bool:
    """Whether this user may set the immutable attribute here: root, on ext4, xfs or btrfs."""
    try:
        with _flags_of(data_dir) as (descriptor, flags):
            fcntl.ioctl(descriptor, _FS_IOC_SETFLAGS, struct.pack("q", flags | _FS_IMMUTABLE_FL))
            fcntl.ioctl(descriptor, _FS_IOC_SETFLAGS, struct.pack("q", flags))
    except OSError:
        return False
    return True


def _set_immutable(folder: Path, *, on: bool) -> None:
    with suppress(FileNotFoundError), _flags_of(folder) as (descriptor, flags):
        wanted = flags | _FS_IMMUTABLE_FL if on else flags & ~_FS_IMMUTABLE_FL
        if wanted != flags:
            fcntl.ioctl(descriptor, _FS_IOC_SETFLAGS, struct.pack("q", wanted))


@contextmanager
def _flags_of(folder: Path) -> Iterator[tuple[int, int]]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        flags = bytearray(8)
        fcntl.ioctl(descriptor, _FS_IOC_GETFLAGS, flags)
        yield descriptor, struct.unpack("q", flags)[0]
    finally:
        os.close(descriptor)
