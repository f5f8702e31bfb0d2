"""What the kernel says of a process's memory."""

import mmap
import os
import subprocess
import sys

import pytest

from pipeline.bench.process_memory import MIB, peak_resident_bytes, resident_bytes


def test_resident_memory_follows_what_is_held() -> None:
    """What is written to is resident, and the peak remembers it when it is gone."""
    before = resident_bytes(os.getpid())
    # A mapping of its own: malloc may serve 64 MiB from a hole of what was freed before, which is resident already.
    with mmap.mmap(-1, 64 * MIB) as held:
        held.write(b"x" * len(held))
        during = resident_bytes(os.getpid())
    assert during - before > 60 * MIB
    # The kernel sums both up from counters of each processor, some hundred kilobytes apart.
    assert peak_resident_bytes(os.getpid()) > during - MIB


def test_ended_process_has_no_memory() -> None:
    """A process that has ended is an error, whether its parent has asked for its exit code or not."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(ProcessLookupError, match=f"process {child.pid} has no VmRSS"):
        resident_bytes(child.pid)
    child.wait()
    with pytest.raises(OSError, match=str(child.pid)):
        peak_resident_bytes(child.pid)
