"""What must hold in the delivery simulation, whatever goes wrong: one function for each promise.

Those that look at one step are called at that step, so that a history ends where it went wrong.
"""

from typing import TYPE_CHECKING, NoReturn

from pipeline.core import lane as limits
from pipeline.core.commit_note import CommitNote
from pipeline.core.lane import Lane
from tests.simulation.delivery_broker import EventRecord, Request, Result
from tests.simulation.delivery_worker import WorkerProcess, events_of

if TYPE_CHECKING:
    from tests.simulation.delivery_world import DeliveryWorld

# Kafka's own limit on a commit's metadata.
NOTE_BYTES_MAX = 4096


class BrokenInvariantError(AssertionError):
    """Something happened that must not; the history says how it came to it."""


def broken(world: "DeliveryWorld", invariant: str, what: str) -> NoReturn:
    """Ends the run.

    Raises:
        BrokenInvariantError: always, with the end of the history and how to see it again.
    """
    told = [f"  {at - world.began_at:9.4f}  {text}" for at, text in world.history[-120:]]
    seeds = f"DELIVERY_SEEDS={world.seed}:{world.seed + 1}"
    repeat = f"Repeat: {seeds} pytest tests/simulation/test_delivery_simulation.py"
    first = f"{invariant} broken: {what}. Seed {world.seed}, its history's end:"
    raise BrokenInvariantError("\n".join([first, *told, repeat]))


def published_as_member(world: "DeliveryWorld", process: WorkerProcess, lane: Lane, looked: int) -> None:
    """Nobody sends results for a partition that the group has given to another, unless paused since the look."""
    if looked == process.pauses and not world.coordinator.owns(process, lane.partition, lane.generation):
        broken(world, "published_as_member", f"{process.name} publishes to {lane.partition}, which it has lost")


def one_answer(world: "DeliveryWorld", result: Result) -> None:
    """No second result by an owner: of owners in all, and none where one stood in what its writer had read."""
    assert result.request is not None
    if not result.owned:
        return
    for earlier in world.results_of[result.request]:
        if earlier.epoch == result.epoch and (earlier.owned or earlier.offset < result.read_until):
            broken(world, "one_answer", f"{result.request} was answered at {earlier.offset}, and at {result.offset}")


def own_answer(world: "DeliveryWorld", request: Request, value: bytes) -> None:
    """What the ledger gives for a record is that record's answer."""
    if value.split()[0] != b"%d" % request.content:
        broken(world, "own_answer", f"{request} with content {request.content} got {value!r}")


def one_event_set(world: "DeliveryWorld", record: EventRecord) -> None:
    """A sink that looks up only what says that it may be there already inserts no row twice."""
    writer = record.generation, record.incarnation
    looks = record.redelivered or writer < world.sink_high.get(record.partition, (0, 0))
    for request, event in record.lines:
        if event in world.rows_of[request] and not looks:
            broken(world, "one_event_set", f"{event} of {request} comes again from {writer}, and does not say so")


def commits_never_pass(world: "DeliveryWorld", p: int, offset: int, note: CommitNote) -> None:
    """Below a commit everything is finished, and no answer to what is above stands before its note's place."""
    for request in world.logs.requests[p][:offset]:
        if not world.is_finished(request):
            broken(world, "commits_never_pass", f"{offset} is committed, {request} is not finished")
    for result in world.logs.results[p][: note.results_from]:
        answered = result.request
        if answered is not None and answered.life == world.logs.life and answered.offset >= offset:
            broken(world, "commits_never_pass", f"{answered} is answered at {result.offset}, before {note}")


def bounded(world: "DeliveryWorld", process: WorkerProcess, lane: Lane, request: Request) -> None:
    """What a lane holds has its limits."""
    committed = world.coordinator.commits.get(lane.partition, (0, ""))[0]
    owns = world.coordinator.owns(process, lane.partition, lane.generation)
    found = {
        "offsets above the commit": (request.offset - committed if owns else 0, limits.WINDOW_OFFSETS - 1),
        "running offsets": (len(lane.offsets), limits.WINDOW_OFFSETS),
        "answers in the ledger": (len(lane.ledger), lane.ledger.until),
        "rounds": (len(lane._rounds), limits._ROUNDS_MAX),
    }
    for what, (count, most) in found.items():
        if count > most:
            broken(world, "bounded", f"{count} {what}, at most {most}")


