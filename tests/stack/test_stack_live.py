"""The supervisor with real child processes."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.stack import PartPhase, PartState, Stack, StackError, StackPlan, read_running
from pipeline.stack.process import RestartPolicy
from pipeline.stack.state import ProcessId, read_start_ticks

pytestmark = pytest.mark.live
SLEEP = (sys.executable, "-c", "import time; time.sleep(60)")
SUPERVISOR = """
import asyncio, sys
from pathlib import Path
from pipeline.stack import Stack, StackPlan
async def main():
    plan = StackPlan(Path(sys.argv[1]), kafka=False, valkey=False, clickhouse=False, triton_count=0)
    async with Stack(plan) as stack:
        await stack.add_process("child", [sys.executable, "-c", sys.argv[2]])
        print("up", flush=True)
        await stack.wait_stopped()
    print("stopped", stack.stop_signal.name, flush=True)
asyncio.run(main())
"""
# A child with a child of its own that ignores SIGTERM, as Triton's stubs do.
FAMILY = (
    "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', "
    "'import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)']); time.sleep(60)"
)


def make_plan(folder: Path) -> StackPlan:
    return StackPlan(folder, kafka=False, valkey=False, clickhouse=False, triton_count=0)


async def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - processes of others, no event tells of them
            await asyncio.sleep(0.02)


def session_of(pid: int) -> list[ProcessId]:
    members = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            ticks = read_start_ticks(int(folder.name))
            try:
                if ticks is not None and os.getsid(int(folder.name)) == pid:
                    members.append(ProcessId(int(folder.name), ticks))
            except ProcessLookupError:
                continue
    return members


async def start_supervisor(folder: Path) -> asyncio.subprocess.Process:
    supervisor = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SUPERVISOR, str(folder), FAMILY),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert supervisor.stdout is not None
    assert await supervisor.stdout.readline() == b"up\n"
    return supervisor


async def test_dead_part_is_restarted(tmp_path: Path) -> None:
    """A part that dies is reported, waited for, started again, and stopped at the end."""
    seen: list[PartState] = []
    async with Stack(make_plan(tmp_path), seen.append, RestartPolicy(first_s=0.01)) as stack:
        pid = await stack.add_process("child", SLEEP)
        os.kill(pid, signal.SIGKILL)
        await wait_until(lambda: [one.phase for one in seen].count(PartPhase.READY) == 2)
        state = read_running(tmp_path)
        assert state is not None
        second = state.processes["child"]
        assert second.pid != pid
    phases = ["starting", "ready", "exited", "restarting", "starting", "ready", "stopped"]
    assert [one.phase.value for one in seen] == phases
    assert seen[2].code == -signal.SIGKILL
    assert not second.is_alive()
    assert read_running(tmp_path) is None


async def test_failed_start_names_cause_and_log(tmp_path: Path) -> None:
    """A part that exits before it is ready is one line with its cause and its log."""
    async with Stack(make_plan(tmp_path)) as stack:
        argv = (sys.executable, "-c", "raise OSError('port 1 in use')")

        async def never() -> bool:
            return False

        with pytest.raises(StackError, match=r"child cannot start: .*OSError: port 1 in use \(log: .*child\.log\)"):
            await stack.add_process("child", argv, probe=never)


async def test_children_die_with_a_killed_supervisor(tmp_path: Path) -> None:
    """SIGKILL of the supervisor ends its children at once; what they left ends with the next start."""
    supervisor = await start_supervisor(tmp_path)
    state = read_running(tmp_path)
    assert state is not None
    child = state.processes["child"]
    await wait_until(lambda: len(session_of(child.pid)) == 2)
    members = session_of(child.pid)
    supervisor.kill()
    await supervisor.wait()
    await wait_until(lambda: not child.is_alive())
    async with Stack(make_plan(tmp_path)):
        assert not any(member.is_alive() for member in members)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signal_stops_everything(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM stop the children and theirs, and the block ends by itself."""
    supervisor = await start_supervisor(tmp_path)
    child = json.loads((tmp_path / "stack.json").read_text())["processes"]["child"]["pid"]
    await wait_until(lambda: len(session_of(child)) == 2)
    members = session_of(child)
    supervisor.send_signal(number)
    output, _ = await supervisor.communicate()
    assert output == f"stopped {number.name}\n".encode()
    assert supervisor.returncode == 0
    await wait_until(lambda: not any(member.is_alive() for member in members))


async def test_second_supervisor_is_refused(tmp_path: Path) -> None:
    """Two stacks in one folder are refused with the first one's pid; two in two folders are not."""
    async with Stack(make_plan(tmp_path / "a")):
        with pytest.raises(StackError, match=f"its supervisor is process {os.getpid()}"):
            async with Stack(make_plan(tmp_path / "a")):
                pass
