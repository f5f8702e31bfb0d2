"""What waits for the fleet: bounded in number and bytes, taken in turns, so that no model's flood starves another.

At most `4 x full_in_flight` calls are out to each instance, and half of that for one model: one flooded model leaves
the other half to all others, and several take turns, model by model, and within a model group by group. A request that
finds the queue full is refused at once; those nobody waits for any more make room first.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.core.batching import FOREVER, NEVER, BatchGroup, GroupKey
from pipeline.core.coalescing import Flight
from pipeline.errors import InferenceServerError

# Looking through a full queue of 8,192 takes 3 ms: at most so often.
_LOOK_AGAIN_S = 0.1


class FleetOverloaded(InferenceServerError):  # noqa: N818 - a state, not a mistake
    """More waits for the fleet than may. Nothing was executed; safe to retry, later."""


@dataclass(frozen=True, slots=True)
class QueueBounds:
    """What may wait for the fleet.

    Attributes:
        count_max: requests, equal ones counted once.
        bytes_max: of their inputs.
    """

    # Twice what a worker takes on (4,096, and inputs of 128 MiB): behind a worker it is Kafka that holds the backlog.
    count_max: int = 8192
    bytes_max: int = 256 << 20


class Batch(NamedTuple):
    """What leaves in one call."""

    key: GroupKey
    group: BatchGroup[Flight]
    flights: list[Flight]


class ModelLine(NamedTuple):
    """What waits for one model, as a status page shows it.

    Attributes:
        waiting: requests; `bytes` of their inputs.
        oldest_s: how long the oldest of them has been waiting.
        in_flight: calls that are out.
    """

    model_name: str
    waiting: int
    bytes: int
    oldest_s: float
    in_flight: int


@dataclass(slots=True)
class _Line:
    """One model's groups that have something waiting, in their turn, and its calls."""

    ready: dict[GroupKey, BatchGroup[Flight]] = field(default_factory=dict)
    in_flight: int = 0
    waiting: int = 0
    bytes: int = 0


def wanted_until(flight: Flight) -> float:
    """The last deadline of those who wait for a flight; `FOREVER` where one has none, `NEVER` where nobody waits."""
    if len(flight.members) == 1:  # nearly always, and asked twice for each miss
        (member,) = flight.members
        if member.done:
            return NEVER
        return FOREVER if member.deadline is None else member.deadline
    latest = NEVER
    for member in flight.members:
        if not member.done:
            if member.deadline is None:
                return FOREVER
            latest = max(latest, member.deadline)
    return latest


