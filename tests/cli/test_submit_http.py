"""`pipeline submit --url` from the command line to a gateway on a real socket."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.client.loop_thread import LoopThread
from schemas.decoded import DecodedRequest
from schemas.request import decode_request
from tests.client.scripted_gateway import ScriptedGateway, says, success
from tests.client.scripted_topics import failed_record

WORDS = ("one", "two", "three", "four", "five")


async def nothing() -> None:
    """The last thing there is to do."""


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    """An event loop beside the command's own."""
    thread = LoopThread()
    yield thread
    thread.stop(nothing)


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thread: LoopThread) -> Iterator[ScriptedGateway]:
    """A gateway in a thread of its own; nothing is configured and no stack runs here."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text("".join(f"{word}\n" for word in WORDS))

    async def start() -> ScriptedGateway:
        gateway = ScriptedGateway(answering)
        await gateway.start()
        return gateway

    def answering(request: DecodedRequest) -> Any:
        fails = request.inputs[0].value() == ["three"] and request.model_name == "picky"
        return failed_record(str(request.id), 0, "MODEL_ERROR") if fails else success(request)

    gateway = thread.start(start()).result()
    yield gateway
    thread.start(gateway.stop()).result()


def submit(gateway: ScriptedGateway, *arguments: str, model: str = "m") -> tuple[int, dict[str, Any], str]:
    """Exit code, summary and standard error of a submission of the words, one at a time."""
    options = ("--lines", "--model", model, "--input", "text", "--json", "--in-flight", "1", "--url", gateway.url)
    result = CliRunner().invoke(app, ("submit", "words.txt", *options, *arguments))
    return result.exit_code, json.loads(result.stdout or "{}"), result.stderr


def answered(path: str = "answers.jsonl") -> list[str]:
    """The ids in the file of answers."""
    return [json.loads(line)["id"] for line in Path(path).read_text().splitlines()]


def test_file_is_answered_over_http(gateway: ScriptedGateway) -> None:
    """Every line is a request with the key, the callback and the switches, and its answer is in the file, in order."""
    code, summary, _ = submit(
        gateway, "--output", "answers.jsonl", "--callback", "https://a.b/c", "--no-cache", "--api-key", "secret"
    )
    assert (code, summary["sent"], summary["succeeded"], summary["cache"]) == (0, 5, 5, {"miss": 5})
    requests = [decode_request(body) for body, _ in gateway.posts]
    assert [str(request.id) for request in requests] == answered()
    assert {(request.enable_cache, request.callback and request.callback.url) for request in requests} == {
        (False, "https://a.b/c")
    }
    assert {headers["Authorization"] for _, headers in gateway.posts} == {"Bearer secret"}


def test_run_that_was_cut_short_goes_on(gateway: ScriptedGateway) -> None:
    """A second run with the same output skips what has its answer and sends the rest under the ids it had."""
    let_through = [lambda request, accept: accept()] * 2
    gateway.faults.extend([*let_through, says(401, "UNAUTHORIZED")])
    code, _, err = submit(gateway, "--output", "answers.jsonl")
    assert (code, len(answered())) == (1, 2)
    assert "HTTP 401 UNAUTHORIZED" in err
    refused_id = decode_request(gateway.posts[2][0]).id

    code, summary, _ = submit(gateway, "--output", "answers.jsonl")
    assert (code, summary["sent"], summary["skipped"]) == (0, 3, 2)
    assert answered() == gateway.inferences
    assert answered()[2] == refused_id
    assert len(set(answered())) == 5

    code, summary, _ = submit(gateway, "--output", "answers.jsonl")
    assert (code, summary["sent"], summary["skipped"]) == (0, 0, 5)


def test_other_switches_are_other_requests(gateway: ScriptedGateway) -> None:
    """A run into the same file that asks something else is not skipped."""
    submit(gateway, "--output", "answers.jsonl")
    _, summary, _ = submit(gateway, "--output", "answers.jsonl", "--no-cache")
    assert (summary["sent"], summary["skipped"]) == (5, 0)
    assert len(set(answered())) == 10


def test_failures_and_refusals_are_counted_by_code(gateway: ScriptedGateway) -> None:
    """An answer that failed and a request the gateway refused are told by code, and the others go on."""
    gateway.faults.append(says(400, "INVALID_INPUT"))
    code, summary, err = submit(gateway, model="picky")
    assert (code, summary["succeeded"], summary["failed"], summary["lost"]) == (1, 3, 2, 0)
    assert summary["errors"] == {"INVALID_INPUT": 1, "MODEL_ERROR": 1}
    assert "INVALID_INPUT: as the script says" in err


def test_receipts_say_where_the_answer_is(gateway: ScriptedGateway) -> None:
    """Without waiting each line gives its receipt; the same output later has the answers besides."""
    code, summary, _ = submit(gateway, "--no-wait", "--output", "answers.jsonl")
    receipts = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert (code, summary["sent"], summary["succeeded"]) == (0, 5, None)
    assert [one["location"] for one in receipts] == [f"/v1/inferences/{one['id']}" for one in receipts]
    _, summary, _ = submit(gateway, "--output", "answers.jsonl")
    assert (summary["sent"], len(gateway.inferences)) == (5, 5)


def test_absent_gateway_is_one_line(gateway: ScriptedGateway, thread: LoopThread) -> None:
    """Where nothing listens the command ends with one line that names the address."""
    thread.start(gateway.stop()).result()
    code, _, err = submit(gateway)
    assert code == 1
    assert err.startswith(f"pipeline: {gateway.url} does not answer")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("cat.png",), "pictures need --model"),
        (("one.jsonl", "two.jsonl"), "2 files were given, and none is a picture"),
        (("cat.png", "--model", "m", "--scale", "half"), "--scale is 'half': a number was expected"),
        (("cat.png", "--model", "m", "--scale", "1/0"), "--scale is '1/0'"),
        (("cat.png", "--model", "m", "--scale", "0"), "--scale is '0': 0 leaves nothing of a picture"),
        (("cat.png", "--model", "m", "--std", "1,0,1"), "--std is '1,0,1': 0 leaves nothing"),
        (("cat.png", "--model", "m", "--mean", "1,,2"), "--mean is ''"),
        (("cat.png", "--model", "m", "--size", "9"), "--size is '9': HEIGHTxWIDTH"),
        (("cat.png", "--model", "m", "--size", "0x9"), "--size is '0x9': HEIGHTxWIDTH"),
        (("cat.png", "--model", "m", "--layout", "CHW"), "--layout is 'CHW': NCHW or NHWC was expected"),
        (("x.jsonl", "--invert"), "are for pictures"),
        (("x.csv",), "need --model"),
        (("x.csv", "--model", "m", "--datatype", "FP99"), "--datatype is 'FP99'"),
    ],
)
def test_wrong_usage_says_what_is_wanted(arguments: tuple[str, ...], sentence: str) -> None:
    """What cannot be read is told before anything is sent."""
    result = CliRunner().invoke(app, ("submit", *arguments))
    assert result.exit_code == 2
    # The message is drawn in a box, broken at any space.
    assert sentence in " ".join(result.stderr.replace("│", " ").split())


def test_wrong_address_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that is none is told with its value and what was expected."""
    monkeypatch.chdir(tmp_path)
    Path("x.jsonl").touch()
    result = CliRunner().invoke(app, ("submit", "x.jsonl", "--url", "127.0.0.1:8080"))
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "url is '127.0.0.1:8080'" in result.stderr
