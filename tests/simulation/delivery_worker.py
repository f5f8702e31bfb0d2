"""A worker process in the delivery simulation: the real core, and around it what pipeline/worker does, step for step.

Where a step follows the worker's shell, it names the place; change them together.
"""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from pipeline.core.duplicates import DuplicateWindow, First, duplicate_key
from pipeline.core.lane import Lane, LaneStart
from pipeline.core.ledger import read_answered
from pipeline.worker.membership import Membership
from tests.simulation.delivery_broker import (
    GROUP,
    HEARTBEAT_S,
    SESSION_S,
    TOPIC,
    Confirmation,
    EventRecord,
    Letter,
    Request,
    Result,
)
from tests.simulation.delivery_opening import read_results, restore_duplicates, start_of
from tests.simulation.delivery_time import Ended, Life, Signal, Steps

if TYPE_CHECKING:
    from tests.simulation.delivery_world import DeliveryWorld

Value = TypeVar("Value")
Doing = Generator[float | Signal, None, Value]

COMMIT_S = 0.5
GRACE_S = 1.5
IN_FLIGHT_MAX = 6


@dataclass(eq=False, slots=True)
class Outgoing:
    """All that one answered record puts into Kafka."""

    lane: Lane
    request: Request
    result: Result | None
    events: tuple[str, ...]
    letter: Letter | None
    redelivered: bool


def events_of(value: bytes) -> tuple[str, ...]:
    """The event types of an answer, from its bytes alone."""
    return "received", value.split()[1].decode(), "published"


