"""`map` on an event loop: inputs are read as there is room, answers handed on as they are asked for."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import Generic, TypeVar

from pipeline.client.window import Outcome, Window, value_or_raise
from pipeline.errors import PipelineError
from schemas.result import InferenceResult

Item = TypeVar("Item")


async def mapped(
    ask: Callable[[int, Item], Awaitable[InferenceResult]],
    inputs: Iterable[Item] | AsyncIterable[Item],
    window: Window,
    *,
    return_exceptions: bool,
) -> AsyncGenerator[InferenceResult | PipelineError, None]:
    """Asks for each input and yields the answers. Whoever stops consuming stops what is out.

    What the source raises comes after the answers to what it gave before.

    Args:
        ask: gives the answer to one input; its number, from 0, comes with it.
        inputs: read one at a time, never more than the window ahead of the consumer.
        window: how many, and in which order.
        return_exceptions: errors of the pipeline are yielded in place of answers.
    """
    run = _Run(ask, inputs, window)
    try:
        while (outcome := await run.next()) is not None:
            yield value_or_raise(outcome, return_exceptions=return_exceptions)
    finally:
        await run.stop()


class _Run(Generic[Item]):
    def __init__(
        self,
        ask: Callable[[int, Item], Awaitable[InferenceResult]],
        inputs: Iterable[Item] | AsyncIterable[Item],
        window: Window,
    ) -> None:
        self._ask = ask
        self._source = aiter(inputs) if isinstance(inputs, AsyncIterable) else _one_by_one(inputs)
        self._window = window
        self._news = asyncio.Event()
        self._asking: set[asyncio.Task[None]] = set()
        self._reading: asyncio.Task[tuple[Item] | None] | None = None
        self._has_ended = False
        # What the source raised, in its turn; and what `on_progress` raised, at once.
        self._source_failure: BaseException | None = None
        self._failure: Exception | None = None

    async def next(self) -> Outcome | None:
        """The next outcome; None at the end."""
        while True:
            self._news.clear()
            self._read()
            if self._failure is not None:
                raise self._failure
            if (outcome := self._window.pop()) is not None:
                return outcome
            if self._has_ended and self._window.is_empty:
                if self._source_failure is not None:
                    raise self._source_failure
                return None
            await self._news.wait()

    def _read(self) -> None:
        """Takes what was read, and reads on where there is room: an answer never waits for a slow source."""
        if self._reading is not None and self._reading.done():
            reading, self._reading = self._reading, None
            if (failure := reading.exception()) is not None:
                self._has_ended, self._source_failure = True, failure
            elif (item := reading.result()) is None:
                self._has_ended = True
            else:
                self._start(item[0])
        if self._reading is None and not self._has_ended and self._window.has_room:
            self._reading = asyncio.create_task(_next_of(self._source))
            self._reading.add_done_callback(lambda _: self._news.set())

    def _start(self, item: Item) -> None:
        task = asyncio.create_task(self._settle(self._window.take(), item))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _settle(self, place: int, item: Item) -> None:
        try:
            outcome: Outcome = await self._ask(place, item)
        except Exception as error:  # noqa: BLE001 - handed on in its turn
            outcome = error
        try:
            self._window.settle(place, outcome)
        except Exception as error:  # noqa: BLE001 - of the caller's `on_progress`: raised where it consumes
            self._failure = error
        self._news.set()

    async def stop(self) -> None:
        """Ends what is out."""
        left = [*self._asking, *([self._reading] if self._reading is not None else [])]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


async def _one_by_one(inputs: Iterable[Item]) -> AsyncIterator[Item]:
    for item in inputs:
        yield item


async def _next_of(source: AsyncIterator[Item]) -> tuple[Item] | None:
    try:
        return (await anext(source),)
    except StopAsyncIteration:
        return None
