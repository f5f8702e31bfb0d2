"""`map` in a thread without an event loop: `mapping.mapped` with futures."""

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import TypeVar

from pipeline.client.errors import PipelineUnavailable
from pipeline.client.window import Outcome, Window, value_or_raise
from pipeline.errors import PipelineError
from schemas.result import InferenceResult

Item = TypeVar("Item")
Asked = Future[InferenceResult]


def client_closed() -> PipelineUnavailable:
    """What a call says whose client was closed."""
    return PipelineUnavailable("this client was closed")


def mapped_in_thread(
    ask: Callable[[int, Item], Asked],
    inputs: Iterable[Item],
    window: Window,
    *,
    return_exceptions: bool,
) -> Generator[InferenceResult | PipelineError, None, None]:
    """Asks for each input and yields the answers; what was answered goes out before more is read.

    Args:
        ask: starts the asking for one input; its number, from 0, comes with it.
        inputs: read in this thread, never more than the window ahead of the consumer.
        window: how many, and in which order.
        return_exceptions: errors of the pipeline are yielded in place of answers.
    """
    settled: SimpleQueue[tuple[int, Asked]] = SimpleQueue()
    asking: set[Asked] = set()
    source = iter(inputs)
    failure: Exception | None = None
    has_ended = False

    def settle(place: int, future: Asked) -> None:
        asking.discard(future)
        window.settle(place, _outcome(future))

    try:
        while not (has_ended and window.is_empty):
            for place, future in _without_waiting(settled):
                settle(place, future)
            if (outcome := window.pop()) is not None:
                yield value_or_raise(outcome, return_exceptions=return_exceptions)
            elif has_ended or not window.has_room:
                settle(*settled.get())
            else:
                try:
                    one = next(source)
                except StopIteration:
                    has_ended = True
                except Exception as error:  # noqa: BLE001 - raised after the answers to what came before
                    has_ended, failure = True, error
                else:
                    place = window.take()
                    future = ask(place, one)
                    asking.add(future)
                    future.add_done_callback(partial(_put, settled, place))
        if failure is not None:
            raise failure
    finally:
        for future in asking:
            future.cancel()


def _put(settled: "SimpleQueue[tuple[int, Asked]]", place: int, future: Asked) -> None:
    settled.put((place, future))


def _without_waiting(settled: "SimpleQueue[tuple[int, Asked]]") -> Generator[tuple[int, Asked], None, None]:
    try:
        while True:
            yield settled.get_nowait()
    except Empty:
        return


def _outcome(future: Asked) -> Outcome:
    if future.cancelled():
        return client_closed()
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, Exception):
        return error
    raise error
