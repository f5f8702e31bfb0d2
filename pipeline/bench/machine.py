"""The machine a figure was taken on: without it the figure means nothing."""

import os
import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_MEMINFO = Path("/proc/meminfo")


def describe_machine() -> str:
    """Processor, cores this process may use, memory, load, kernel and Python, in one line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    return (
        f"{_field(_CPUINFO, 'model name') or platform.machine()}, {cores} cores, {_memory()}, "
        f"load {load} at the start, {platform.system()} {platform.release().partition('-')[0]}, "
        f"Python {platform.python_version()}"
    )


def _memory() -> str:
    total_kib = (_field(_MEMINFO, "MemTotal") or "").partition(" ")[0]
    return f"{int(total_kib) / (1 << 20):.0f} GiB" if total_kib.isdigit() else "memory unknown"


def _field(path: Path, name: str) -> str | None:
    if not path.exists():
        return None
    for line in path.read_text(errors="replace").splitlines():
        label, _, value = line.partition(":")
        if label.strip() == name:
            return value.strip()
    return None
