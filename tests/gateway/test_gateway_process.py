"""`pipeline gateway` as a process, without any server behind it."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.config import GatewaySettings, KafkaSettings, Settings
from pipeline.errors import SettingsError
from pipeline.gateway.main import bound_socket, run_gateway

PROJECT = Path(__file__).resolve().parents[2]
NO_KAFKA = {"PIPELINE_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1", "PIPELINE_REDIS__URL": ""}

# The imports alone take seconds on a busy machine.
pytestmark = pytest.mark.timeout(60)


@contextmanager
def gateway(folder: Path, **variables: str) -> Iterator["subprocess.Popen[str]"]:
    """The command, ended at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "gateway"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def status_of(url: str) -> int | None:
    """The status of an answer; None where nobody answers yet."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return None


def test_gateway_lives_without_kafka_and_ends_when_told(tmp_path: Path) -> None:
    """Kafka away: alive, not ready, and SIGTERM ends it with exit code 0."""
    with bound_socket(GatewaySettings(port=0)) as listener:
        port = listener.getsockname()[1]
    with gateway(tmp_path, **NO_KAFKA, PIPELINE_GATEWAY__PORT=str(port)) as process:
        while status_of(f"http://127.0.0.1:{port}/health/live") != 200:
            assert process.poll() is None, process.stdout and process.stdout.read()
            time.sleep(0.05)
        assert status_of(f"http://127.0.0.1:{port}/health/ready") == 503
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 0, output
        assert f"serves http://127.0.0.1:{port}" in output
        assert "Traceback" not in output


def test_every_line_is_json_where_it_is_asked_for(tmp_path: Path) -> None:
    """Ours, Kafka's client's and the access log's: each an object on a line, none of them anything else."""
    with bound_socket(GatewaySettings(port=0)) as listener:
        port = listener.getsockname()[1]
    variables = {"PIPELINE_LOG__FORMAT": "json", "PIPELINE_GATEWAY__ACCESS_LOG": "true"}
    with gateway(tmp_path, **NO_KAFKA, **variables, PIPELINE_GATEWAY__PORT=str(port)) as process:
        while status_of(f"http://127.0.0.1:{port}/health/live") != 200:
            assert process.poll() is None, process.stdout and process.stdout.read()
            time.sleep(0.05)
        assert status_of(f"http://127.0.0.1:{port}/nothing%0A%7B%7D") == 404
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
    lines = [json.loads(line) for line in output.splitlines()]
    assert all(line.keys() >= {"time", "level", "logger", "message"} for line in lines)
    asked = [line for line in lines if line["logger"] == "pipeline.gateway.access"]
    assert {(line["route"], line["status"]) for line in asked} == {("/health/live", 200), ("none", 404)}
    assert [line["path"] for line in lines if line["message"].startswith("request failed")] == ["/nothing%0A%7B%7D"]


def test_wrong_setting_stops_the_start() -> None:
    """The setting is named."""
    settings = Settings(kafka=KafkaSettings(bootstrap_servers=None), gateway=GatewaySettings(port=0))
    with pytest.raises(SettingsError, match="PIPELINE_KAFKA__BOOTSTRAP_SERVERS is not set"):
        run_gateway(settings)


def test_command_fails_with_one_line(tmp_path: Path) -> None:
    """A gateway that may not start ends with exit code 1 and the reason."""
    with gateway(tmp_path) as process:
        output, _ = process.communicate(timeout=50)
    assert (process.returncode, output.count("\n")) == (1, 1)
    assert output.startswith("pipeline: setting PIPELINE_KAFKA__BOOTSTRAP_SERVERS is not set")
