"""The benchmarks on servers of their own, with next to no effort: the output's shape, never its times."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import orjson
import pytest

from pipeline.bench.catalogue import chosen
from pipeline.bench.effort import Effort
from pipeline.bench.main import run

# Servers start in 6-15 s on a busy machine, and each process of a run in 3.
pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(240)]
TINY = Effort(
    distinct=20, hit_requests=200, hit_skipped=100, hit_pairs=1, latency_pairs=1, latency_seconds=1.0, latency_rate=50,
    miss_requests=320, miss_pairs=1, miss_calls=20, sink_batches=1, sink_batch_rows=300, sink_pairs=1,
    backlog_records=3, backlog_bytes=60_000, flat_seconds=1.0, flat_warm_requests=1000,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of the machine's, and a folder for what is temporary."""
    for name in [name for name in os.environ if name.startswith("PIPELINE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.mark.parametrize(
    ("group", "names"),
    [
        ("hit", {"hit.throughput", "hit.cpu", "hit.latency_p50", "hit.latency_p99"}),
        ("miss", {"miss.throughput", "miss.dispatch", "miss.latency"}),
        ("sink", {"sink.throughput"}),
    ],
)
def test_group_prints_its_figures(
    group: str, names: set[str], capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> None:
    """Every figure of the group comes with its yardstick, and nothing of the run is left."""
    assert run([group], True, TINY) == 0
    figures = {figure["name"]: figure for figure in orjson.loads(capfdbinary.readouterr().out)}
    assert figures.keys() == names
    assert all(figure["value"] > 0 and figure["yardstick"] > 0 and figure["ratio"] > 0 for figure in figures.values())
    assert not list(tmp_path.glob("pipeline-bench-*"))


def test_memory_group_prints_its_figures(capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path) -> None:
    """Peaks stand beside the bounds, with their parts; so little work may take no memory at all."""
    assert run(["memory"], True, TINY) == 0
    figures = {figure["name"]: figure for figure in orjson.loads(capfdbinary.readouterr().out)}
    assert figures.keys() == {figure for _, wanted in chosen(["memory"]) for figure in wanted}
    for name, figure in figures.items():
        assert figure["yardstick"] > 0, name
        assert figure["unit"] == "MiB"
        promised = sum(figure["steps"].values())
        assert promised == pytest.approx(figure["yardstick"] if name != "worker.memory_flat" else 0.0, rel=0.01)
    assert not list(tmp_path.glob("pipeline-bench-*"))


def test_interrupt_stops_everything(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a run: exit code 130, its servers gone, its folder removed."""
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; from pipeline.bench.main import run; sys.exit(run(['miss'], True))"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    limit = time.monotonic() + 60.0
    while not list(tmp_path.glob("pipeline-bench-*/logs/kafka.log")) and time.monotonic() < limit:
        time.sleep(0.1)
    folder = next(iter(tmp_path.glob("pipeline-bench-*")))
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60.0)
    assert child.returncode == 130, err.decode()
    assert not out
    assert not folder.exists()
    assert not _processes_naming(folder)


def _processes_naming(folder: Path) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(folder) in text:
            found.append(text)
    return found
