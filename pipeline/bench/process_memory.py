"""What a process holds in memory, as the kernel counts it."""

from pathlib import Path

MIB = 1 << 20


def resident_bytes(pid: int) -> int:
    """Resident memory of a process now.

    Raises:
        OSError: there is no such process any more.
    """
    return _status_bytes(pid, "VmRSS")


def peak_resident_bytes(pid: int) -> int:
    """The most memory that a process ever had resident; the kernel keeps it, so no moment is missed.

    Raises:
        OSError: there is no such process any more.
    """
    return _status_bytes(pid, "VmHWM")


def _status_bytes(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        label, _, value = line.partition(":")
        if label == name:
            return int(value.split()[0]) * 1024
    raise ProcessLookupError(f"process {pid} has no {name}: it has ended")
