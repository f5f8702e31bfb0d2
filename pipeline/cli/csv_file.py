"""Rows of CSV (RFC 4180) as requests: a row is one input's vector, or each of its columns an input of its own.

--input image --datatype FP32        0,0,5,13,…         image FP32 [1, 64]
(no --input)                         age:INT64,text:BYTES
                                     41,a happy person   age INT64 [1, 1], text BYTES [1, 1]
"""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from pipeline.cli.request_files import BadLine, Ids, InputFileError, Now, Records, Target, build_for, record_or_bad_line
from pipeline.client.records import RequestRecord
from schemas.errors import ErrorCode, WireError
from schemas.tensor import DATATYPES, Tensor, raw_from_json

# A field may be a whole text: the module's own limit is 128 KiB, a record's largest is 256 MiB.
_FIELD_CHARS_MAX = 256 << 20
_FLOATS = frozenset({"FP32", "FP64"})
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
# They travel in binary only, so that no text of a number is theirs.
CSV_DATATYPES = tuple(name for name in DATATYPES if name not in {"FP16", "BF16"})


@dataclass(frozen=True, slots=True)
class _Column:
    """An input: its name, its datatype, and its fields, of a row."""

    name: str
    datatype: str
    fields: slice


def from_csv(file: BinaryIO, name: str, target: Target, datatype: str, id_of: Ids, now: Now) -> Records:
    """One request per row.

    Args:
        file: of UTF-8, with or without a byte order mark. Its first row has the columns' names; with an input's name
            given and numbers wanted, a first row of nothing but numbers is one of them.
        name: of the file, for messages.
        target: what is asked; an empty input name makes each column an input.
        datatype: of the numbers, where a column's name does not say another one.
        id_of: makes the ids.
        now: for the records' time.

    Raises:
        InputFileError: the header names no inputs.
    """
    csv.field_size_limit(_FIELD_CHARS_MAX)
    # What is no UTF-8 comes through, and is refused with its line's number.
    text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
    rows = _rows(text)
    columns: list[_Column] | None = None
    for number, row in rows:
        if isinstance(row, str):
            yield BadLine(number, row)
            continue
        if columns is None:
            columns, is_header = _columns(row, name, target.input_name, datatype)
            if is_header:
                continue
        content = "\0".join(row).encode("utf-8", "surrogateescape")
        yield record_or_bad_line(number, partial(_record, target, columns, row, id_of(number, content), now))


def _rows(text: io.TextIOWrapper) -> Iterator[tuple[int, list[str] | str]]:
    """Each row that is not empty, with the number of its last line; a sentence where it cannot be read."""
    reader = csv.reader(text, strict=True)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            # The file stays its opener's to close.
            text.detach()
            return
        except csv.Error as error:
            yield reader.line_num, f"no row of CSV: {error}"
            continue
        if row:
            yield reader.line_num, row


def _columns(row: list[str], name: str, input_name: str, datatype: str) -> tuple[list[_Column], bool]:
    """The inputs that the first row says, and whether it is a header."""
    if input_name:
        is_header = datatype == "BYTES" or not all(_is_number(field) for field in row)
        return [_Column(input_name, datatype, slice(0, len(row)))], is_header
    columns = []
    for index, field in enumerate(row):
        column, _, stated = field.strip().partition(":")
        if not column or stated not in {"", *CSV_DATATYPES} or _is_number(column):
            raise InputFileError(
                f"{name}: the header's column {index + 1} is {field!r:.80}: name or name:DATATYPE is wanted "
                f"({', '.join(CSV_DATATYPES)}), or --input for rows that are one input"
            )
        columns.append(_Column(column, stated or datatype, slice(index, index + 1)))
    return columns, True


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _record(target: Target, columns: list[_Column], row: list[str], request_id: str, now: Now) -> RequestRecord:
    wanted = columns[-1].fields.stop
    if len(row) != wanted:
        raise WireError(ErrorCode.INVALID_INPUT, f"the row has {len(row)} fields, the first row has {wanted}")
    return build_for(target, [_tensor(column, row[column.fields]) for column in columns], request_id, now)


def _tensor(column: _Column, fields: list[str]) -> Tensor:
    shape = (1, len(fields))
    values = [_value(column, field) for field in fields]
    return Tensor(column.name, column.datatype, shape, raw_from_json(column.name, column.datatype, shape, values))


def _value(column: _Column, field: str) -> object:
    try:
        if column.datatype == "BYTES":
            return field
        if column.datatype == "BOOL":
            return _BOOLEANS[field.strip().lower()]
        return float(field) if column.datatype in _FLOATS else int(field)
    except (ValueError, KeyError):
        raise WireError(ErrorCode.INVALID_INPUT, f"{column.name}: {field!r:.80} is no {column.datatype}") from None
