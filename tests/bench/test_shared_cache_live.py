"""The shared cache's benchmark on a Valkey of its own, with next to no effort: the output's shape, never its times."""

import os
import tempfile
from pathlib import Path

import orjson
import pytest

from pipeline.bench.effort import Effort
from pipeline.bench.main import run

pytestmark = [pytest.mark.live, pytest.mark.timeout(60)]
TINY = Effort(distinct=20, miss_pairs=1, miss_calls=130)


def test_figures_stand_beside_bare_gets(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Both figures come with their yardstick from the same run, and nothing of it is left."""
    for name in [name for name in os.environ if name.startswith("PIPELINE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert run(["cache.shared_get", "cache.shared_burst"], True, TINY) == 0
    figures = {figure["name"]: figure for figure in orjson.loads(capfdbinary.readouterr().out)}
    assert figures.keys() == {"cache.shared_get", "cache.shared_burst"}
    assert all(figure["value"] > 0 and figure["yardstick"] > 0 and figure["ratio"] > 0 for figure in figures.values())
    assert figures["cache.shared_get"]["notes"].keys() == {"p99_us", "bare_p99_us"}
    assert not list(tmp_path.glob("pipeline-bench-*"))