class WorkerProcess(Life):
    """One process of the group.

    Args:
        world: everything around it.
        name: its own.
        instance: the static member it is, or None.
    """

    def __init__(self, world: "DeliveryWorld", name: str, instance: str | None) -> None:
        super().__init__()
        self.world = world
        self.name = name
        self.static = instance is not None
        self.member = instance or name
        self.generation = -1
        self.rebalancing = True
        self.stopping = False
        self.lanes: dict[int, Lane] = {}
        self.membership = Membership(SESSION_S, lambda: world.timeline.now)
        self.pauses = 0
        self.alone: Request | None = None
        self._looked = 0
        self._read_until: dict[Lane, int] = {}
        self._running = 0
        self._progress = Signal()
        self._ready: list[Outgoing] = []
        self._answered: list[Outgoing] = []
        self._wake_results = Signal()
        self._wake_events = Signal()
        self._committing = False
        self._commit_done = Signal()
        for task in (self._heartbeats(), self._commits(), self._take(), self._results(), self._events()):
            self._start(task)
        world.coordinator.join(self)

    # -- the process --------------------------------------------------------------------------------------------------

    def _start(self, steps: Steps) -> None:
        self.world.timeline.start(self, steps)

    def _at(self, where: str) -> Doing[None]:
        """A place where the world may end or pause this process."""
        if self.world.strikes(self, where):
            if not self.alive:
                raise Ended
            yield 0.0

    def _network(self) -> float:
        return self.world.rng.uniform(0.0005, 0.004)

    def open_lanes(self) -> list[Lane]:
        """What it holds."""
        return [lane for lane in self.lanes.values() if not lane.closed]

    def wake(self) -> None:
        """Something was appended or committed."""
        self._progress.set()

    def end(self, why: str) -> None:
        """The process is gone, whatever it did."""
        if self.alive:
            self.alive = False
            self.world.ended(self, why)

    # -- the group: transport.GroupThread, transport.ChunkConsumer, Faust ---------------------------------------------

    def assigned(self, generation: int, partitions: list[int]) -> None:
        """The group's answer to a join."""

        def begin() -> None:
            if self.stopping:
                return
            self.generation, self.rebalancing = generation, False
            self._start(self._open(generation, partitions))

        self.world.timeline.after(self._network(), begin, self)

    def _heartbeats(self) -> Steps:
        while True:
            yield HEARTBEAT_S
            yield from self._beat()

    def _beat(self) -> Doing[int | None]:
        """As GroupThread.beat."""
        coordinator, generation, began_at = self.world.coordinator, self.generation, self.world.timeline.now
        if generation < 0:
            return -1
        if coordinator.away:
            yield 0.3
            return None
        yield self._network()
        held = coordinator.heartbeat(self, generation)
        must_rejoin = coordinator.must_rejoin(self)
        yield self._network()
        if held == generation:
            self.membership.note(generation, began_at)
            if must_rejoin and not self.rebalancing:
                self._rejoin()
        elif self.generation == generation:
            place = coordinator.members.get(self.member)
            if place is not None and place.process is not self:
                self.end("somebody has its place")
                raise Ended
            self.generation = -1
            if not self.rebalancing:
                self._rejoin()
        return self.generation

    def _rejoin(self) -> None:
        self.rebalancing = True
        self._start(self._revoke_and_join())

    def _revoke_and_join(self) -> Steps:
        yield from self._wait_empty()
        yield from self._at("before the join")
        if not self.stopping:
            self.world.coordinator.join(self)

    def stop(self) -> None:
        """SIGTERM."""
        if self.alive and not self.stopping:
            self.stopping = self.rebalancing = True
            self._start(self._stop())

    def _stop(self) -> Steps:
        yield from self._wait_empty()
        if not self.static:
            self.world.coordinator.leave(self)
        self.alive = False
        self.world.ended(self, "stopped")

    def _wait_empty(self) -> Doing[None]:
        """As ChunkConsumer.wait_empty."""
        timeline = self.world.timeline
        lanes, limit = list(self.lanes.values()), timeline.now + GRACE_S
        for lane in lanes:
            lane.closed = lane.closed or lane.generation != self.generation
        while any(len(lane.offsets) for lane in lanes if not lane.closed) and timeline.now < limit:
            yield 0.05
        yield from self._commit(lanes, clean_end=True)
        for lane in lanes:
            lane.closed = True
        self.wake()

    def _commits(self) -> Steps:
        while True:
            yield COMMIT_S
            if self.lanes:
                yield from self._commit(list(self.lanes.values()))

    def _commit(self, lanes: Iterable[Lane], *, clean_end: bool = False) -> Doing[bool]:
        """As ChunkConsumer.commit_lanes."""
        coordinator = self.world.coordinator
        while self._committing:
            yield self._commit_done
        due = [
            (lane, *place)
            for lane in lanes
            if not lane.closed and (place := lane.to_commit(clean_end=clean_end)) is not None
        ]
        if not due:
            return False
        self._committing = True
        yield from self._at("before a commit")
        while coordinator.away:
            yield 0.1
        yield self._network()
        accepted = coordinator.accepts(self, self.generation)
        if accepted:
            for lane, offset, note in due:
                self.world.commit(self, lane, offset, note)
        yield from self._at("after a commit")
        yield self._network()
        self._committing = False
        self._commit_done.set()
        if accepted:
            for lane, offset, note in due:
                lane.committed(offset, note)
                if clean_end and self.alone is not None:
                    self.alone.named_in.discard(lane)
            self.wake()
        return accepted

    # -- opening: lane_opening.LaneOpener -----------------------------------------------------------------------------

    def _open(self, generation: int, partitions: Sequence[int]) -> Steps:
        world = self.world
        while world.coordinator.away:
            yield 0.1
        yield self._network()
        commits = {p: world.coordinator.commits.get(p) for p in partitions}
        yield from self._at("after reading commits")
        starts = {p: start_of(world.logs, p, commits[p]) for p in partitions}
        yield self._network()
        lanes = {p: self._lane(p, generation, starts[p]) for p in partitions}
        for p, lane in lanes.items():
            if not len(lane.duplicates):
                restore_duplicates(world.logs, lane, starts[p])
        yield self._network()
        for p, lane in lanes.items():
            read_results(world.logs, lane, starts[p])
        yield from self._at("after reading results")
        if self.generation != generation or self.rebalancing:
            return
        if lanes and not (yield from self._commit(lanes.values())):
            return
        self.lanes = lanes
        for p, lane in lanes.items():
            self._read_until[lane] = starts[p].results_end
            world.tell(f"{self.name} opens {p} at {starts[p]}, {len(lane.ledger)} answers, until {lane.ledger.until}")
        self.wake()

    def _lane(self, p: int, generation: int, start: LaneStart) -> Lane:
        before = self.lanes.get(p)
        kept = before.duplicates if before is not None and before.generation == generation - 1 else None
        return Lane(TOPIC, p, generation, GROUP, start, kept if kept is not None else DuplicateWindow())

    # -- taking: main._take_chunk, intake.take ------------------------------------------------------------------------

    def _take(self) -> Steps:
        while True:
            lane, chunk = self._next_chunk()
            if lane is None:
                yield self._progress
                continue
            for request in chunk:
                while not lane.closed and (self._running >= IN_FLIGHT_MAX or not lane.may_take(request.offset)):
                    yield self._progress
                if lane.closed:
                    break
                if lane.is_isolated(request.offset):
                    yield from self._take_alone(lane, request)
                    continue
                self._recall(lane, request)
                lane.offsets.begin(request.offset)
                self._take_record(lane, request)
                yield from self._at("after taking")
            yield 0.001

    def _next_chunk(self) -> tuple[Lane | None, list[Request]]:
        if self.rebalancing:
            return None, []
        lanes = [lane for lane in self.lanes.values() if not lane.closed and lane.generation == self.generation]
        self.world.rng.shuffle(lanes)
        for lane in lanes:
            log, begin = self.world.logs.requests[lane.partition], lane.next_offset
            if begin < len(log):
                return lane, log[begin : begin + self.world.rng.randint(1, 6)]
        return None, []

    def _take_alone(self, lane: Lane, request: Request) -> Doing[None]:
        """As main._take_alone: after all that its process runs, named while it runs and not longer."""
        while self._others_run(lane) and not lane.closed:
            yield self._progress
        lane.name_suspect(request.offset)
        request.named_in.add(lane)
        self.alone = request
        yield from self._commit([lane])
        if not lane.closed and lane.is_named(request.offset):
            self._recall(lane, request)
            lane.offsets.begin(request.offset)
            self._take_record(lane, request)
            while len(lane.offsets) and not lane.closed:
                yield self._progress
            yield from self._withdraw_name(lane)
        self.alone = None

    def _withdraw_name(self, lane: Lane) -> Doing[None]:
        """What ends workers from now on is not what ran alone until now."""
        yield from self._commit([lane])

    def _others_run(self, lane: Lane) -> bool:
        return any(len(other.offsets) for other in self.open_lanes())

    def _recall(self, lane: Lane, request: Request) -> None:
        for place in lane.ledger.unread(request.offset):
            result = self.world.logs.results[lane.partition][place]
            answered = read_answered(result.headers, place, result.value)
            lane.ledger.supply(request.offset, place, answered)

    def _take_record(self, lane: Lane, request: Request) -> None:
        self.world.taken(self, lane, request)
        redelivered, letter, refused = lane.may_be_known(request.offset), None, None
        own_id = None if request.own_id is None else duplicate_key(request.own_id, request.tenant)
        if lane.is_culprit(request.offset):
            refused, letter = "INTERNAL", Letter(request, "CRASHED_WORKER")
            self.world.condemned(lane, request)
        elif request.kind == "undecodable":
            refused, letter = None if own_id is None else "INVALID_REQUEST", Letter(request, "NOT_JSON")
        if redelivered:
            for known in lane.ledger.take(request.offset, request.timestamp_ms, request.request_id)[:1]:
                assert known.value is not None
                self.world.recalled(request, known.value)
                if own_id is not None:
                    lane.duplicates.add(own_id, First(request.offset, request.timestamp_ms, known.digest))
                self._publish(Outgoing(lane, request, None, events_of(known.value), letter, redelivered))
                return
        first = None if own_id is None else lane.duplicates.find(own_id, request.offset, request.timestamp_ms)
        if first is not None:
            letter = None if first.digest == request.digest else Letter(request, "DUPLICATE_ID")
            self._publish(Outgoing(lane, request, None, ("duplicate",), letter, redelivered))
            return
        if own_id is not None:
            lane.duplicates.add(own_id, First(request.offset, request.timestamp_ms, request.digest))
        if refused is not None:
            self._answer(lane, request, refused, letter, redelivered)
        elif letter is not None:
            self._publish(Outgoing(lane, request, None, (), letter, redelivered))
        else:
            self._compute(lane, request, redelivered)

    def _compute(self, lane: Lane, request: Request, redelivered: bool) -> None:
        rng, timeline = self.world.rng, self.world.timeline
        request.runs += 1
        if request.kind == "poison":
            if not request.crash_s:
                self.end(f"poison {request}")
                raise Ended
            timeline.after(request.crash_s, lambda: self.end(f"poison {request}"), self)
            return
        if rng.random() < 0.3:
            self._answer(lane, request, "hit", None, redelivered)
            return
        self._running += 1

        def answered() -> None:
            self._running -= 1
            self._answer(lane, request, "miss", None, redelivered)
            self.wake()

        timeline.after(rng.choice((0.002, 0.02, 0.1, 0.6)) * rng.uniform(0.5, 2.0), answered, self)

    def _answer(self, lane: Lane, request: Request, code: str, letter: Letter | None, redelivered: bool) -> None:
        value = b"%d %s" % (request.content, code.encode())
        headers: list[tuple[str, bytes | None]] = [
            ("ce_id", request.request_id.encode()),
            ("request-offset", b"%d" % request.offset),
            ("request-timestamp", b"%d" % request.timestamp_ms),
            ("request-digest", request.digest.hex().encode()),
            ("worker-group", GROUP.encode()),
        ]
        if request.tenant:
            headers.append(("tenant", request.tenant.encode()))
        result = Result(headers, value, request, code, self.name, self._read_until[lane])
        self._publish(Outgoing(lane, request, result, events_of(value), letter, redelivered))

    # -- publishing: publisher.Publisher ------------------------------------------------------------------------------

    def _publish(self, outgoing: Outgoing) -> None:
        self._ready.append(outgoing)
        self._wake_results.set()

    def _ours(self, lane: Lane) -> Doing[bool]:
        """As Membership.hold."""
        while not lane.closed:
            if self.membership.is_fresh(lane):
                self._looked = self.pauses
                return True
            began_at = self.world.timeline.now
            generation = yield from self._beat()
            if generation is None:
                yield 0.2
            elif generation == lane.generation:
                self.membership.note(generation, began_at)
            else:
                lane.closed = True
        return False

    def _results(self) -> Steps:
        while True:
            if not self._ready:
                yield self._wake_results
            round_, self._ready = self._ready, []
            by_lane: dict[Lane, list[Result]] = {}
            for outgoing in round_:
                if outgoing.result is not None:
                    by_lane.setdefault(outgoing.lane, []).append(outgoing.result)
            sent = []
            for lane, results in by_lane.items():
                if (yield from self._ours(lane)):
                    yield from self._at("before results")
                    sent.append((lane, results, self.world.send_results(self, lane, results, self._looked)))
                    yield from self._at("after sending results")
            for lane, results, confirmations in sent:
                yield from self._note_published(lane, results, confirmations)
            yield from self._at("between results and events")
            self._answered += round_
            self._wake_events.set()

    def _note_published(self, lane: Lane, results: list[Result], sent: list[tuple[Confirmation, int]]) -> Doing[None]:
        """As publisher._note_published."""
        first, end = None, lane.results_end
        for confirmation, count in sent:
            while not confirmation.done:
                yield confirmation
            offset = confirmation.offset if confirmation.offset >= 0 else end
            first = offset if first is None else first
            end = max(end, offset + count)
        last = max(result.request.offset for result in results if result.request is not None)
        lane.published(end if first is None else first, end, last, sum(len(result.value) for result in results))

    def _events(self) -> Steps:
        while True:
            if not self._answered:
                yield self._wake_events
            yield 0.01
            round_, self._answered = self._answered, []
            records: dict[tuple[int, int, int, bool], EventRecord] = {}
            confirmations: list[Confirmation] = []
            for outgoing in round_:
                lane = outgoing.lane
                if not (yield from self._ours(lane)):
                    continue
                writing = (lane.partition, lane.generation, lane.incarnation, outgoing.redelivered)
                if outgoing.events:
                    record = records.setdefault(writing, EventRecord(*writing, []))
                    record.lines += [(outgoing.request, event) for event in outgoing.events]
                if outgoing.letter is not None:
                    confirmations.append(self.world.send(self, [outgoing.letter]))
            yield from self._at("before events")
            confirmations += [self.world.send(self, [record]) for record in records.values()]
            yield from self._at("after sending events")
            for confirmation in confirmations:
                while not confirmation.done:
                    yield confirmation
            yield from self._at("between events and the offset")
            for outgoing in round_:
                if not outgoing.lane.closed:
                    outgoing.lane.offsets.finish(outgoing.request.offset)
            self.wake()
