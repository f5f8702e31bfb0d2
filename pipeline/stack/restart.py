"""A Triton of the running stack, ended so that its supervisor starts it again: for programs beside the supervisor."""

import os
import signal
from pathlib import Path

from pipeline.errors import StackError
from pipeline.stack.state import ProcessId, StackState, read_running


def serves(running: StackState | None, address: str) -> bool:
    """Whether the stack has a Triton at this gRPC address."""
    return running is not None and any(one.grpc == address for one in running.endpoints.triton)


def end_triton(data_dir: Path, address: str) -> ProcessId:
    """Sends SIGTERM to the Triton at a gRPC address; the supervisor does not take such an end for a crash (part.py).

    Returns:
        The process that was ended.

    Raises:
        StackError: no stack runs there, or it has no such Triton, or that one is not running now.
    """
    running = read_running(data_dir)
    if running is None:
        raise StackError(f"no stack runs in {data_dir}")
    name = next((one.name for one in running.endpoints.triton if one.grpc == address), None)
    process = running.processes.get(name) if name is not None else None
    if process is None:
        raise StackError(f"the stack in {data_dir} runs no Triton at {address}")
    try:
        # A descriptor stands for this process; its number may be another one's by the next line.
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        raise StackError(f"{name} is not running") from None
    try:
        if not process.is_alive():
            raise StackError(f"{name} is not running")
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
    finally:
        os.close(descriptor)
    return process
