"""What people and programs are shown: status, results, the demo's pictures."""

import os
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from pipeline.adapters.status_http import StatusServer
from pipeline.cli.context import child_environment, with_endpoints
from pipeline.cli.demo.requests import SENTENCES, DemoRequest, digit_requests, sentence_requests
from pipeline.cli.demo.sending import Answered
from pipeline.cli.demo.summary import draw_digit, nearest_pairs
from pipeline.cli.demo.verification import LogFigures, differences
from pipeline.cli.main import error_lines
from pipeline.cli.probes import Probed, probe_all
from pipeline.cli.results_view import Wanted
from pipeline.cli.status import _print_table, as_document
from pipeline.config import Settings
from pipeline.errors import EventStoreError
from pipeline.stack import Endpoints, StackError, StackState, TritonEndpoint
from pipeline.stack.state import ProcessId
from schemas.result import decode_result
from tests.client.scripted_topics import result_record


def test_unset_addresses_come_from_the_stack() -> None:
    """A configured address stays; the others are the running stack's."""
    endpoints = Endpoints(
        kafka="127.0.0.1:9092", redis="redis://127.0.0.1:6379/0", clickhouse="http://127.0.0.1:8123",
        triton=(TritonEndpoint("triton-0", "127.0.0.1:8001", "127.0.0.1:8000", "127.0.0.1:8002"),),
    )  # fmt: skip
    settings = Settings(kafka={"bootstrap_servers": "kafka:9092"}, redis={"url": ""})
    full = with_endpoints(settings, endpoints)
    assert (full.kafka.bootstrap_servers, full.redis.url) == ("kafka:9092", "")
    assert (full.clickhouse.url, full.triton.urls) == ("http://127.0.0.1:8123", ("127.0.0.1:8001",))


def test_children_read_the_same_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a child process loads from its environment is what its parent worked with."""
    settings = Settings(
        kafka={"bootstrap_servers": "kafka:9092"}, triton={"urls": ("a:1", "b:2")}, clickhouse={"url": "http://c:8123"}
    )
    for name, text in child_environment(settings).items():
        monkeypatch.setenv(name, text)
    child = Settings()
    assert (child.kafka, child.triton, child.clickhouse) == (settings.kafka, settings.triton, settings.clickhouse)
    assert child.data_dir == settings.data_dir.absolute()


def test_status_has_null_for_what_is_down() -> None:
    """Ready parts give their facts, lists where there may be many; what is not ready is left out."""
    probed = [
        Probed("kafka", "Kafka", "k:1", {"bootstrap_servers": "k:1"}),
        Probed("clickhouse", "ClickHouse", "c", {"url": "c"}, "no answer"),
        Probed("triton", "triton-0", "t:1", {"name": "triton-0"}),
        Probed("triton", "triton-1", "t:2", {"name": "triton-1"}, "no answer"),
        Probed("workers", "worker-0", "w", {"pid": 1, "partitions": [0, 1]}),
    ]
    document = as_document(Settings(), probed)
    assert document["kafka"] == {"bootstrap_servers": "k:1"}
    assert document["clickhouse"] is None
    assert document["triton"] == [{"name": "triton-0"}]
    assert document["workers"] == [{"pid": 1, "partitions": [0, 1]}]
    assert document["sink"] is document["watcher"] is document["gateway"] is None


def test_status_shows_which_instance_gets_what(capsys: pytest.CaptureFixture[str]) -> None:
    """Each worker's view of each instance: its calls and latency, and whether it is left out or starting."""
    seen = {"name": "triton-0", "calls": 12, "unanswered": 3, "in_flight": 1, "latency_s": 0.0042, "share": 0.1}
    instances = [{**seen, "ejected_s": 0.0}, {**seen, "name": "triton-1", "ejected_s": 2.5}]
    facts = {"pid": 1, "partitions": [0], "fleet": {"instances": instances, "models": []}}
    _print_table(Settings(), [Probed("workers", "worker-0", "w", facts)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[-2:]] == [
        ["worker-0", "triton-0", "12", "3", "1", "4.2", "ms", "10%", "of", "its", "part"],
        ["worker-0", "triton-1", "12", "3", "1", "4.2", "ms", "nothing", "for", "2.5", "s"],
    ]


async def test_stack_that_still_starts_is_not_ready(tmp_path: Path) -> None:
    """Between two parts all that is listed is ready and more is to come: only what was started as a whole is ready."""
    async with StatusServer(0, CollectorRegistry(), dict, lambda: {"pid": 1}) as worker:
        own = ProcessId(os.getpid(), 0)
        listed = Endpoints(other={"worker-0": f"http://127.0.0.1:{worker.port}"})
        found = [
            await probe_all(Settings(data_dir=tmp_path), StackState("run", "boot", own, listed, started=started))
            for started in (False, True)
        ]
    assert [[part.name for part in parts if not part.problem] for parts in found] == [["worker-0"], ["worker-0"]]
    assert [[part.name for part in parts if part.problem] for parts in found] == [["stack"], []]


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (EventStoreError("Code: 62.\n  Syntax error", retryable=False), ["Code: 62. Syntax error"]),
        (
            StackError("kafka cannot start: a\ntriton cannot start: b"),
            ["kafka cannot start: a", "triton cannot start: b"],
        ),
        (EventStoreError("", retryable=True), ["EventStoreError"]),
    ],
)
def test_errors_are_one_line_each(error: Exception, lines: list[str]) -> None:
    """An error's text is one line; several servers that cannot start have one each."""
    assert error_lines(error) == lines


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [
        (Wanted(), True),
        (Wanted(model_name="digits", status="succeeded", request_id="r"), True),
        (Wanted(model_name="sentences"), False),
        (Wanted(status="failed"), False),
        (Wanted(request_id="other"), False),
    ],
)
def test_results_are_filtered(wanted: Wanted, shown: bool) -> None:
    """A result is shown when it is of the model, the state and the id asked for."""
    record = result_record("r", 0)
    assert (wanted.may_want(record) and wanted.wants(decode_result(record.value, record.headers))) is shown


