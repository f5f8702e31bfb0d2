"""Tasks that are cancelled until they have ended."""

import asyncio

from pipeline.adapters.kafka import cancel_until_ended


async def test_task_that_swallows_cancellations_is_cancelled_again() -> None:
    """As a loop does whose aiokafka client was just being closed: twice it goes on, the third time it ends."""
    swallowed = 0
    began = asyncio.Event()

    async def swallows_two() -> None:
        nonlocal swallowed
        while True:
            began.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if swallowed == 2:
                    raise
                swallowed += 1

    task = asyncio.create_task(swallows_two())
    await began.wait()
    await cancel_until_ended(task, again_s=0.01)
    assert task.cancelled()
    assert swallowed == 2


async def test_end_that_takes_a_while_is_not_cut_short() -> None:
    """What a task does after its cancellation is waited for."""
    began, may_end, steps = asyncio.Event(), asyncio.Event(), []

    async def ends_slowly() -> None:
        try:
            began.set()
            await asyncio.Event().wait()
        finally:
            await may_end.wait()
            steps.append("ended")

    task = asyncio.create_task(ends_slowly())
    await began.wait()
    ending = asyncio.create_task(cancel_until_ended(task, again_s=600))
    await asyncio.sleep(0)
    may_end.set()
    await ending
    assert steps == ["ended"]


async def test_tasks_that_ended_by_themselves_say_nothing() -> None:
    """Neither a result nor an exception comes out of it, and a call without tasks returns."""

    async def fails() -> None:
        raise ValueError("a bug")

    failed, done = asyncio.create_task(fails()), asyncio.create_task(asyncio.sleep(0))
    await asyncio.wait([failed, done])
    await cancel_until_ended(failed, done)
    await cancel_until_ended()
    assert isinstance(failed.exception(), ValueError)
