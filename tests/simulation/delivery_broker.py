"""Kafka in the delivery simulation: logs, and a group coordinator with generations, sessions and static members."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pipeline.core.lane import Lane
from tests.simulation.delivery_time import Life, Signal, Timeline

if TYPE_CHECKING:
    from tests.simulation.delivery_worker import WorkerProcess

SESSION_S = 3.0
HEARTBEAT_S = SESSION_S / 5
GROUP = "group"
TOPIC = "requests"


@dataclass(eq=False, slots=True)
class Request:
    """A record of the requests log.

    Attributes:
        kind: an `undecodable` one is no JSON object; a `poison` one ends its worker `crash_s` after it began.
        life: how often the topic was made anew before.
        runs: how often it was computed.
        named_in: the lanes in which it was alone, but for those that ended in order.
    """

    partition: int
    offset: int
    timestamp_ms: int
    own_id: str | None
    tenant: str
    content: int
    kind: Literal["plain", "undecodable", "poison"]
    crash_s: float
    life: int
    runs: int = 0
    named_in: set[Lane] = field(default_factory=set)

    @property
    def request_id(self) -> str:
        return self.own_id or f"{TOPIC}:{self.partition}:{self.offset}"

    @property
    def digest(self) -> bytes:
        return b"%016d" % self.content

    def __str__(self) -> str:
        return f"{self.partition}@{self.offset}" + (f" (life {self.life})" if self.life else "")


@dataclass(eq=False, slots=True)
class Result:
    """A record of the results log.

    Attributes:
        request: what it answers; None for a foreign one.
        read_until: the results end that its writer had read to when it opened the partition.
        epoch: how often the topic was made anew before.
        owned: its writer had the partition when it arrived.
    """

    headers: list[tuple[str, bytes | None]]
    value: bytes
    request: Request | None
    code: str = ""
    writer: str = ""
    read_until: int = 0
    timestamp_ms: int = 0
    offset: int = -1
    epoch: int = 0
    owned: bool = False


@dataclass(eq=False, slots=True)
class EventRecord:
    """A record of the events log: lines of several requests, by their ids."""

    partition: int
    generation: int
    incarnation: int
    redelivered: bool
    lines: list[tuple[Request, str]]


@dataclass(eq=False, slots=True)
class Letter:
    """A dead letter."""

    request: Request
    reason: str


Written = Result | EventRecord | Letter


@dataclass(eq=False)
class Confirmation(Signal):
    """What a producer is told: the first record's offset, or -1 where its first try had arrived."""

    offset: int = -1


@dataclass(eq=False, slots=True)
class Member:
    process: "WorkerProcess"
    beat_at: float
    joined: bool = True