class FleetQueue:
    """All groups.

    Args:
        instances: how many servers share the load.
        full_in_flight: full batches of a group that may be out to one of them.
        bounds: what may wait.
        rows_max: the rows of the largest batch that a flight may be in.
        call_p99_s: what a call of a group takes that has so many bytes; None where that is not known.
    """

    def __init__(
        self,
        instances: int,
        full_in_flight: int,
        bounds: QueueBounds,
        rows_max: Callable[[Flight], int],
        call_p99_s: Callable[[GroupKey, int], float | None],
    ) -> None:
        self._instances = instances
        self._full_in_flight = full_in_flight
        self._count_max, self._bytes_max = bounds.count_max, bounds.bytes_max
        self._rows_max = rows_max
        self._call_p99_s = call_p99_s
        self._model_calls_max = instances * 2 * full_in_flight
        self._calls_max = 2 * self._model_calls_max
        self._groups: dict[GroupKey, BatchGroup[Flight]] = {}
        self._lines: dict[str, _Line] = {}
        self._unwanted: list[Flight] = []
        self._looked_at = NEVER
        self.count = 0
        self.bytes = 0
        self.in_flight = 0

    def __len__(self) -> int:
        """How many groups have something waiting or out."""
        return len(self._groups)

    def add(self, key: GroupKey, flight: Flight, now: float) -> bool:
        """A flight joins the queue of its group; False where the queue is full."""
        size = flight.size_bytes
        flight.queued_at = now
        if (self.count >= self._count_max or self.bytes + size > self._bytes_max) and not self._make_room(size, now):
            return False
        group = self._groups.get(key)
        line = self._lines.get(key.model_name)
        if line is None:
            line = self._lines[key.model_name] = _Line()
        if group is None:
            group = self._groups[key] = self._group(key, self._rows_max(flight))
        if not group.rows_queued:
            line.ready[key] = group
        group.add(flight)
        line.waiting += 1
        line.bytes += size
        self.count += 1
        self.bytes += size
        return True

    def take(self, now: float) -> Batch | None:
        """The next batch that may leave, of the model whose turn it is; the caller says when it has `ended`."""
        if self.in_flight >= self._calls_max:
            return None
        for model_name, line in list(self._lines.items()):
            if line.ready and line.in_flight < self._model_calls_max:
                batch = self._take_of(line, now)
                if batch is not None:
                    self._lines[model_name] = self._lines.pop(model_name)  # its turn is over
                    return batch
            if not line.ready and not line.in_flight:
                del self._lines[model_name]  # nobody waited for any of it
        return None

    def ended(self, batch: Batch) -> None:
        """A batch is out no longer."""
        line = self._lines[batch.key.model_name]
        batch.group.in_flight -= 1
        line.in_flight -= 1
        self.in_flight -= 1
        if not batch.group.in_flight and not len(batch.group):
            del self._groups[batch.key]
        if not line.in_flight and not line.ready:
            del self._lines[batch.key.model_name]

    def unwanted(self) -> list[Flight]:
        """Those that left the queue since the last look because nobody waits for them any more."""
        found, self._unwanted = self._unwanted, []
        return found

    def lines(self, now: float) -> list[ModelLine]:
        """What waits for each model."""
        return [
            ModelLine(
                model_name,
                line.waiting,
                line.bytes,
                max(now - min((group.oldest_at for group in line.ready.values()), default=now), 0.0),
                line.in_flight,
            )
            for model_name, line in self._lines.items()
        ]

    def _group(self, key: GroupKey, rows_max: int) -> BatchGroup[Flight]:
        # What failed by itself before has no claim to more than one call at a time.
        rows_max, full = (1, 1) if key.alone else (rows_max, self._full_in_flight)
        return BatchGroup(
            rows_max, self._instances, full, wanted_until, lambda size_bytes: self._call_p99_s(key, size_bytes)
        )

    def _make_room(self, size: int, now: float) -> bool:
        """Lets those go whom nobody waits for any more; whether there is room for so many bytes then."""
        if now - self._looked_at >= _LOOK_AGAIN_S:
            self._looked_at = now
            for line in self._lines.values():
                for key, group in list(line.ready.items()):
                    group.drop_unwanted()
                    self._settle(line, key, group, [])
        # A request larger than the bound is taken when it is alone, or it could never be.
        return self.count < self._count_max and (self.bytes + size <= self._bytes_max or not self.count)

    def _take_of(self, line: _Line, now: float) -> Batch | None:
        while True:
            found = next(
                (
                    (key, group, taken)
                    for key, group in line.ready.items()
                    if (taken := group.take(now)) or group.unwanted
                ),
                None,
            )
            if found is None:
                return None
            key, group, taken = found
            self._settle(line, key, group, taken)
            if taken:
                line.in_flight += 1
                self.in_flight += 1
                return Batch(key, group, taken)

    def _settle(self, line: _Line, key: GroupKey, group: BatchGroup[Flight], taken: list[Flight]) -> None:
        """Counts what has left a group's queue, and gives the group its new place in turn."""
        gone = [*taken, *group.unwanted] if group.unwanted else taken
        if not gone:
            return
        size = sum([flight.size_bytes for flight in gone])
        line.waiting -= len(gone)
        line.bytes -= size
        self.count -= len(gone)
        self.bytes -= size
        if group.unwanted:
            self._unwanted += group.unwanted
            group.unwanted = []
        del line.ready[key]
        if len(group):
            line.ready[key] = group
        elif not group.in_flight:
            del self._groups[key]
