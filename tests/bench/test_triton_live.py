"""The benchmarks on four Tritons, with next to no effort: the output's shape, never its times."""

import os
import tempfile
from pathlib import Path

import orjson
import pytest

from pipeline.bench.effort import Effort
from pipeline.bench.main import run

# Five Tritons and a Kafka start, then two and a Kafka, in 15-30 s each on a busy machine.
pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(300)]
TINY = Effort(fleet_rounds=1, fleet_rate=40, fleet_seconds=1.0, swaps=2, swap_rate=50, swap_quiet_s=2.0)


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of the machine's, and a folder for what is temporary."""
    for name in [name for name in os.environ if name.startswith("PIPELINE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_fleet_in_trouble_is_measured(capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path) -> None:
    """Every figure comes with its yardstick; nothing failed, and nothing of the run is left, stopped or not."""
    names = {"triton.stopped_instance_p99", "triton.stopped_instance_p99_cost"}
    assert run(sorted(names), True, TINY) == 0
    figures = {figure["name"]: figure for figure in orjson.loads(capfdbinary.readouterr().out)}
    assert figures.keys() == names
    assert all(figure["value"] > 0 and figure["yardstick"] > 0 for figure in figures.values())
    assert figures["triton.stopped_instance_p99"]["notes"]["failed"] == 0
    assert not list(tmp_path.glob("pipeline-bench-*"))


def test_swaps_are_measured(capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path) -> None:
    """New versions take over under load: nothing fails, nothing is answered by an earlier one."""
    assert run(["triton.swap_failures", "triton.swap_p99"], True, TINY) == 0
    figures = {figure["name"]: figure for figure in orjson.loads(capfdbinary.readouterr().out)}
    swaps = figures["triton.swap_failures"]
    assert (swaps["value"], swaps["ok"]) == (0, True)
    assert swaps["notes"]["requests"] > 0
    assert figures["triton.swap_p99"]["yardstick"] > 0
    assert not list(tmp_path.glob("pipeline-bench-*"))
