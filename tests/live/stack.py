"""The stack of the test run: started by the first test that needs it, stopped at the end of the run."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.config import Settings
from pipeline.stack import read_running
from schemas.registry import ModelRecord
from tests.live.stack_process import READY_FILE
from tests.models.folders import PROJECT

# Ten seconds on 2 cores; the first start on a machine also fetches Kafka's jars, which has a limit of 300 s.
_READY_TIMEOUT_S = 420.0
# A Triton takes 2-5 s to stop, all stop together.
_STOP_TIMEOUT_S = 30.0
_LOOK_S = 0.05


class StackNotReadyError(Exception):
    """The local stack did not come up; its output is the message."""


@dataclass(frozen=True)
class LiveStack:
    """The servers of the test run.

    Attributes:
        bootstrap_servers: Kafka.
        clickhouse_url: ClickHouse's HTTP interface.
        redis_url: Valkey.
        triton_urls: gRPC addresses, host:port, in the order of their names (triton-0, triton-1).
        triton_http_urls: HTTP base addresses, likewise.
        serving_dir: what the Tritons serve.
        models: records of the models that every Triton has loaded: digits, sentences, echo.
    """

    data_dir: Path
    serving_dir: Path
    bootstrap_servers: str
    clickhouse_url: str
    redis_url: str
    triton_urls: tuple[str, ...]
    triton_http_urls: tuple[str, ...]
    models: Mapping[str, ModelRecord]

    @property
    def settings(self) -> Settings:
        """Settings that point here, with names no other test has."""
        return self.make_settings()

    def make_settings(self, **sections: Mapping[str, Any]) -> Settings:
        """Settings that point here, with names no other caller gets: topic prefix, group, database, data folder.

        Args:
            sections: what differs, by section: `worker={"unavailable_timeout_ms": 1000}`.
        """
        name = f"t{uuid.uuid4().hex[:12]}"
        merged: dict[str, dict[str, Any]] = {
            # Other numbers than the requests' 4, so that "the same" and "modulo" are told apart.
            "kafka": {
                "bootstrap_servers": self.bootstrap_servers,
                "topic_prefix": f"{name}.",
                "event_partitions": 2,
                "reply_partitions": 3,
            },
            "clickhouse": {"url": self.clickhouse_url, "database": name},
            "redis": {"url": self.redis_url},
            "triton": {"urls": ",".join(self.triton_urls)},
            "worker": {"group": f"{name}-worker"},
        }
        for section, values in sections.items():
            merged[section] = merged.get(section, {}) | dict(values)
        return Settings(data_dir=self.data_dir / "tests" / name, **merged)  # type: ignore[arg-type]

    def pid(self, part: str) -> int:
        """The process of a server now: kafka, valkey, clickhouse, triton-0, triton-1.

        Raises:
            KeyError: it is not running.
        """
        state = read_running(self.data_dir)
        assert state is not None, "the stack's supervisor is gone"
        process = state.processes[part]
        if not process.is_alive():
            raise KeyError(part)
        return process.pid


class StackRun:
    """Starts the stack at most once, and remembers why it could not.

    Args:
        only: `kafka` for a broker alone; everything else of the stack is empty then.
    """

    def __init__(self, *only: Literal["kafka"]) -> None:
        self._only = only
        self._process: subprocess.Popen[bytes] | None = None
        self._data_dir: Path | None = None
        self._stack: LiveStack | None = None
        self._failure: StackNotReadyError | None = None

    def ensure_started(self) -> None:
        """Returns when the stack is ready, or will never be: `stack` tells."""
        if self._process is not None:
            return
        self._data_dir = Path(tempfile.mkdtemp(prefix="pipeline-tests-"))
        with tempfile.TemporaryFile() as log:
            self._process = subprocess.Popen(
                (sys.executable, "-m", "tests.live.stack_process", str(self._data_dir), *self._only),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=PROJECT,
                # Ctrl-C is the test run's: the stack stops when its standard input ends.
                start_new_session=True,
            )
            limit = time.monotonic() + _READY_TIMEOUT_S
            while not (self._data_dir / READY_FILE).exists():
                if self._process.poll() is not None or time.monotonic() > limit:
                    log.seek(0)
                    text = log.read().decode(errors="replace")
                    self._failure = StackNotReadyError(f"the local stack is not ready: {text[-4000:]}")
                    return
                time.sleep(_LOOK_S)
        self._stack = _read(self._data_dir)

    @property
    def stack(self) -> LiveStack:
        """The running stack.

        Raises:
            StackNotReadyError: it could not be started.
        """
        if self._failure is not None:
            raise self._failure
        assert self._stack is not None, "ensure_started comes first"
        return self._stack

    def stop(self) -> None:
        """Stops everything and waits for it. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except BaseException:
            # Whatever it waits for; the kernel ends its servers with it (PR_SET_PDEATHSIG).
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise


def _read(data_dir: Path) -> LiveStack:
    ready = json.loads((data_dir / READY_FILE).read_text())
    return LiveStack(
        data_dir=data_dir,
        serving_dir=Path(ready["serving_dir"]),
        bootstrap_servers=ready["kafka"],
        clickhouse_url=ready["clickhouse"] or "",
        redis_url=ready["redis"] or "",
        triton_urls=tuple(one["grpc"] for one in ready["triton"]),
        triton_http_urls=tuple(f"http://{one['http']}" for one in ready["triton"]),
        models={name: ModelRecord.model_validate(record) for name, record in ready["models"].items()},
    )
