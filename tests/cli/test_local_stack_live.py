"""The command line on a stack of its own: `up`, what runs beside it, `demo`, and the end of both."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]
# A start takes 10 s on an idle machine; the rest is for one that runs other tests.
READY_TIMEOUT_S = 120
STOP_TIMEOUT_S = 60

pytestmark = [pytest.mark.live, pytest.mark.timeout(READY_TIMEOUT_S + STOP_TIMEOUT_S)]


@dataclass(frozen=True)
class CommandLine:
    """Runs commands as a person in a project folder does, on one data folder."""

    data_dir: Path
    codes_between_parts: list[int] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """A user's environment with nothing configured but the data folder."""
        return {
            **os.environ,
            "PIPELINE_DATA_DIR": str(self.data_dir),
            "PIPELINE_MODEL_REPOSITORY": str(PROJECT / "model_repository"),
            "PYTHONPATH": str(PROJECT),
        }

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Starts a command that goes on."""
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline", *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, text: str = "", timeout_s: float = 60) -> tuple[int, str]:
        """Runs a command to its end; its exit code and standard output."""
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *arguments],
            env=self.environment,
            input=text,
            stdout=subprocess.PIPE,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return done.returncode, done.stdout

    def left_behind(self) -> list[str]:
        """Processes that still work in the data folder."""
        marker = str(self.data_dir).encode()
        found = []
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdigit() and marker in (folder / "cmdline").read_bytes():
                    found.append((folder / "cmdline").read_bytes().decode(errors="replace")[:200])
            except OSError:
                continue  # it has ended meanwhile
        return found


@pytest.fixture(scope="module")
def command_line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """A stack brought up by `pipeline up` with two workers, and stopped by Ctrl-C: exit code 0, nothing left."""
    line = CommandLine(tmp_path_factory.mktemp("up"))
    up = line.start("up", "--workers", "2")
    assert up.stdout is not None
    output = []
    try:
        for text in up.stdout:
            output.append(text)
            if "  topics: " in text:
                line.codes_between_parts.append(status_of_paused(line, up.pid))
            if "Ctrl-C stops everything" in text:
                break
        else:
            pytest.fail("`pipeline up` did not become ready:\n" + "".join(output))
        yield line
        up.send_signal(signal.SIGINT)
        output += up.communicate(timeout=STOP_TIMEOUT_S)[0]
    finally:
        if up.poll() is None:
            up.kill()
            up.wait()
    assert up.returncode == 0, "".join(output)
    assert line.left_behind() == []
    assert not (line.data_dir / "stack.json").exists()


def status_of_paused(line: CommandLine, pid: int) -> int:
    """The exit code of `status` while this supervisor starts nothing more."""
    os.kill(pid, signal.SIGSTOP)
    try:
        return line.run("status", "--json")[0]
    finally:
        os.kill(pid, signal.SIGCONT)


def status(line: CommandLine) -> tuple[int, dict[str, Any]]:
    """What `status --json` says."""
    code, out = line.run("status", "--json")
    return code, json.loads(out)


def test_status_tells_where_everything_is(command_line: CommandLine) -> None:
    """All parts are ready with their addresses and pids, and two workers share the partitions."""
    code, document = status(command_line)
    assert code == 0
    assert [name for name, part in document.items() if part is None] == []
    assert sorted(number for worker in document["workers"] for number in worker["partitions"]) == [0, 1, 2, 3]
    assert len(document["workers"]) == len(document["triton"]) == 2
    fleets = [[seen["name"] for seen in worker["fleet"]["instances"]] for worker in document["workers"]]
    assert fleets == [[one["name"] for one in document["triton"]]] * 2
    ours = {"kafka", "clickhouse", "valkey", "triton-0", "sink", "watcher"}
    assert ours <= {one["name"] for one in document["processes"]}
    parts = (*document["triton"], *document["workers"], document["sink"], document["watcher"])
    pids = [part["pid"] for part in parts]
    assert all(Path(f"/proc/{pid}").exists() for pid in pids)


def test_status_waits_for_what_is_not_started_yet(command_line: CommandLine) -> None:
    """All servers are ready and no worker was started: `status` says 1, though nothing that is there has a problem."""
    assert command_line.codes_between_parts == [1]


def test_second_stack_is_refused(command_line: CommandLine) -> None:
    """One data folder has one stack: the second `up` says so and leaves the first alone."""
    assert command_line.run("up")[0] == 1
    assert status(command_line)[0] == 0


def test_submitted_text_is_answered_and_logged(command_line: CommandLine, tmp_path: Path) -> None:
    """A line of text is answered, answered again from the cache, followed on the topic and found by SQL."""
    arguments = ("submit", "-", "--model", "sentences", "--input", "text", "--lines", "--json")
    text = f"An evening at the harbour, {time.time_ns()}.\n"
    output = tmp_path / "answers.jsonl"
    code, out = command_line.run(*arguments, "--output", str(output), text=text)
    assert (code, json.loads(out)["cache"]) == (0, {"miss": 1})
    code, out = command_line.run(*arguments, text=text)
    assert (code, json.loads(out)["cache"]) == (0, {"hit": 1})
    answer = json.loads(output.read_text())
    code, out = command_line.run("results", "--id", answer["id"], "--from-beginning", "--json")
    assert (code, out) == (0, output.read_text())
    query = f"SELECT count() AS n FROM requests WHERE request_id = '{answer['id']}'"
    assert until_equal(lambda: json.loads(command_line.run("sql", query, "--json")[1])["n"], 1) == 1


def test_bad_lines_do_not_stop_good_ones(command_line: CommandLine, tmp_path: Path) -> None:
    """A file with bad lines and an unknown model is sent as far as it goes; the exit code is 1."""
    good = {
        "model_name": "digits",
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 64], "data": [1] * 64}],
    }
    lines = [json.dumps(good), "{", json.dumps(good | {"model_name": "nobody"}), json.dumps(good)]
    file = tmp_path / "requests.jsonl"
    file.write_text("\n".join(lines))
    code, out = command_line.run("submit", str(file), "--json")
    summary = json.loads(out)
    assert code == 1
    assert (summary["succeeded"], summary["failed"], summary["bad_lines"]) == (2, 1, 1)
    assert summary["errors"] == {"MODEL_NOT_FOUND": 1}


def test_interrupted_typing_ends_at_once(command_line: CommandLine) -> None:
    """A typed line is receipted while the input is open, and Ctrl-C ends the command quietly with 130."""
    typing = command_line.start(
        "submit", "-", "--model", "sentences", "--input", "text", "--lines", "--no-wait", "--output", "-"
    )
    assert typing.stdin is not None
    assert typing.stdout is not None
    typing.stdin.write("A first line\n")
    typing.stdin.flush()
    assert set(json.loads(typing.stdout.readline())) == {"id", "partition", "offset"}
    typing.send_signal(signal.SIGINT)
    assert (typing.wait(timeout=10), typing.stdout.read()) == (130, "")
    typing.stdin.close()
    typing.stdout.close()


def test_models_topics_and_tables_are_as_they_should_be(command_line: CommandLine) -> None:
    """Repeating what `up` did changes nothing, and the served models are listed with their default versions."""
    code, out = command_line.run("models", "list", "--json")
    defaults = {record["model_name"]: record["default_version"] for record in json.loads(out)}
    assert (code, defaults) == (0, {"digits": "2", "sentences": "1"})
    code, out = command_line.run("topics", "create", "--json")
    assert (code, json.loads(out)["created"]) == (0, [])
    code, out = command_line.run("migrate", "--json")
    assert (code, json.loads(out)["applied"]) == (0, [])
    code, out = command_line.run("models", "register", "--json")
    assert (code, {version["state"] for version in json.loads(out)["versions"]}) == (0, {"unchanged"})


def test_demo_uses_the_stack_that_runs(command_line: CommandLine) -> None:
    """The demo's checks hold on a running stack, and it stays up."""
    code, out = command_line.run("demo", timeout_s=READY_TIMEOUT_S)
    assert code == 0, out
    assert "360 of 360 requests answered" in out
    assert "360 rows with 360 different ids" in out
    assert status(command_line)[0] == 0


