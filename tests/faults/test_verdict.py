"""The verdict finds what is planted, and nothing where everything is as it must be."""

from dataclasses import replace

import pytest

from tests.faults.account import Account, Answer, Asked, DeadLetter, Expected, Kind, LogRows, Place, Window
from tests.faults.verdict import Verdict, judge

TOPIC = "inference.requests"
HIT = "cache.hit,request.received,result.published"
PAUSE = Window("pause worker", "worker-0", 1000.0, 1012.0, 1.0, 2.0)


class World:
    """A small run in which everything held: six requests of six kinds, to be spoiled."""

    def __init__(self) -> None:
        self.account = Account(TOPIC)
        self.rows = LogRows()
        self.windows: list[Window] = []
        self.named = self.ask(0, 0, Expected(Kind.ANSWERED, "named", b"k", "2", 7))
        self.unnamed = self.ask(1, 0, Expected(Kind.ANSWERED, None, None, "2", 3))
        self.invalid = self.ask(0, 1, Expected(Kind.INVALID, "invalid", b"k", error="INVALID_INPUT"))
        self.undecodable = self.ask(1, 1, Expected(Kind.UNDECODABLE, None, b"k"))
        self.repeated = self.ask(0, 2, Expected(Kind.REPEATED, "named", b"k"))
        self.conflicting = self.ask(0, 3, Expected(Kind.CONFLICTING, "named", b"k"))
        self.answer(self.named)
        self.answer(self.unnamed)
        self.answer(self.invalid, status="failed", error="INVALID_INPUT", cache_status="")
        self.account.letters += [
            DeadLetter(self.undecodable.place, "NOT_JSON"),
            DeadLetter(self.conflicting.place, "DUPLICATE_ID"),
        ]
        self.log("named", "succeeded", f"{HIT},request.duplicate,request.duplicate")
        self.log(f"{TOPIC}:1:0", "succeeded", HIT)
        self.log("invalid", "failed", "inference.failed,request.received,result.published")
        self.rows.minutes = self.rows.minutes_of_base = frozenset({"12:00\tdigits\t2\tsucceeded\thit\t2"})

    def ask(self, partition: int, offset: int, expected: Expected) -> Asked:
        """Kafka acknowledges a request."""
        asked = Asked(Place(partition, offset), 1_000_000, 1000.0, expected)
        self.account.acknowledge(asked)
        return asked

    def answer(self, asked: Asked, **differences: object) -> None:
        """A result of it is read, right but for the differences."""
        expected = asked.expected
        right = Answer(
            partition=asked.place.partition,
            offset=len(self.account.answers),
            request_offset=asked.place.offset,
            request_timestamp=asked.timestamp_ms,
            answer_id=asked.answer_id(TOPIC),
            ce_id=asked.answer_id(TOPIC),
            key=expected.key,
            group="inference-worker",
            status="succeeded",
            error="",
            version=expected.version,
            label=expected.label,
            cache_status="hit",
            total_ms=2.0,
            created_ms=1_001_000,
            read_at=1001.0,
        )
        self.account.answer(replace(right, **differences))  # type: ignore[arg-type]

    def log(self, request_id: str, status: str, events: str) -> None:
        """ClickHouse has its rows."""
        self.rows.statuses[request_id] = status
        self.rows.event_types[request_id] = events
        self.rows.requests += 1
        self.rows.request_ids += 1
        self.rows.events += events.count(",") + 1
        self.rows.event_ids += events.count(",") + 1

    def spoil_answer(self, asked: Asked, **differences: object) -> None:
        """Changes the answer that is there."""
        answers = self.account.answers
        index = next(number for number, answer in enumerate(answers) if answer.place == asked.place)
        answers[index] = replace(answers[index], **differences)  # type: ignore[arg-type]

    @property
    def verdict(self) -> Verdict:
        """What is found."""
        return judge(self.account, self.rows, self.windows)


@pytest.fixture
def world() -> World:
    """Everything held."""
    return World()


def test_nothing_is_found_where_everything_holds(world: World) -> None:
    """A run without a fault of the product has no finding, and its counts."""
    verdict = world.verdict
    assert verdict.holds, verdict.examples
    assert verdict.counts["requests acknowledged"] == 6
    assert verdict.counts["answered"] == 3


def test_request_without_result_is_lost(world: World) -> None:
    """An acknowledged request must have its result."""
    world.ask(2, 0, Expected(Kind.ANSWERED, "lost", None, "2", 1))
    assert world.verdict.broken == {"lost": 1}


@pytest.mark.parametrize("reason", ["NOT_JSON", "DUPLICATE_ID"])
def test_missing_dead_letter_is_a_loss(world: World, reason: str) -> None:
    """What is answered by a dead letter must have one."""
    world.account.letters[:] = [letter for letter in world.account.letters if letter.reason != reason]
    assert world.verdict.broken == {"lost": 1}


