"""The program from outside: help, exit codes, errors in one line. No servers."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli.main import app

COMMANDS = (
    "demo", "up", "status", "worker", "sink", "submit", "results", "sql", "topics", "topics create", "migrate",
    "models", "models check", "models register", "models list", "dead-letter", "dead-letter list",
    "dead-letter retry", "cache", "cache stats", "cache clear", "doctor", "bench", "gateway", "webhooks", "keys",
    "keys add", "keys list", "keys revoke",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No stack runs here and nothing is configured."""
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, text: str | None = None) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command line."""
    result = CliRunner().invoke(app, arguments, input=text)
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example(command: str) -> None:
    """Each command's help ends with a line to copy."""
    code, out, _ = run(*command.split(), "--help")
    assert code == 0
    assert "Example: " in out
    assert "pipeline" in out.split("Example: ")[1]


def test_help_lists_every_command() -> None:
    """What is documented here is what the program has."""
    _, out, _ = run("--help")
    assert [name for name in COMMANDS if " " not in name and f" {name} " not in out] == []


def test_help_is_there_at_once() -> None:
    """`--help` loads no Kafka, no numpy, no pydantic: half a second on a busy machine."""
    script = "import sys; from pipeline.cli.main import app; print([m for m in HEAVY if m in sys.modules])"
    heavy = ("aiokafka", "numpy", "pydantic", "grpc", "rich.progress", "faust", "clickhouse_connect")
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", f"HEAVY = {heavy!r}; {script}"],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout.strip() == "[]"
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("submit",),
        ("submit", "x.npy"),
        ("submit", "x.txt", "--lines", "--model", "m"),
        ("submit", "x.jsonl", "--model", "m"),
        ("submit", "-", "--in-flight", "0"),
        ("results", "--status", "lost"),
        ("sql", "SELECT 1", "--json", "--format", "CSV"),
        ("up", "--workers", "many"),
    ],
)
def test_wrong_usage_exits_with_two(arguments: tuple[str, ...]) -> None:
    """What cannot be understood is told apart from what failed."""
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("sql", "SELECT 1"), "PIPELINE_CLICKHOUSE__URL is not set and no local stack runs"),
        (("migrate",), "PIPELINE_CLICKHOUSE__URL is not set"),
        (("topics", "create"), "PIPELINE_KAFKA__BOOTSTRAP_SERVERS is not set and no local stack runs"),
        (("results",), "PIPELINE_KAFKA__BOOTSTRAP_SERVERS is not set"),
        (("models", "list"), "PIPELINE_KAFKA__BOOTSTRAP_SERVERS is not set"),
        (("models", "check"), "model_repository"),
        (("models", "register"), "PIPELINE_KAFKA__BOOTSTRAP_SERVERS is not set"),
        (("submit", "missing.jsonl"), "missing.jsonl: No such file"),
        (("up",), "model_repository"),
    ],
)
def test_failures_are_one_clear_line(arguments: tuple[str, ...], sentence: str) -> None:
    """A failure exits with 1 and one line on standard error that says what is wrong."""
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("pipeline: ")
    assert sentence in err
    assert err.count("\n") == 1


def test_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong setting stops any command with its name, and its value stays unknown."""
    monkeypatch.setenv("PIPELINE_KAFKA__PARTITIONS", "sesame")
    code, _, err = run("topics", "create")
    assert code == 1
    assert "PIPELINE_KAFKA__PARTITIONS" in err
    assert "sesame" not in err


def test_unreachable_kafka_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Kafka that does not answer is named by its address."""
    monkeypatch.setenv("PIPELINE_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    assert run("topics", "create") == (1, "", "pipeline: Kafka at 127.0.0.1:1 does not answer\n")
    assert run("results") == (1, "", "pipeline: Kafka at 127.0.0.1:1 does not answer\n")


def test_status_without_anything_is_all_null() -> None:
    """Nothing runs: every member is null and the exit code says so."""
    code, out, _ = run("status", "--json")
    document = json.loads(out)
    assert code == 1
    assert set(document) == {
        "kafka", "gateway", "clickhouse", "redis", "triton", "workers", "sink", "watcher", "model_repository",
        "processes",
    }  # fmt: skip
    assert set(document.values()) == {None}


def test_status_of_an_unreachable_server_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is configured and down is null in the JSON, named for people, and exits with 1."""
    monkeypatch.setenv("PIPELINE_CLICKHOUSE__URL", "http://127.0.0.1:1")
    code, out, _ = run("status", "--json")
    assert (code, json.loads(out)["clickhouse"]) == (1, None)
    code, out, _ = run("status")
    assert code == 1
    assert "not ready" in out


def test_models_check_names_the_fault(tmp_path: Path) -> None:
    """A model that no server would load is named, with the file and the reason; exit code 1."""
    (tmp_path / "model_repository" / "broken" / "1").mkdir(parents=True)
    (tmp_path / "model_repository" / "broken" / "config.pbtxt").write_text("max_batch_size: [")
    code, out, err = run("models", "check")
    assert code == 1
    assert "broken/config.pbtxt" in err
    assert "0 models, 1 faults" in out


def test_doctor_json_is_a_list_of_checks() -> None:
    """A program reads each check's name, whether it passed, and what to do."""
    code, out, _ = run("doctor", "--json")
    checks = json.loads(out)
    assert code == (0 if all(check["ok"] for check in checks) else 1)
    assert {tuple(check) for check in checks} == {("name", "ok", "detail", "mend")}
    repository = next(check for check in checks if check["name"] == "model repository")
    assert not repository["ok"]
    assert "PIPELINE_MODEL_REPOSITORY" in repository["mend"]
