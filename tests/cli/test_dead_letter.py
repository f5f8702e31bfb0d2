"""`dead-letter` from outside: help, usage, and how letters are shown. No servers."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli.dead_letter import letter_fields, letter_text, outcome_fields, outcome_text
from pipeline.cli.main import app
from pipeline.client.dead_letters import Place
from pipeline.client.retries import NotRetryable, Retried, RetryRecord
from tests.client.dead_letter_records import letter

SENT = RetryRecord("inference.requests", 2, b"k", b"{}", (), "old", "fresh")


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No stack runs here and nothing is configured."""
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command line."""
    result = CliRunner().invoke(app, ("dead-letter", *arguments))
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("command", [(), ("list",), ("retry",)])
def test_every_help_has_an_example(command: tuple[str, ...]) -> None:
    """Each command's help ends with a line to copy."""
    code, out, _ = run(*command, "--help")
    assert code == 0
    assert "pipeline dead-letter" in out.split("Example: ")[1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("retry",), "say which"),
        (("retry", "--yes", "--dry-run"), "say which"),
        (("retry", "0:5", "--all"), "say one of them"),
        (("retry", "0-5"), "partition:offset"),
        (("retry", "0:-5"), "partition:offset"),
        (("retry", "--all", "--header", "name"), "NAME=VALUE"),
        (("list", "--since", "yesterday"), "--since yesterday"),
        (("list", "--limit", "0"), "--limit"),
        (("list", "--partition", "-1"), "--partition"),
    ],
)
def test_wrong_usage_exits_with_two(arguments: tuple[str, ...], sentence: str) -> None:
    """What cannot be understood, and a retry of nothing in particular, is told apart from what failed."""
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert sentence in " ".join(err.split())


@pytest.mark.parametrize("arguments", [("list",), ("retry", "0:5"), ("retry", "--all")])
def test_unreachable_kafka_is_one_line(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """A Kafka that does not answer is named by its address."""
    monkeypatch.setenv("PIPELINE_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    assert run(*arguments) == (1, "", "pipeline: Kafka at 127.0.0.1:1 does not answer\n")


def test_letter_is_shown_with_all_that_finds_it() -> None:
    """Time, place, reason, source, key and size on the first line, then the error, then how the value starts."""
    shown = letter_text(letter(b"no json", key=b"key")).splitlines()
    assert shown == [
        "2027-01-15T08:00:00.123Z  1:5  NOT_JSON  from inference.requests-2@17  key key  7 bytes",
        "    as the test says",
        "    no json",
    ]


def test_letter_cannot_write_to_the_terminal() -> None:
    """What producers wrote is escaped wherever it is shown: escape sequences, line ends, bytes that are no text."""
    evil = "\x1b[2J\n\r\x07\u202e"
    buried = letter(
        evil.encode() + b"\xff\x00", key=evil.encode(), reason=f"R{evil}", error=f"E{evil}", topic=f"T{evil}"
    )
    shown = letter_text(buried)
    assert all(line.isprintable() for line in shown.split("\n"))
    assert len(shown.split("\n")) == 3
    assert r"\x1b[2J\n\r\x07\u202e\xff\x00" in shown
    refused = Retried(buried.place, None, None, NotRetryable(evil))
    assert outcome_text(refused).isprintable()


def test_long_values_are_cut() -> None:
    """A letter of 25 MB is shown by its start."""
    line = letter_text(letter("é".encode() * 10_000)).splitlines()[2].strip()
    assert line == "é" * 120 + "..."


def test_letter_without_anything_is_shown() -> None:
    """A tombstone of an unknown place with an unknown reason is still a letter."""
    assert letter_text(letter(None, key=None, reason="LATER", topic="")).splitlines() == [
        "2027-01-15T08:00:00.123Z  1:5  LATER  from an unknown place  no key  no value",
        "    as the test says",
    ]


def test_letter_fields_are_for_programs() -> None:
    """The names and types that a program reads."""
    assert letter_fields(letter(b'{"id":"r"}', key=None)) == {
        "place": "1:5",
        "time": "2027-01-15T08:00:00.123Z",
        "reason": "NOT_JSON",
        "error": "as the test says",
        "source": {"topic": "inference.requests", "partition": 2, "offset": 17},
        "id": "r",
        "key": None,
        "size": 10,
        "value": '{"id":"r"}',
    }


def test_outcomes_say_what_became_of_each_letter() -> None:
    """Old id, new id and place; or why not, and what would change that."""
    sent = Retried(Place(0, 5), SENT, 40, None)
    assert outcome_text(sent) == "0:5: old -> fresh (inference.requests-2@40)"
    assert outcome_fields(sent, sent=True) == {
        "place": "0:5", "retry_of": "old", "id": "fresh", "topic": "inference.requests", "partition": 2, "offset": 40,
    }  # fmt: skip
    refused = Retried(Place(0, 6), None, None, NotRetryable("no", can_be_forced=True))
    assert outcome_text(refused).startswith("0:6: not sent: no; --force")
    assert outcome_fields(refused, sent=True) == {"place": "0:6", "refusal": "no"}


def test_dry_run_makes_up_no_id() -> None:
    """The id of a request that is not sent is nobody's."""
    assert outcome_fields(Retried(Place(0, 5), SENT, None, None), sent=False)["id"] is None
