"""What a worker reads before it takes anything, as pipeline/worker/lane_opening.py does, on the simulation's logs."""

from pipeline.core.commit_note import read_note
from pipeline.core.duplicates import First, duplicate_key
from pipeline.core.exchange import is_place
from pipeline.core.lane import Lane, LaneStart
from pipeline.core.ledger import Answered, read_answered
from tests.simulation.delivery_broker import GROUP, TOPIC, Logs

# How far back results are looked for: lane_opening._RESTORE_MS.
RESTORE_MS = 70 * 60 * 1000


def start_of(logs: Logs, p: int, commit: tuple[int, str] | None) -> LaneStart:
    """As LaneOpener._starts and _place."""
    end, results_end = len(logs.requests[p]), len(logs.results[p])
    offset, note = 0, None
    if commit is not None and commit[0] <= end:
        offset, note = commit[0], read_note(commit[1])
    if note is None:
        results_from = _results_since(logs, p, offset)
    else:
        results_from = note.results_from if note.results_from <= results_end else 0
    return LaneStart(offset, note, end, results_from, results_end)


def _results_since(logs: Logs, p: int, offset: int) -> int:
    requests, results = logs.requests[p], logs.results[p]
    if offset >= len(requests):
        return len(results)
    since = requests[offset].timestamp_ms - RESTORE_MS
    return next((place for place, result in enumerate(results) if result.timestamp_ms >= since), len(results))


def read_results(logs: Logs, lane: Lane, start: LaneStart) -> None:
    """As LaneOpener._read_results."""
    for result in logs.results[lane.partition][start.results_from : start.results_end]:
        answered = read_answered(result.headers, result.offset, result.value)
        if answered is not None:
            lane.ledger.note(answered)
            _note_id(lane, answered)


def restore_duplicates(logs: Logs, lane: Lane, start: LaneStart) -> None:
    """As LaneOpener._restore_duplicates."""
    since = logs.now_ms() - RESTORE_MS
    for result in logs.results[lane.partition][: start.results_from]:
        answered = read_answered(result.headers, result.offset, None)
        if answered is not None and result.timestamp_ms >= since:
            _note_id(lane, answered)


def _note_id(lane: Lane, answered: Answered) -> None:
    if answered.group == GROUP and not is_place(answered.request_id, TOPIC):
        key = duplicate_key(answered.request_id, answered.tenant)
        lane.duplicates.add(key, First(answered.request_offset, answered.request_timestamp_ms, answered.digest))
