"""`models publish` and `models check` from outside: what they print, and their exit codes. No servers."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.adapters import models_topic
from pipeline.cli.main import app
from schemas.registry import ModelRecord
from tests.watcher.folders import onnx_bytes, python_model


@pytest.fixture(autouse=True)
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty model repository, and nothing else that is configured."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setenv("PIPELINE_MODEL_REPOSITORY", str(folder))
    (tmp_path / "new.onnx").write_bytes(onnx_bytes())
    return folder


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command line."""
    result = CliRunner().invoke(app, arguments)
    assert "Traceback" not in result.stderr
    return result.exit_code, result.stdout, result.stderr


def publish(*arguments: str) -> tuple[int, str, str]:
    return run("models", "publish", *arguments)


def test_publishing_says_what_it_did(repository: Path) -> None:
    """The first line tells the version and where it is; again, that it is there already."""
    code, out, err = publish("new.onnx", "--model", "m")
    assert (code, err) == (0, "")
    assert out == f"m version 1: published, 1 files, {len(onnx_bytes())} bytes, {repository / 'm' / '1'}\n"
    code, out, _ = publish("new.onnx", "--model", "m", "--version", "next")
    assert (code, out) == (0, f"m version 1: there already with this content, {repository / 'm' / '1'}\n")


def test_program_reads_what_was_done(repository: Path) -> None:
    """`--json` gives the same for programs, also of what is refused."""
    code, out, _ = publish("new.onnx", "--model", "m", "--version", "4", "--json")
    assert code == 0
    assert json.loads(out) == {
        "published": True,
        "model": "m",
        "version": "4",
        "path": str(repository / "m" / "4"),
        "files": 1,
        "size_bytes": len(onnx_bytes()),
        "selected": True,
        "outcome": None,
    }
    Path("new.onnx").write_bytes(onnx_bytes()[:-30])
    code, out, err = publish("new.onnx", "--model", "m", "--json")
    assert code == 1
    (fault,) = json.loads(out)["faults"]
    assert fault["path"].endswith("model.onnx")
    assert "no whole ONNX file" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("gone.onnx", "--model", "m"),
        ("new.onnx",),
        ("new.onnx", "--model", "../m"),
        ("new.onnx", "--model", "-m"),
        ("new.onnx", "--model", "m", "--version", "01"),
        ("new.onnx", "--model", "m", "--version", "last"),
        ("new.onnx", "--model", "m", "--wait", "--timeout", "0"),
    ],
)
def test_wrong_usage_exits_with_two(arguments: tuple[str, ...], repository: Path) -> None:
    """What cannot be meant is told apart from what is at fault, and nothing is written."""
    assert publish(*arguments)[0] == 2
    assert list(repository.iterdir()) == []


def test_missing_repository_is_one_line(repository: Path) -> None:
    """A repository that is not there is told in one line that names the setting."""
    repository.rmdir()
    code, out, err = publish("new.onnx", "--model", "m")
    assert (code, out) == (1, "")
    assert "PIPELINE_MODEL_REPOSITORY" in err
    assert err.count("\n") == 1


def test_check_names_every_fault(repository: Path) -> None:
    """`models check` tells each fault with its file and line, and fails."""
    folder = python_model(repository, "m", extra="\nmax_batchsize: 2")
    python_model(repository, "good")
    (repository / "bad name").mkdir()
    code, out, err = run("models", "check")
    assert code == 1
    assert "good: versions 1; served: 1" in out
    assert f"{folder / 'config.pbtxt'}:7: " in err
    assert "bad name" in err


def test_help_has_an_example() -> None:
    """The help of `models publish` ends with a line to copy."""
    code, out, _ = publish("--help")
    assert (code, "Example: pipeline models publish" in out) == (0, True)


@pytest.mark.parametrize(
    ("state", "reason", "code", "words"),
    [
        ("ready", None, 0, "m version 1: served"),
        ("rejected", "the sample failed", 1, "m version 1: rejected: the sample failed"),
        (None, None, 1, "not served within 1 s"),
    ],
)
def test_wait_tells_what_became_of_it(
    state: str | None, reason: str | None, code: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--wait` ends with what the fleet made of the version, or when the time is over."""
    record = {
        "model_name": "m",
        "versions": {"1": {"fingerprint": "f", "state": state, "reason": reason}} if state else {},
        "default_version": None,
        "effective_at": "2026-01-01T00:00:00Z",
    }

    async def read(*_: Any) -> dict[str, ModelRecord]:
        return {"m": ModelRecord.model_validate(record)}

    monkeypatch.setattr(models_topic, "read_models", read)
    monkeypatch.setenv("PIPELINE_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    found, out, err = publish("new.onnx", "--model", "m", "--wait", "--timeout", "1")
    assert found == code
    assert words in out + err


def test_version_that_the_policy_leaves_out_is_not_waited_for(repository: Path) -> None:
    """Nobody waits for a version that no one will serve."""
    folder = repository / "m"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_bytes(onnx_bytes(factor=2.0))
    (folder / "config.pbtxt").write_text("version_policy { specific { versions: [ 1 ] } }", encoding="utf-8")
    code, out, err = publish("new.onnx", "--model", "m", "--wait")
    assert (code, "published" in out) == (1, True)
    assert "does not select it" in err