def test_killed_worker_is_started_again(command_line: CommandLine) -> None:
    """A worker that was killed comes back and takes its partitions; `status` says 1 until then."""
    _, document = status(command_line)
    os.kill(document["workers"][0]["pid"], signal.SIGKILL)
    assert until_equal(lambda: status(command_line)[0], 1) == 1
    assert until_equal(lambda: status(command_line)[0], 0) == 0


@pytest.mark.slow
def test_demo_starts_and_stops_everything_itself(tmp_path: Path) -> None:
    """From an empty folder the demo starts, checks and stops everything; nothing is left but its data."""
    line = CommandLine(tmp_path / "data")
    code, out = line.run("demo", timeout_s=READY_TIMEOUT_S)
    assert code == 0, out
    assert "every answer equals onnxruntime's in this process" in out
    assert line.left_behind() == []


@pytest.mark.slow
def test_interrupted_demo_stops_everything(tmp_path: Path) -> None:
    """Ctrl-C in the middle of the demo stops every process, and the exit code says that it was interrupted."""
    line = CommandLine(tmp_path / "data")
    demo = line.start("demo")
    assert demo.stdout is not None
    for text in demo.stdout:
        if "kafka ready" in text:
            break
    demo.send_signal(signal.SIGINT)
    rest, _ = demo.communicate(timeout=STOP_TIMEOUT_S)
    assert demo.returncode == 130, rest
    assert "Traceback" not in rest
    assert line.left_behind() == []


def until_equal(look: Any, expected: Any, timeout_s: float = 45) -> Any:
    """Looks again and again until the value is as expected, or the limit is over; the last value."""
    deadline = time.monotonic() + timeout_s
    while (value := look()) != expected and time.monotonic() < deadline:
        time.sleep(0.2)
    return value
