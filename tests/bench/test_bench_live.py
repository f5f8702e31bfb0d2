"""The benchmarks on servers of their own, with next to no effort: the output's shape, never its times."""

import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import orjson
import pytest

from pipeline.bench.catalogue import chosen
from pipeline.bench.effort import Effort
from pipeline.bench.main import run

# Servers start in 6-15 s on a busy machine, and each of the 17 processes of the one run in 3.
pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(240)]
TINY = Effort(
    distinct=20, hit_requests=200, hit_skipped=100, hit_pairs=1, latency_pairs=1, latency_seconds=1.0, latency_rate=50,
    miss_requests=320, miss_pairs=1, miss_calls=20, sink_batches=1, sink_batch_rows=300, sink_pairs=1,
    backlog_records=3, backlog_bytes=60_000, flat_seconds=1.0, flat_warm_requests=1000,
    # Unpopular tensors are still found in the shared cache when the burst at the start is over.
    warm_distinct=500, warm_requests=500, warm_rate=100, warm_seconds=2.0,
)  # fmt: skip
GROUPS = ("hit", "miss", "sink", "memory", "warm")

Figures = Mapping[str, Mapping[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No settings of the machine's, and a folder for what is temporary."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PIPELINE_")]:
            patch.delenv(name)
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", None)
        yield folder


@pytest.fixture(scope="module")
def figures(temporary: Path) -> Figures:
    """What one run over all these groups prints: its servers start twice, and not twice for each group."""
    printed = io.BytesIO()
    with redirect_stdout(io.TextIOWrapper(printed, write_through=True)):
        code = run(GROUPS, True, TINY)
        text = printed.getvalue()
    assert code == 0
    assert not list(temporary.glob("pipeline-bench-*")), "something of the run is left"
    return {figure["name"]: figure for figure in orjson.loads(text)}


def figures_of(*groups: str) -> set[str]:
    """What groups have by the catalogue."""
    return {figure for _, wanted in chosen(groups) for figure in wanted}


def test_run_prints_the_figures_of_its_groups(figures: Figures) -> None:
    """The figures of all groups that were named, and no others; nothing of the run is left."""
    assert figures.keys() == figures_of(*GROUPS)


@pytest.mark.parametrize(
    ("group", "names"),
    [
        ("hit", {"hit.throughput", "hit.cpu", "hit.latency_p50", "hit.latency_p99"}),
        ("miss", {"miss.throughput", "miss.dispatch", "miss.latency"}),
        ("sink", {"sink.throughput"}),
    ],
)
def test_group_prints_its_figures(figures: Figures, group: str, names: set[str]) -> None:
    """Every figure of the group comes with its yardstick."""
    assert figures_of(group) == names
    for figure in (figures[name] for name in names):
        assert figure["value"] > 0
        assert figure["yardstick"] > 0
        assert figure["ratio"] > 0


def test_memory_group_prints_its_figures(figures: Figures) -> None:
    """Peaks stand beside the bounds, with their parts; so little work may take no memory at all."""
    for name in figures_of("memory"):
        figure = figures[name]
        assert figure["yardstick"] > 0, name
        assert figure["unit"] == "MiB"
        promised = sum(figure["steps"].values())
        assert promised == pytest.approx(figure["yardstick"] if name != "worker.memory_flat" else 0.0, rel=0.01)


def test_restarted_worker_finds_answers_in_the_shared_cache(figures: Figures) -> None:
    """The figure of a warm start comes with its yardstick, and the second worker had hits in Redis."""
    figure = figures["cache.warm_start"]
    assert 0 < figure["value"] <= 100
    assert 0 < figure["yardstick"] <= 100
    notes = figure["notes"]
    assert notes["writes_stored"] > 0
    assert notes["look_ups_hit"] > 0
    # Of the same requests no cache can have more hits than were known.
    assert notes["hits_1s_percent"] <= notes["known_1s_percent"] <= 100
    assert figure["value"] <= notes["known_percent"] <= 100


def test_interrupt_stops_everything(temporary: Path) -> None:
    """Ctrl-C in the middle of a run: exit code 130, its servers gone, its folder removed."""
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; from pipeline.bench.main import run; sys.exit(run(['miss'], True))"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    limit = time.monotonic() + 60.0
    while not list(temporary.glob("pipeline-bench-*/logs/kafka.log")) and time.monotonic() < limit:
        time.sleep(0.1)
    folder = next(iter(temporary.glob("pipeline-bench-*")))
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
