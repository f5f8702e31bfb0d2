"""What the embedded engine could not write is told: an insert that is called done is there."""

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
SCRIPT = """
import sys
from pathlib import Path
from pipeline.stack.clickhouse_engine import Engine, Query, QueryError

engine = Engine(Path(sys.argv[1]))
def run(text):
    try:
        return b"".join(chunk.content for chunk in engine.execute(Query(text))).decode().strip()
    except QueryError as error:
        return error.name
for text in (
    b"CREATE DATABASE d",
    b"CREATE TABLE d.settings (a UInt64) ENGINE = MergeTree ORDER BY a",
    b"CREATE TABLE d.v (a UInt64) ENGINE = MergeTree ORDER BY a",
    b"CREATE MATERIALIZED VIEW d.m TO d.v AS SELECT a FROM d.settings WHERE NOT throwIf(a = 13)",
    b"INSERT INTO d.settings FORMAT TSV\\n1\\n2\\n",
    b"INSERT INTO d.settings (a) SETTINGS async_insert = 0 FORMAT TSV\\n3\\n",
    b"INSERT INTO d.settings (a) FORMAT TSV\\n13\\n",
    b"SELECT count() FROM d.v",
):
    print(run(text))
engine.close()
"""


@pytest.mark.live
@pytest.mark.timeout(60)
def test_insert_that_failed_half_way_is_an_error(tmp_path: Path) -> None:
    """A view that fails, as a disk that is full: the client must know, or its rows are lost."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "data")], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[4:-1] == ["", "", "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO", "3"]
