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
    """Those that wait longest leave first, so many and so many bytes together; what is left is told right."""
    queue = WriteQueue[object](1 << 20)
    writes = [a_write(number) for number in range(6)]
    assert all(queue.offer(write) for write in writes)
    assert queue.send(2, 1 << 20) == writes[:2]
    assert queue.send(9, 150) == writes[2:4]
    assert queue.send(9, 1) == writes[4:5]
    assert (len(queue), queue.bytes_held) == (1, writes[5].answer.size_bytes)
    assert queue.send(9, 1 << 20) == writes[5:]
    assert (queue.send(9, 1 << 20), len(queue), queue.bytes_held) == ([], 0, 0)


def test_bytes_are_bounded() -> None:
    """What would pass the bound is refused, whatever comes, and room that was made is used."""
    rng, queue = random.Random(3), WriteQueue[object](50_000)
    refused = 0
    for number in range(2000):
        refused += not queue.offer(a_write(number, rng.choice([10, 1000, 20_000, 60_000])))
        assert queue.bytes_held <= 50_000
        if len(queue) and rng.random() < 0.4:
            queue.send(1, 1)
    assert 0 < refused < 2000
    while len(queue):
        queue.send(64, 1 << 20)
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
    assert [int.from_bytes(write.key, "big") for write in queue.send(9, 1 << 20)] == left
    assert queue.bytes_held == 0


def test_what_is_put_back_leaves_first() -> None:
    """A batch that was not written waits again, in its order and before what came after it, and is counted again."""
    queue = WriteQueue[object](1 << 20)
    writes = [a_write(number) for number in range(5)]
    for write in writes:
        queue.offer(write)
    held = queue.bytes_held
    queue.send(3, 1 << 20)
    queue.put_back()
    assert (len(queue), queue.bytes_held) == (5, held)
    assert queue.send(9, 1 << 20) == writes


def test_what_is_cleared_on_its_way_does_not_come_back() -> None:
    """A batch that is out when its scope is cleared is marked: of what is put back, the others alone wait again."""
    queue, other = WriteQueue[object](1 << 20), CacheScope("acme", "digits", "2", "f")
    writes = [a_write(0), a_write(1, scope=other), a_write(2), a_write(3, scope=other)]
    for write in writes:
        queue.offer(write)
    queue.send(3, 1 << 20)
    queue.forget(lambda scope: scope == other)
    queue.forget(lambda scope: scope.tenant == "nobody")
    assert [write.forgotten for write in writes] == [False, True, False, False]
    queue.put_back()
    assert queue.send(9, 1 << 20) == [writes[0], writes[2]]
    assert queue.bytes_held == 0


def test_what_was_written_is_not_marked() -> None:
    """Once its batch has landed a write is nobody's: a later clear finds what waits, and nothing of before."""
    queue = WriteQueue[object](1 << 20)
    written = a_write(1)
    queue.offer(written)
    queue.send(1, 1)
    queue.landed()
    queue.forget(lambda _: True)
    queue.put_back()
    assert (written.forgotten, len(queue)) == (False, 0)


@pytest.mark.parametrize(("sent", "left"), [(0, 3), (1, 4)])
def test_losing_a_batch_takes_it_or_the_next(sent: int, left: int) -> None:
    """What is out is given up, else what would have left: a server that takes nothing is not asked for ever."""
    queue = WriteQueue[object](1 << 20)
    for number in range(5):
        queue.offer(a_write(number))
    queue.send(sent, 1 << 20)
    assert queue.lose(2) == (sent or 2)
    assert len(queue) == left