def test_headers_spare_the_parsing() -> None:
    """A result that its headers tell apart is not parsed."""
    assert not Wanted(request_id="other").may_want(result_record("r", 0)._replace(value=b"broken"))


def test_demo_repeats_a_third() -> None:
    """300 digits and 60 sentences, a third of each asked before, each with its label or text."""
    digits, sentences = digit_requests(), sentence_requests()
    assert (len(digits), sum(one.repeated for one in digits)) == (300, 100)
    assert (len(sentences), sum(one.repeated for one in sentences)) == (60, 20)
    assert {one.subject for one in sentences} == set(range(len(SENTENCES)))
    seen: set[int] = set()
    for one in digits:
        assert one.repeated is (one.subject in seen)
        seen.add(one.subject)


def test_digits_are_drawn_two_characters_wide() -> None:
    """Eight lines of sixteen characters, from white to black."""
    lines = draw_digit(np.array([0, 16] * 32, np.float32))
    assert lines == ["  ██" * 4] * 8


def test_nearest_pairs_are_told_once() -> None:
    """Each pair of neighbours appears once, the most alike first."""
    vectors = {0: [1.0, 0.0], 1: [0.8, 0.6], 2: [0.0, 1.0]}
    answered = []
    for subject, vector in vectors.items():
        output = {"name": "embedding", "datatype": "FP32", "shape": [1, 2], "data": vector}
        record = result_record("r", 0, outputs=[output])
        request = DemoRequest("sentences", {}, subject)
        answered.append(Answered(request, decode_result(record.value, record.headers)))
    assert [(round(value, 1), first, second) for value, first, second in nearest_pairs(answered)] == [
        (0.8, 0, 1),
        (0.6, 1, 2),
    ]


def test_demo_finds_a_wrong_answer() -> None:
    """Another label, another shape or a float off by more than 1e-5 is a difference; less is none."""

    def found(data: list[float], shape: list[int]) -> list[str]:
        output = {"name": "p", "datatype": "FP32", "shape": shape, "data": data}
        record = result_record("r", 0, outputs=[output])
        answered = Answered(DemoRequest("digits", {}, 0), decode_result(record.value, record.headers))
        return differences({"p": np.array([[0.25, 0.5]], np.float32)}, answered)

    assert found([0.250005, 0.5], [1, 2]) == []
    assert len(found([0.25002, 0.5], [1, 2])) == 1
    assert len(found([0.25, 0.5], [2])) == 1


@pytest.mark.parametrize(
    ("rows", "ids", "problem", "complete"),
    [(3, 3, "", True), (4, 3, "", False), (2, 2, "", False), (3, 3, "down", False)],
)
def test_demo_wants_each_row_once(rows: int, ids: int, problem: str, complete: bool) -> None:
    """The log is complete with one row for each request, none missing and none twice."""
    assert LogFigures("t", 3, rows, ids, "", problem=problem).complete is complete
