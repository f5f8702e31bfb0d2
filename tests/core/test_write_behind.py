"""What waits to be written: bounded, in order, and given up when it is cleared."""

import random

import pytest

from pipeline.core.answer import stored_answer
from pipeline.core.cache_key import CacheScope, scopes_of
from pipeline.core.write_behind import WRITES_WAITING_MAX, Write, WriteQueue
from schemas.tensor import Tensor


def a_write(number: int, size: int = 100, scope: CacheScope | None = None) -> Write[object]:
    """One that is told from others by its key."""
    answer = stored_answer([Tensor("y", "UINT8", (size,), bytes(size))], stored_at=0.0, instance="t")
    key = number.to_bytes(32, "big")
    return Write(key, scope or CacheScope(None, "digits", "2", "f"), answer, 60.0, False, lambda _: None)


def test_writes_leave_in_their_order() -> None:
    """The one that waits longest is taken first, and what is left is told right."""
    queue = WriteQueue[object](1 << 20)
    writes = [a_write(number) for number in range(5)]
    assert all(queue.offer(write) for write in writes)
    assert [queue.take() for _ in range(5)] == writes
    assert (len(queue), queue.bytes_held) == (0, 0)
    with pytest.raises(IndexError):
        queue.take()


def test_bytes_are_bounded() -> None:
    """What would pass the bound is refused, whatever comes, and room that was made is used."""
    rng, queue = random.Random(3), WriteQueue[object](50_000)
    refused = 0
    for number in range(2000):
        refused += not queue.offer(a_write(number, rng.choice([10, 1000, 20_000, 60_000])))
        assert queue.bytes_held <= 50_000
        if len(queue) and rng.random() < 0.4:
            queue.take()
    assert 0 < refused < 2000
    while len(queue):
        queue.take()
    assert queue.bytes_held == 0


def test_number_is_bounded() -> None:
    """Any number of the smallest answers ends at a bound of its own."""
    queue, write = WriteQueue[object](1 << 40), a_write(1, 0)
    for _ in range(WRITES_WAITING_MAX):
        assert queue.offer(write)
    assert not queue.offer(write)


def test_no_room_takes_nothing() -> None:
    """With a bound of nothing nothing waits."""
    assert not WriteQueue[object](0).offer(a_write(1))


def test_dropping_gives_up_all() -> None:
    """Everything goes, and how many there were is told."""
    queue = WriteQueue[object](1 << 20)
    for number in range(3):
        queue.offer(a_write(number))
    assert queue.drop() == 3
    assert (len(queue), queue.bytes_held, queue.drop()) == (0, 0, 0)


@pytest.mark.parametrize(
    ("wanted", "left"),
    [
        ((None, None, None), []),
        (("", None, None), [3]),
        (("acme", None, None), [0, 1, 2]),
        ((None, "digits", None), [2]),
        ((None, "digits", "2"), [1, 2]),
        ((None, None, "3"), [0, 2, 3]),
    ],
)
def test_clearing_forgets_what_is_named(wanted: tuple[str | None, str | None, str | None], left: list[int]) -> None:
    """Only writes of the tenant, model and version are given up; the others keep their order."""
    scopes = [
        CacheScope(None, "digits", "2", "f"),
        CacheScope(None, "digits", "3", "f"),
        CacheScope(None, "sentences", "2", "f"),
        CacheScope("acme", "digits", "2", "f"),
    ]
    queue = WriteQueue[object](1 << 20)
    for number, scope in enumerate(scopes):
        queue.offer(a_write(number, scope=scope))
    queue.forget(scopes_of(*wanted))
    assert [int.from_bytes(queue.take().key, "big") for _ in range(len(queue))] == left
    assert queue.bytes_held == 0
