"""The delivery simulation: a group of workers on a Kafka of logs, under load and faults, from a seed."""

import random
from collections import defaultdict
from collections.abc import Sequence
from unittest.mock import patch

from pipeline.core import lane as lane_limits
from pipeline.core import ledger as ledger_limits
from pipeline.core.commit_note import CommitNote, read_note
from pipeline.core.lane import Lane
from tests.simulation import delivery_invariants as invariants
from tests.simulation.delivery_broker import (
    Confirmation,
    Coordinator,
    EventRecord,
    Letter,
    Logs,
    Request,
    Result,
    Written,
)
from tests.simulation.delivery_faults import FAULTS, happen
from tests.simulation.delivery_time import Timeline
from tests.simulation.delivery_worker import WorkerProcess

LOAD_S = 5.0
FAULTS_S = 9.0
DRAIN_S = 400.0


class DeliveryWorld:
    """One run.

    Args:
        seed: everything follows from it.
        faults: the kinds of faults that may happen; all by default.

    Attributes:
        met: what happened at all, for the test that the seeds reach everything.
        disturbances: how often something ended, paused or moved a worker.
        notes_lost: how often the commits' notes were overwritten by hand.
    """

    def __init__(self, seed: int, faults: Sequence[str] | None = None) -> None:
        self.rng = rng = random.Random(seed)
        self.seed = seed
        self.timeline = Timeline()
        self.began_at = self.timeline.now
        self.logs = Logs(self.timeline, rng, rng.choice((1, 1, 2, 3)))
        self.history: list[tuple[float, str]] = []
        self.coordinator = Coordinator(self.timeline, self.logs.partitions, self.tell)
        self.met: set[str] = set()
        self.disturbances = 0
        self.notes_lost = 0
        self.processes: list[WorkerProcess] = []
        self.requests: list[Request] = []
        self.results_of: defaultdict[Request, list[Result]] = defaultdict(list)
        self.rows_of: defaultdict[Request, set[str]] = defaultdict(set)
        self.letters_of: defaultdict[Request, set[str]] = defaultdict(set)
        self.sink_high: dict[int, tuple[int, int]] = {}
        chosen = rng.sample(FAULTS, rng.choice((0, 2, 4, len(FAULTS), len(FAULTS))))
        self.faults = chosen if faults is None else list(faults)
        self.calm = not self.faults
        self.crash_chance = rng.choice((0.0, 0.0, 0.003, 0.02))
        self.pause_chance = rng.choice((0.0, 0.0, 0.003, 0.01))
        self.poison_chance = rng.choice((0.0, 0.0, 0.0, 0.03, 0.15))
        self.late_chance = rng.choice((0.0, 0.02, 0.1))
        self.static = rng.random() < 0.4
        self.emptying = False
        self.clock_jumped = False
        self._started = 0

    def run(self) -> "DeliveryWorld":
        """Load and faults, then calm until everything is committed; then the checks of the end.

        Raises:
            BrokenInvariantError: of the first promise that was broken.
        """
        rng = self.rng
        with (
            patch.object(lane_limits, "WINDOW_OFFSETS", rng.choice((4, 8, 16, 64))),
            patch.object(lane_limits, "UNCOMMITTED_RESULT_BYTES_MAX", rng.choice((40, 1 << 20))),
            patch.object(lane_limits, "_ROUNDS_MAX", rng.choice((1, 2, 512))),
            patch.object(ledger_limits, "VALUES_BYTES_MAX", rng.choice((0, 20, 1 << 20))),
        ):
            for number in range(rng.choice((1, 2, 3))):
                self.start(f"s-{number}" if self.static else None)
            self.timeline.after(0.0, self._append)
            if self.faults:
                self.timeline.after(rng.uniform(0.0, 2.0), self._fault)
            self.timeline.run(lambda: False, FAULTS_S)
            self._calm_down()
            if not self.timeline.run(self._is_drained, DRAIN_S):
                invariants.broken(self, "nothing_lost", f"nothing goes on: commits {self.coordinator.commits}")
            for check in invariants.AT_THE_END:
                check(self)
        return self

    # -- load, faults, calm -------------------------------------------------------------------------------------------

    def start(self, instance: str | None) -> None:
        """Starts a process, unless its place is taken."""
        taken = any(process.alive and process.member == instance for process in self.processes)
        if not self.emptying and not taken:
            self._started += 1
            self.tell(f"w{self._started} starts" + (f" as {instance}" if instance else ""))
            self.processes.append(WorkerProcess(self, f"w{self._started}", instance))

    def alive(self) -> list[WorkerProcess]:
        """The processes that are there, paused ones too."""
        return [process for process in self.processes if process.alive]

    def pause(self, process: WorkerProcess, seconds: float) -> None:
        """Stops a process for a while; it does not know."""
        if process.paused:
            return
        self.disturbances += 1
        process.paused = True
        process.pauses += 1
        self.tell(f"{process.name} is paused for {seconds:.1f} s")
        self.timeline.after(seconds, lambda: self.timeline.resume(process))

    def _append(self) -> None:
        rng = self.rng
        for _ in range(rng.choice((1, 1, 2, 6))):
            self._append_one(rng.randrange(self.logs.partitions))
        for process in self.alive():
            self.timeline.after(0.0, process.wake, process)
        if self.timeline.now < self.began_at + LOAD_S:
            self.timeline.after(rng.expovariate(2.0), self._append)

    def _append_one(self, p: int) -> None:
        rng, log = self.rng, self.logs.requests[p]
        own_id = f"r-{rng.randrange(12)}" if rng.random() < 0.4 else None
        kind = rng.random()
        poison = kind < self.poison_chance and sum(one.kind == "poison" for one in self.requests) < 2
        request = Request(
            p, len(log), self.logs.now_ms(), own_id, rng.choice(("", "", "a")), rng.randrange(3),
            "poison" if poison else "undecodable" if kind > 0.95 else "plain", rng.choice((0.0, 0.01, 0.4)),
            self.logs.life,
        )  # fmt: skip
        log.append(request)
        self.requests.append(request)

    def _fault(self) -> None:
        if self.timeline.now < self.began_at + FAULTS_S - 1.0:
            happen(self, self.rng.choice(self.faults))
            self.timeline.after(self.rng.expovariate(0.7), self._fault)

    def strikes(self, process: WorkerProcess, where: str) -> bool:
        """Whether a process ends or stops right here."""
        if self.calm:
            return False
        chance = self.rng.random()
        if chance < self.crash_chance:
            self.met.add(f"crash {where}")
            self.disturbances += 1
            process.end(f"killed {where}")
        elif chance < self.crash_chance + self.pause_chance:
            self.met.add(f"pause {where}")
            self.pause(process, self.rng.choice((0.2, 1.0, 4.0, 7.0)))
        else:
            return False
        return True

    def _calm_down(self) -> None:
        self.tell("calm")
        self.calm = True
        if self.emptying:
            return  # whoever empties the group starts it again
        if not any(not process.stopping for process in self.alive()):
            self.start("s-0" if self.static else None)

    def _is_drained(self) -> bool:
        committed = self.coordinator.commits
        return (
            all(committed.get(p, (0, ""))[0] == len(log) for p, log in enumerate(self.logs.requests) if log)
            and not self.emptying
        )

    # -- what processes tell and send ---------------------------------------------------------------------------------

    def tell(self, what: str) -> None:
        """One more line of the history."""
        self.history.append((self.timeline.now, what))

    def ended(self, process: WorkerProcess, why: str) -> None:
        """A process is gone; a supervisor starts another."""
        self.met.add(f"ended: {why.partition(' ')[0]}")
        self.tell(f"{process.name} ends: {why}")
        instance = process.member if process.static else None
        self.timeline.after(self.rng.uniform(0.1, 1.0), lambda: self.start(instance))

    def taken(self, process: WorkerProcess, lane: Lane, request: Request) -> None:
        """A record begins."""
        invariants.bounded(self, process, lane, request)
        invariants.alone_and_named(self, process, lane, request)

    def condemned(self, lane: Lane, request: Request) -> None:
        """A record is given up."""
        self.met.add("condemned")
        self.tell(f"{request} is condemned")
        invariants.no_innocent_condemned(self, lane, request)

    def recalled(self, request: Request, value: bytes) -> None:
        """An answer was found in the ledger."""
        self.met.add("answer recalled")
        invariants.own_answer(self, request, value)

    def commit(self, process: WorkerProcess, lane: Lane, offset: int, note: CommitNote) -> None:
        """Kafka takes a commit."""
        text = note.encode()
        self.tell(f"{process.name} commits {lane.partition}@{offset} {text}")
        self.coordinator.commits[lane.partition] = offset, text
        invariants.bounded_note(self, text)
        invariants.commits_never_pass(self, lane.partition, offset, note)

    def note_of(self, p: int) -> CommitNote | None:
        """The note that Kafka has for a partition."""
        commit = self.coordinator.commits.get(p)
        return None if commit is None else read_note(commit[1])

    def send_results(
        self, process: WorkerProcess, lane: Lane, results: list[Result], looked: int
    ) -> list[tuple[Confirmation, int]]:
        """Results of a lane, in one batch or two."""
        invariants.published_as_member(self, process, lane, looked)
        cut = self.rng.randrange(len(results)) if self.rng.random() < 0.2 else 0
        batches = [batch for batch in (results[:cut], results[cut:]) if batch]
        return [(self.send(process, batch, lane), len(batch)) for batch in batches]

    def send(self, process: WorkerProcess, records: Sequence[Written], lane: Lane | None = None) -> Confirmation:
        """Puts records on the way to their log."""
        late_s = self.rng.choice((0.2, 1.0, 4.0)) if not self.calm and self.rng.random() < self.late_chance else 0.0
        epoch = self.logs.epoch

        def arrive(arrived: Sequence[Written]) -> int:
            places = []
            for record in arrived:
                if isinstance(record, Result):
                    assert lane is not None
                    if epoch == self.logs.epoch:  # a topic that was deleted meanwhile takes nothing
                        record.owned = self.coordinator.owns(process, lane.partition, lane.generation)
                        places.append(self._result_arrives(record))
                elif isinstance(record, EventRecord):
                    self._event_record_arrives(record)
                else:
                    self._letter_arrives(record)
            return places[0] if places else 0

        return self.logs.produce(records, process, late_s, arrive)

    # -- what arrives -------------------------------------------------------------------------------------------------

    def _result_arrives(self, result: Result) -> int:
        request = result.request
        assert request is not None
        log = self.logs.results[request.partition]
        result.offset, result.epoch, result.timestamp_ms = len(log), self.logs.epoch, self.logs.now_ms()
        log.append(result)
        lost = "" if result.owned else ", who has lost the partition"
        self.tell(f"{request} is answered at {result.offset} by {result.writer}{lost}")
        self.met.add("result of an owner" if result.owned else "result of a zombie")
        invariants.one_answer(self, result)
        self.results_of[request].append(result)
        return result.offset

    def _event_record_arrives(self, record: EventRecord) -> None:
        self.tell(
            f"events of {', '.join(sorted({str(request) for request, _ in record.lines}))} by generation "
            f"{record.generation}.{record.incarnation}{', redelivered' if record.redelivered else ''}"
        )
        self.met.add("event record redelivered" if record.redelivered else "event record")
        invariants.one_event_set(self, record)
        writer = record.generation, record.incarnation
        high = self.sink_high.get(record.partition, (0, 0))
        if writer < high:
            self.met.add("event record of a zombie")
        self.sink_high[record.partition] = max(high, writer)
        for request, event in record.lines:
            self.rows_of[request].add(event)

    def _letter_arrives(self, letter: Letter) -> None:
        self.tell(f"{letter.request} is buried: {letter.reason}")
        self.met.add(f"letter {letter.reason}")
        self.letters_of[letter.request].add(letter.reason)

    def is_finished(self, request: Request) -> bool:
        """Whether all that a record needs is in Kafka."""
        rows = self.rows_of[request]
        if "published" in rows or "duplicate" in rows:
            return True
        return request.own_id is None and request.kind == "undecodable" and bool(self.letters_of[request])

    def first_answered_with(self, request: Request) -> Request | None:
        """An answered record before this one that has its id, also one of the topic that was there before."""
        same = (request.partition, request.own_id, request.tenant)
        for other in self.requests:
            if other is request:
                return None
            if (other.partition, other.own_id, other.tenant) == same and self.results_of[other]:
                return other
        return None

    def verdicts_are_certain(self, request: Request) -> bool:
        """Whether what is a duplicate follows from the log alone: no clock jumped, no results were deleted."""
        return not self.clock_jumped and not self.logs.epoch