@pytest.mark.parametrize(
    "differences",
    [
        {"label": 8},
        {"version": "1"},
        {"status": "failed"},
        {"answer_id": "other"},
        {"ce_id": "other"},
        {"key": None},
        {"request_timestamp": 5},
        {"group": ""},
    ],
)
def test_wrong_answer_is_found(world: World, differences: dict[str, object]) -> None:
    """Label, version, status, ids, key and headers are each looked at."""
    world.spoil_answer(world.named, **differences)
    assert world.verdict.broken["wrong"] >= 1


def test_answer_in_another_partition_is_found(world: World) -> None:
    """It answers nothing that was asked there, and its own request has none."""
    world.spoil_answer(world.named, partition=3)
    assert {"lost", "unasked"} <= set(world.verdict.broken)


def test_wrong_error_code_is_found(world: World) -> None:
    """A request that must fail fails for its own reason."""
    world.spoil_answer(world.invalid, error="INTERNAL")
    assert world.verdict.broken == {"wrong": 1}


def test_unavailable_is_excused_after_its_time_in_a_fault(world: World) -> None:
    """INFERENCE_UNAVAILABLE is right only after 30 s, and only while something was broken."""
    failed = {"status": "failed", "error": "INFERENCE_UNAVAILABLE", "label": -1, "version": ""}
    events = "cache.miss,inference.failed,request.received,result.published"
    world.rows.statuses[f"{TOPIC}:1:0"] = "failed"
    world.rows.event_types[f"{TOPIC}:1:0"] = events
    world.spoil_answer(world.unnamed, **failed, cache_status="miss", total_ms=30_500.0)
    assert world.verdict.broken.keys() == {"wrong"}
    world.windows.append(Window("kill stack", "all servers", 970.0, 1000.0, 5.0, 5.0))
    assert world.verdict.holds
    world.spoil_answer(world.unnamed, total_ms=900.0)
    assert world.verdict.broken.keys() == {"wrong"}


def test_second_answer_is_excused_by_a_pause_alone(world: World) -> None:
    """A paused worker may answer what another has answered; anything else answers once."""
    world.answer(world.named)
    assert world.verdict.broken == {"second answer": 1}
    world.windows.append(Window("kill worker", "worker-0", 1000.0, 1000.0, 1.0, 1.0))
    assert world.verdict.broken == {"second answer": 1}
    world.windows.append(PAUSE)
    assert world.verdict.holds
    assert world.verdict.counts["second answers after a pause"] == 1


def test_second_answer_long_after_a_pause_is_found(world: World) -> None:
    """A pause does not excuse what comes half a minute after its end."""
    world.windows.append(PAUSE)
    world.answer(world.named, created_ms=1_042_000)
    assert world.verdict.broken == {"second answer": 1}


def test_answered_repetition_is_found(world: World) -> None:
    """The same id and content again has no second result."""
    world.answer(world.repeated)
    assert "duplicate answered" in world.verdict.broken


def test_answered_undecodable_record_is_found(world: World) -> None:
    """What is no JSON object has no result."""
    world.answer(world.undecodable)
    assert "wrong" in world.verdict.broken


def test_missing_row_is_found(world: World) -> None:
    """Every answer has its row."""
    del world.rows.statuses["named"]
    assert world.verdict.broken == {"lost row": 1}


@pytest.mark.parametrize("table", ["requests", "events"])
def test_double_row_is_found(world: World, table: str) -> None:
    """As many rows as ids."""
    setattr(world.rows, table, getattr(world.rows, table) + 1)
    assert world.verdict.broken == {"double row": 1}


def test_row_with_another_status_is_found(world: World) -> None:
    """The row says what the answer says."""
    world.rows.statuses["named"] = "failed"
    assert world.verdict.broken == {"wrong row": 1}


def test_row_of_nothing_is_found(world: World) -> None:
    """No row without an answer."""
    world.log("ghost", "succeeded", HIT)
    assert world.verdict.broken == {"unasked row": 1}


def test_view_that_differs_from_its_base_is_found(world: World) -> None:
    """A minute counted twice shows on both sides."""
    world.rows.minutes = frozenset({"12:00\tdigits\t2\tsucceeded\thit\t4"})
    assert world.verdict.broken == {"wrong minute": 2}


@pytest.mark.parametrize(
    "events",
    ["cache.hit,request.received", f"{HIT},inference.started", "cache.hit,cache.hit,request.received,result.published"],
)
def test_wrong_events_are_found(world: World, events: str) -> None:
    """Neither less, nor more, nor twice."""
    world.rows.event_types[f"{TOPIC}:1:0"] = events
    assert world.verdict.broken == {"wrong events": 1}


def test_missing_duplicate_event_is_found(world: World) -> None:
    """An id that is sent twice leaves `request.duplicate`."""
    world.rows.event_types["named"] = HIT
    assert world.verdict.broken == {"wrong events": 1}


def test_examples_are_few_and_counts_are_whole() -> None:
    """A run that lost thousands tells of twenty."""
    world = World()
    for offset in range(100, 150):
        world.ask(2, offset, Expected(Kind.ANSWERED, None, None, "2", 1))
    assert world.verdict.broken == {"lost": 50}
    assert len(world.verdict.examples) == 20
