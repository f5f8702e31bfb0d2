"""Which look-ups leave together and how many may wait: by what earlier ones brought."""

import random

import pytest

from pipeline.core.look_up_queue import (
    TOGETHER_BYTES_MAX,
    TOGETHER_MAX,
    TOGETHER_MIN,
    WAITING_BYTES_MAX,
    WAITING_MAX,
    LookUp,
    LookUpQueue,
)


def a_look_up(number: int) -> LookUp[object]:
    """One that is told from others by its key."""
    return LookUp(number.to_bytes(32, "big"), f"name-{number}", 0.0, lambda _: None)


def offered(queue: LookUpQueue[object], count: int) -> list[LookUp[object]]:
    """Offers so many, and returns those that were taken."""
    return [look_up for look_up in map(a_look_up, range(count)) if queue.offer(look_up)]


def read(queue: LookUpQueue[object], bytes_each: int, pipelines: int = 20) -> None:
    """Reads full pipelines of answers of this size."""
    for _ in range(pipelines):
        offered(queue, queue.waiting_max)
        queue.landed(bytes_each * len(queue.send()))


def test_look_ups_leave_in_their_order() -> None:
    """Those that wait longest leave first, as many as go together; the others wait."""
    queue = LookUpQueue[object]()
    taken = offered(queue, 1000)
    assert len(taken) == 1000
    sent = queue.send()
    assert sent == taken[: len(sent)]
    assert (len(sent), len(queue), queue.is_out) == (256, 744, True)
    queue.landed(None)
    assert (queue.is_out, queue.send()) == (False, taken[256:512])


@pytest.mark.parametrize(
    ("bytes_each", "together", "waiting"),
    [
        (0, TOGETHER_MAX, WAITING_MAX),
        (100, TOGETHER_MAX, WAITING_MAX),
        (10_000, 104, 104 * 16),
        (1 << 20, TOGETHER_MIN, TOGETHER_MIN * 16),
    ],
)
def test_bounds_follow_the_answers_size(bytes_each: int, together: int, waiting: int) -> None:
    """Once some were read, a pipeline brings about a MiB, and 16 of them wait; neither grows or shrinks without end."""
    queue = LookUpQueue[object]()
    read(queue, bytes_each, 200)
    assert queue.together_max == pytest.approx(together, rel=0.02)
    assert queue.waiting_max == pytest.approx(waiting, rel=0.02)


def test_one_answer_says_little() -> None:
    """A single answer of the largest size, or some misses, do not turn the bounds over."""
    queue = LookUpQueue[object]()
    read(queue, 1000)
    before = queue.together_max
    for bytes_read in (50_000, 0, 0):
        offered(queue, 1)
        queue.send()
        queue.landed(bytes_read)
    assert before / 2 < queue.together_max <= before * 1.1


def test_what_has_no_room_any_more_is_given_back() -> None:
    """Where answers turn out larger than thought, the newest do not wait for so many pipelines."""
    queue = LookUpQueue[object]()
    taken = offered(queue, 4096)
    excess: list[LookUp[object]] = []
    while look_ups := queue.send():
        excess += queue.landed(100_000 * len(look_ups))
        assert len(queue) <= queue.waiting_max
    assert taken[-1] in excess
    oldest = taken[: 256 + TOGETHER_MIN * 16]
    assert [look_up for look_up in oldest if look_up in excess] == []


def test_expected_bytes_are_bounded_whatever_comes() -> None:
    """However sizes change, what waits is expected to bring 16 MiB at most, and what is out one, but for the least."""
    rng, queue = random.Random(3), LookUpQueue[object]()
    for _ in range(2000):
        offered(queue, rng.randrange(2000))
        assert len(queue) <= queue.waiting_max <= WAITING_MAX
        each = TOGETHER_BYTES_MAX / queue.together_max
        assert queue.waiting_max * each <= WAITING_BYTES_MAX * 1.01
        sent = queue.send()
        assert len(sent) <= TOGETHER_MAX
        queue.landed(sum(rng.choice([0, 100, 60_000]) for _ in sent) if rng.random() < 0.9 else None)


def test_giving_up_reaches_all_that_were_not_told() -> None:
    """Out or waiting, each is given up once; the pipeline is out all the same, and new ones may wait behind it."""
    queue = LookUpQueue[object]()
    taken = offered(queue, 300)
    for look_up in queue.send()[:100]:
        look_up.found = None
    assert queue.give_up() == taken[100:]
    assert (len(queue), queue.is_out) == (0, True)
    for look_up in taken:
        look_up.found = None
    later = offered(queue, 2)
    assert queue.give_up() == later
