"""Where an INSERT's data begin, and which format is asked for."""

import pytest

from pipeline.stack.clickhouse_statement import MultiStatementError, parse_statement


def test_insert_is_split_from_binary_data() -> None:
    """Data begin after the line of the FORMAT clause, whatever bytes they are."""
    found = parse_statement(b"INSERT INTO t (a, `format`) FORMAT Native\n\x02\x00FORMAT x", "TSV")
    assert found.takes_data
    assert (found.text, found.format_name) == (b"INSERT INTO t (a, `format`)", "Native")
    assert found.data == b"\x02\x00FORMAT x"


@pytest.mark.parametrize(
    "text", [b"INSERT INTO t VALUES ('a FORMAT CSV b')", b"INSERT INTO t SELECT 1 FORMAT Null", b"SELECT ';' /* ; */"]
)
def test_text_that_only_looks_like_data_stays_whole(text: bytes) -> None:
    """Words inside quotes and comments, and rows in the text, split nothing."""
    found = parse_statement(text, "TSV")
    assert not found.takes_data
    assert found.text == text


def test_second_statement_is_refused() -> None:
    """One request is one statement; a closing semicolon is none."""
    assert parse_statement(b"SELECT 1 FORMAT JSON ;\n", "TSV").format_name == "JSON"
    with pytest.raises(MultiStatementError):
        parse_statement(b"SELECT 1; DROP TABLE t", "TSV")
