"""Where each task of a test that ran out of time was waiting: the threads' stacks end in the event loop."""

import asyncio
import gc
from collections.abc import Generator, Iterator
from typing import Any

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds them to the report of a test that its time limit ended."""
    report = yield
    if call.excinfo is not None and "Timeout" in str(call.excinfo.value):
        loops = [one for one in gc.get_objects() if isinstance(one, asyncio.AbstractEventLoop) and not one.is_closed()]
        tasks = [task for loop in loops for task in asyncio.all_tasks(loop)]
        report.sections.append(("tasks", "\n".join(line for task in tasks for line in _lines(task))))
    return report


def _lines(task: asyncio.Task[Any]) -> Iterator[str]:
    """A task and where it waits, from the outermost call to the innermost."""
    yield task.get_name()
    awaited: Any = task.get_coro()
    while (frame := getattr(awaited, "cr_frame", None) or getattr(awaited, "ag_frame", None)) is not None:
        yield f'  File "{frame.f_code.co_filename}", line {frame.f_lineno}, in {frame.f_code.co_qualname}'
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "ag_await", None)
    yield f"  {awaited!r:.300}"
