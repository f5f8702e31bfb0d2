"""What goes wrong in the delivery simulation, besides processes that end or stop in the middle of a step."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.simulation.delivery_broker import GROUP, Result

if TYPE_CHECKING:
    from tests.simulation.delivery_world import DeliveryWorld


def happen(world: "DeliveryWorld", fault: str) -> None:
    """Lets one fault happen now."""
    world.met.add(f"fault {fault}")
    world.tell(f"fault: {fault}")
    world.disturbances += 1
    _FAULTS[fault](world)


def _crash(world: "DeliveryWorld") -> None:
    for process in world.alive()[:1]:
        process.end("killed")


def _pause(world: "DeliveryWorld") -> None:
    if alive := world.alive():
        world.pause(world.rng.choice(alive), world.rng.choice((0.5, 2.0, 4.0, 8.0)))


def _join(world: "DeliveryWorld") -> None:
    if len(world.alive()) < 4:
        world.start(f"s-{world.rng.randrange(4)}" if world.static else None)


def _stop(world: "DeliveryWorld") -> None:
    if alive := world.alive():
        world.rng.choice(alive).stop()


def _outage(world: "DeliveryWorld") -> None:
    world.logs.away_until = world.timeline.now + world.rng.choice((0.2, 1.0, 4.0))


def _coordinator_away(world: "DeliveryWorld") -> None:
    seconds = world.rng.choice((0.2, 1.0, 4.0))
    world.coordinator.away_until = world.timeline.now + seconds
    world.timeline.after(seconds, world.coordinator.come_back)


def _clock_jump(world: "DeliveryWorld") -> None:
    world.clock_jumped = True
    world.logs.clock_s += world.rng.choice((-3600.0, 3600.0)) if not world.logs.clock_s else -world.logs.clock_s


def _foreign_results(world: "DeliveryWorld") -> None:
    rng = world.rng
    log = world.logs.results[p := rng.randrange(world.logs.partitions)]
    like = rng.choice(world.logs.requests[p] or [None])
    offset = b"%d" % (like.offset if like else 3)
    named = like.request_id.encode() if like else b"r-1"
    stamp = b"%d" % (like.timestamp_ms if like else 7)
    for headers in (
        [],
        [("ce_id", named), ("request-offset", offset), ("request-timestamp", stamp), ("worker-group", b"others")],
        [("ce_id", named), ("request-offset", b"x"), ("request-timestamp", stamp), ("worker-group", GROUP.encode())],
        [("ce_id", named), ("request-offset", offset), ("request-timestamp", b"1" * 30), ("worker-group", b"group")],
        [("ce_id", b"other"), ("request-offset", offset), ("request-timestamp", b"1"), ("worker-group", b"group")],
        [("ce_id", None), ("request-offset", None), ("worker-group", b"\xff")],
    ):
        foreign: list[tuple[str, bytes | None]] = list(headers)
        log.append(Result(foreign, b"foreign", None, timestamp_ms=world.logs.now_ms(), offset=len(log)))


def _reset(world: "DeliveryWorld") -> None:
    """Somebody sets offsets back by hand, while nobody is there."""

    def reset() -> None:
        world.notes_lost += 1
        for p, (offset, _) in world.coordinator.commits.items():
            world.coordinator.commits[p] = world.rng.randint(0, offset), ""

    _while_empty(world, reset)


def _garbage_note(world: "DeliveryWorld") -> None:
    """Other software commits the same offsets, with metadata of its own."""

    def spoil() -> None:
        world.notes_lost += 1
        for p, (offset, text) in world.coordinator.commits.items():
            garbage = ("", "hello", "{}", '{"results":-1}', '{"results":"x"}', "[1]", '{"results":1e99}', text)
            world.coordinator.commits[p] = offset, world.rng.choice(garbage)

    _while_empty(world, spoil)


def _requests_anew(world: "DeliveryWorld") -> None:
    """The requests topic is deleted and made again; Kafka forgets the commits with it, or they were put back."""

    def renew() -> None:
        world.notes_lost += 1
        world.logs.life += 1
        longest = max(len(log) for log in world.logs.requests)
        world.logs.requests = [[] for _ in range(world.logs.partitions)]
        kept = {p: (longest + offset + 50, text) for p, (offset, text) in world.coordinator.commits.items()}
        world.coordinator.commits = kept if world.rng.random() < 0.3 else {}

    _while_empty(world, renew)


def _results_anew(world: "DeliveryWorld") -> None:
    """The results topic is deleted and made again."""

    def renew() -> None:
        world.logs.epoch += 1
        world.logs.results = [[] for _ in range(world.logs.partitions)]

    _while_empty(world, renew)


def _while_empty(world: "DeliveryWorld", change: Callable[[], None]) -> None:
    """Stops or kills every process, waits until the group has no member, changes something, starts again."""
    if world.emptying:
        return
    world.emptying = True
    for process in world.alive():
        if world.rng.random() < 0.5:
            process.stop()
        else:
            process.end("killed")
    count = world.rng.choice((1, 2))

    def look() -> None:
        if world.coordinator.members or world.alive():
            world.timeline.after(0.3, look)
            return
        change()
        world.emptying = False
        for number in range(count):
            world.start(f"s-{number}" if world.static else None)

    look()


_FAULTS: dict[str, Callable[["DeliveryWorld"], None]] = {
    "crash": _crash,
    "pause": _pause,
    "join": _join,
    "stop": _stop,
    "outage": _outage,
    "coordinator_away": _coordinator_away,
    "clock_jump": _clock_jump,
    "foreign_results": _foreign_results,
    "reset": _reset,
    "garbage_note": _garbage_note,
    "requests_anew": _requests_anew,
    "results_anew": _results_anew,
}
FAULTS = tuple(_FAULTS)