def bounded_note(world: "DeliveryWorld", text: str) -> None:
    """A note fits into a commit's metadata."""
    if len(text) > NOTE_BYTES_MAX:
        broken(world, "bounded", f"a note of {len(text)} bytes, at most {NOTE_BYTES_MAX}")


def alone_and_named(world: "DeliveryWorld", process: WorkerProcess, lane: Lane, request: Request) -> None:
    """A suspect runs with nothing beside it, and Kafka has its name before."""
    if not lane.is_isolated(request.offset):
        return
    if any(list(other.offsets._running) not in ([], [request.offset]) for other in process.open_lanes()):
        broken(world, "alone_and_named", f"{request} runs beside others")
    note = world.note_of(lane.partition)
    if world.coordinator.owns(process, lane.partition, lane.generation) and (
        note is None or note.suspect != request.offset
    ):
        broken(world, "alone_and_named", f"{request} runs and is not named: {note}")


def no_innocent_condemned(world: "DeliveryWorld", lane: Lane, request: Request) -> None:
    """Only a record that was alone in start after start, none of which ended in order, is given up.

    Where nothing but culprits ends workers, these are culprits themselves.
    """
    starts = len(request.named_in - {lane})
    if starts < limits.SUSPECT_STARTS_MAX:
        broken(world, "no_innocent_condemned", f"{request} is condemned after {starts} starts with it alone")
    if request.kind != "poison" and not world.disturbances:
        broken(world, "no_innocent_condemned", f"{request} is condemned, and nobody else can have ended the workers")


def culprits_found(world: "DeliveryWorld") -> None:
    """A record that ends its worker whenever it runs does so a bounded number of times.

    Three starts until records run alone, three alone. A start that gets further on its way to it lets three more
    follow, another such record keeps its workers from getting further, what ended or paused workers besides may cost
    one each, and who overwrites the notes by hand lets it all begin again.
    """
    culprits = [request for request in world.requests if request.kind == "poison"]
    for request in culprits:
        starts = limits.STARTS_MAX * (1 + request.offset) + limits.SUSPECT_STARTS_MAX
        most = starts * len(culprits) * (1 + world.notes_lost) + world.disturbances
        if request.runs > most:
            broken(world, "culprits_found", f"{request} ended {request.runs} workers, at most {most}")


def nothing_lost(world: "DeliveryWorld") -> None:
    """Every record has a result, or a duplicate's verdict, or a dead letter, and not two of them."""
    for request in world.requests:
        if request.life != world.logs.life:
            continue
        answered, refused = bool(world.results_of[request]), "duplicate" in world.rows_of[request]
        letters = world.letters_of[request]
        if not (answered or refused or letters):
            broken(world, "nothing_lost", f"{request} has no answer, no verdict, no dead letter")
        if answered and refused and world.verdicts_are_certain(request):
            broken(world, "nothing_lost", f"{request} has an answer, and was refused as a duplicate")
        if refused and not world.first_answered_with(request) and world.verdicts_are_certain(request):
            broken(world, "nothing_lost", f"{request} was refused as a duplicate of nobody")
        if answered and "DUPLICATE_ID" in letters and world.verdicts_are_certain(request):
            broken(world, "nothing_lost", f"{request} has an answer, and was buried: {letters}")


def whole_event_sets(world: "DeliveryWorld") -> None:
    """What ClickHouse has of a record is what its answer, the first in the log, says: no line more or less."""
    for request in world.requests:
        results, rows = world.results_of[request], world.rows_of[request]
        if request.life != world.logs.life or len(results) > 1 or not world.verdicts_are_certain(request):
            continue
        refused = {"duplicate"} & rows
        wanted = set(events_of(results[0].value)) if results else refused
        if rows != wanted:
            broken(world, "whole_event_sets", f"{request} has the rows {sorted(rows)}, expected {sorted(wanted)}")


def no_second_use_of_ids(world: "DeliveryWorld") -> None:
    """An id that was used before, within the window, gets no result of its own."""
    first_with: dict[tuple[int, str, str], Request] = {}
    for request in world.requests:
        if request.own_id is None or request.life != world.logs.life:
            continue
        first = first_with.setdefault((request.partition, request.own_id, request.tenant), request)
        certain = world.verdicts_are_certain(request) and world.verdicts_are_certain(first)
        if first is not request and world.results_of[request] and certain:
            broken(world, "no_second_use_of_ids", f"{request} has the id of {first}, and an answer")


AT_THE_END = (nothing_lost, whole_event_sets, no_second_use_of_ids, culprits_found)
