"""The benchmarks that need no servers, with next to no effort: the output's shape, never its times."""

import gc
import os

import orjson
import pytest

from pipeline.bench.effort import Effort
from pipeline.bench.main import run
from pipeline.bench.timing import cpu_microseconds
from pipeline.bench.workload import RequestRecords
from schemas.request import decode_request

TINY = Effort(cpu_rounds=2, cpu_calls=20, cpu_distinct=30, distinct=4)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PIPELINE_")]:
        monkeypatch.delenv(name)


def test_engine_and_cache_print_a_json_list(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Standard output is one JSON list with the figures asked for, each with value, yardstick and ratio."""
    assert run(["engine", "cache.key_600kb"], True, TINY) == 0
    figures = {figure["name"]: figure for figure in orjson.loads(capfdbinary.readouterr().out)}
    assert figures.keys() == {"engine.hit_cpu", "engine.hit_events_cpu", "cache.key_600kb"}
    for figure in figures.values():
        assert figure["value"] > 0
        assert figure["yardstick"] > 0
        assert figure["ratio"] > 0
        assert isinstance(figure["ok"], bool)
        assert "cores" in figure["machine"]
    assert figures["engine.hit_cpu"]["steps"].keys() >= {"decode", "validate + key", "look-up", "encode"}


def test_table_names_figures_bars_and_steps(capfd: pytest.CaptureFixture[str]) -> None:
    """For people: a line per figure with its bar, the steps, and how each was measured."""
    assert run(["engine"], False, TINY) == 0
    out = capfd.readouterr().out
    assert "engine.hit_cpu" in out
    assert "value < 15" in out
    assert "where engine.hit_cpu goes" in out
    assert "yardstick: json + numpy" in out


def test_unknown_name_is_wrong_usage(capfd: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, and nothing on standard output."""
    assert run(["hits"], True, TINY) == 2
    captured = capfd.readouterr()
    assert not captured.out
    assert "there is no benchmark 'hits'" in captured.err


def test_timing_leaves_the_collector_as_it_was() -> None:
    """The worker's settings of the garbage collector end with the measurement."""
    before = gc.get_threshold()
    taken = cpu_microseconds({"one": abs, "other": abs}, rounds=3, calls=5)
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
    assert {name: len(times) for name, times in taken.items()} == {"one": 3, "other": 3}


def test_request_records_repeat_tensors_under_fresh_ids() -> None:
    """Records share tensors and keys in turn; ids in the body and in the headers are their own."""
    records = list(RequestRecords(2, seed=7).take(4))
    assert len({record.id for record in records}) == 4
    assert [record.key for record in records[:2]] == [record.key for record in records[2:]]
    for record in records:
        assert decode_request(record.value, record.headers).id == record.id
        assert dict(record.headers)["ce_id"] == record.id.encode()