@dataclass(eq=False)
class Logs:
    """The logs of all partitions, and the brokers' clock.

    Attributes:
        clock_s: how far the brokers' clock is off.
        away_until: what is sent before arrives after it.
        life: how often the requests topic was made anew.
        epoch: likewise the results topic.
    """

    timeline: Timeline
    rng: random.Random
    partitions: int
    clock_s: float = 0.0
    away_until: float = 0.0
    life: int = 0
    epoch: int = 0
    requests: list[list[Request]] = field(default_factory=list)
    results: list[list[Result]] = field(default_factory=list)
    events: list[list[EventRecord]] = field(default_factory=list)
    _last: dict[tuple[Life, type], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.requests = [[] for _ in range(self.partitions)]
        self.results = [[] for _ in range(self.partitions)]

    def now_ms(self) -> int:
        """The broker's clock, which may jump."""
        return int((self.timeline.now + self.clock_s) * 1000)

    def produce(
        self,
        records: Sequence[Written],
        life: Life,
        late_s: float,
        arrive: Callable[[Sequence[Written]], int],
    ) -> Confirmation:
        """Sends records; they arrive whatever becomes of the process, which may be told later or not."""
        timeline, rng = self.timeline, self.rng
        confirmation = Confirmation()
        arrives_at = timeline.now + rng.uniform(0.001, 0.01) + late_s
        if arrives_at < self.away_until:
            arrives_at = self.away_until + rng.uniform(0.0, 0.3)
        # A producer's batches keep their order.
        stream = life, type(records[0])
        arrives_at = self._last[stream] = max(arrives_at, self._last.get(stream, 0.0))

        def land() -> None:
            confirmation.offset = arrive(records)
            # The answer was lost and the request sent again: Kafka says that it has it, and not where.
            repeated = rng.random() < 0.15
            if repeated:
                confirmation.offset = -1
            timeline.after(rng.uniform(0.1, 0.5) if repeated else rng.uniform(0.0005, 0.005), confirmation.set, life)

        timeline.after(arrives_at - timeline.now, land)
        return confirmation


class Coordinator:
    """The group: who is in it, who owns what, what is committed."""

    def __init__(self, timeline: Timeline, partitions: int, tell: Callable[[str], None]) -> None:
        self._timeline = timeline
        self._partitions = partitions
        self._tell = tell
        self.generation = 0
        self.members: dict[str, Member] = {}
        self.owners: dict[int, WorkerProcess] = {}
        self.commits: dict[int, tuple[int, str]] = {}
        self.rebalancing = False
        self.away_until = 0.0
        timeline.after(SESSION_S / 8, self._expire)

    @property
    def away(self) -> bool:
        return self._timeline.now < self.away_until

    def owns(self, process: "WorkerProcess", partition: int, generation: int) -> bool:
        """Whether this process has the partition, as far as the group knows."""
        return self.generation == generation and self.owners.get(partition) is process

    def join(self, process: "WorkerProcess") -> None:
        """A member joins, or rejoins while the group rebalances; a static one takes the place it had."""
        key = process.member
        known = self.members.get(key)
        if known is not None and known.process is not process and not self.rebalancing:
            self._tell(f"{process.name} takes the place of {known.process.name} in generation {self.generation}")
            self.owners = {p: process if owner is known.process else owner for p, owner in self.owners.items()}
            self.members[key] = Member(process, self._timeline.now)
            process.assigned(self.generation, self._owned(process))
            return
        self.members[key] = Member(process, self._timeline.now)
        self._prepare(but=key)

    def leave(self, process: "WorkerProcess") -> None:
        """A member says that it goes; a static one never does."""
        if self._is_member(process):
            del self.members[process.member]
            self._prepare()

    def heartbeat(self, process: "WorkerProcess", generation: int) -> int:
        """The generation that holds for this member; -1 for nobody we know."""
        if not self._is_member(process) or generation != self.generation:
            return -1
        self.members[process.member].beat_at = self._timeline.now
        return generation

    def must_rejoin(self, process: "WorkerProcess") -> bool:
        """Whether the group waits for this member to join again."""
        return self.rebalancing and self._is_member(process) and not self.members[process.member].joined

    def accepts(self, process: "WorkerProcess", generation: int) -> bool:
        """Whether a commit of this member counts."""
        return self._is_member(process) and generation == self.generation

    def come_back(self) -> None:
        """A new broker has the group: sessions begin again."""
        for member in self.members.values():
            member.beat_at = self._timeline.now

    def _is_member(self, process: "WorkerProcess") -> bool:
        member = self.members.get(process.member)
        return member is not None and member.process is process

    def _owned(self, process: "WorkerProcess") -> list[int]:
        return [partition for partition, owner in sorted(self.owners.items()) if owner is process]

    def _prepare(self, but: str | None = None) -> None:
        if not self.rebalancing:
            self.rebalancing = True
            for key, member in self.members.items():
                member.joined = key == but
        elif but is not None:
            self.members[but].joined = True
        self._complete()

    def _complete(self) -> None:
        if not all(member.joined for member in self.members.values()):
            return
        self.rebalancing = False
        self.generation += 1
        processes = [member.process for _, member in sorted(self.members.items())]
        old, self.owners = self.owners, {}
        for partition in range(self._partitions if processes else 0):
            # Sticky, but not for ever: what moves is what has to be right.
            before = old.get(partition)
            stays = before in processes and (self.generation + partition) % 3
            self.owners[partition] = (
                before if stays and before is not None else processes[(self.generation + partition) % len(processes)]
            )
        self._tell(f"generation {self.generation}: { ({p: o.name for p, o in self.owners.items()}) }")
        for member in self.members.values():
            member.beat_at = self._timeline.now
            member.process.assigned(self.generation, self._owned(member.process))

    def _expire(self) -> None:
        self._timeline.after(SESSION_S / 8, self._expire)
        if self.away:
            return
        # Whoever waits for the others to join is not expected to send heartbeats.
        gone = [
            key
            for key, member in self.members.items()
            if self._timeline.now - member.beat_at > SESSION_S and not (self.rebalancing and member.joined)
        ]
        for key in gone:
            self._tell(f"the session of {self.members[key].process.name} is over")
            del self.members[key]
        if gone:
            self._prepare()
