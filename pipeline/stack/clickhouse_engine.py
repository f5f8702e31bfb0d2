"""The embedded ClickHouse engine (`chdb`), used as ClickHouse's server uses its own: one context for each request.

A request gets a connection of its own (0.2 ms): its settings, parameters and current
database end with it, so nothing leaks into another. Blocking: called from threads.
"""

import json
import os
import re
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import chdb
from chdb.state.sqlitelike import Connection

from pipeline.stack.clickhouse_statement import DEFAULT_FORMAT, MultiStatementError, Statement, parse_statement

# Sessions remembered; the one used longest ago goes first.
SESSIONS_MAX = 1024
_SETTING_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CODE = re.compile(r"Code: (\d+)\. DB::")
_ERROR_NAME = re.compile(r"\(([A-Z][A-Z0-9_]+)\)")


class QueryError(Exception):
    """The engine refused or failed a request. `code` and `name` are ClickHouse's own."""

    def __init__(self, code: int, name: str, text: str) -> None:
        self.code = code
        self.name = name
        super().__init__(text)

    @classmethod
    def from_text(cls, text: str) -> "QueryError":
        """From an exception's text of the engine, which has the server's form behind a prefix of chdb's."""
        found = _CODE.search(text)
        names = _ERROR_NAME.findall(text)
        if found is None:
            return cls(1001, "STD_EXCEPTION", f"Code: 1001. DB::Exception: {text} (STD_EXCEPTION)")
        return cls(int(found[1]), names[-1] if names else "", text[found.start() :])

    @classmethod
    def make(cls, code: int, name: str, message: str) -> "QueryError":
        """An error found here, in the server's form."""
        return cls(code, name, f"Code: {code}. DB::Exception: {message}. ({name})")


@dataclass(frozen=True, slots=True)
class Query:
    """One request: its text (query and body joined), and everything that applies to it alone."""

    text: bytes
    settings: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)
    database: str = ""
    default_format: str = DEFAULT_FORMAT
    session_id: str = ""
    readonly: bool = False


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a result, with the figures known by then."""

    content: bytes
    format_name: str
    read_rows: int = 0
    read_bytes: int = 0
    written_rows: int = 0
    elapsed_ns: int = 0

    def summary(self) -> str:
        """The header X-ClickHouse-Summary."""
        figures = {
            "read_rows": self.read_rows,
            "read_bytes": self.read_bytes,
            "written_rows": self.written_rows,
            "written_bytes": 0,
            "result_rows": self.read_rows,
            "elapsed_ns": self.elapsed_ns,
        }
        return json.dumps({name: str(figure) for name, figure in figures.items()})


class Engine:
    """Owns a data folder. `close` only after every running query ended.

    A session (`session_id`) keeps its SET and USE statements; temporary tables are refused.
    """

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        # Keeps the engine, and with it merges and TTLs in the background, alive between requests.
        self._keep = chdb.connect(self._path)  # type: ignore[no-untyped-call]
        self._sessions: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        version, timezone = self._keep.query("SELECT version(), timezone()", "TSV").bytes().decode().split()
        self.version: str = version
        self.timezone: str = timezone

    def close(self) -> None:
        """End the engine."""
        self._keep.close()

    def execute(self, query: Query) -> Iterator[Chunk]:
        """Run a query; yields its result in chunks, at least one. Closing the iterator ends the query.

        Raises:
            QueryError: at any chunk.
        """
        try:
            statement = parse_statement(query.text, query.default_format)
        except MultiStatementError as error:
            raise QueryError.make(62, "SYNTAX_ERROR", str(error)) from None
        if statement.keywords == (b"CREATE", b"TEMPORARY"):
            raise QueryError.make(48, "NOT_IMPLEMENTED", "Temporary tables are not supported by the embedded engine")
        try:
            with closing(chdb.connect(self._path)) as connection:  # type: ignore[no-untyped-call]
                self._prepare(connection, query, statement)
                yield from _run(connection, query, statement)
        except RuntimeError as error:
            raise QueryError.from_text(str(error)) from error
        if query.session_id and statement.keywords[0] in (b"SET", b"USE"):
            self._remember(query.session_id, statement.text.decode())

    def _prepare(self, connection: Connection, query: Query, statement: Statement) -> None:
        if query.database:
            connection.query("USE `" + query.database.replace("\\", "\\\\").replace("`", "\\`") + "`")
        for earlier in self._sessions.get(query.session_id, ()):
            connection.query(earlier)
        settings = dict(query.settings)
        if statement.takes_data:
            # An insert's parameters are settings: its own would be looked for in the data.
            settings |= {f"param_{name}": text for name, text in query.parameters.items()}
        for name, text in settings.items():
            if not _SETTING_NAME.fullmatch(name):
                raise QueryError.make(115, "UNKNOWN_SETTING", f"Unknown setting {name!r}")
            connection.query(f"SET {name} = '" + text.replace("\\", "\\\\").replace("'", "\\'") + "'")
        if query.readonly and "readonly" not in settings:
            connection.query("SET readonly = 2")

    def _remember(self, session_id: str, text: str) -> None:
        self._sessions[session_id] = (*self._sessions.pop(session_id, ()), text)
        while len(self._sessions) > SESSIONS_MAX:
            self._sessions.popitem(last=False)


def _run(connection: Connection, query: Query, statement: Statement) -> Iterator[Chunk]:
    name = statement.format_name
    if statement.takes_data:
        yield _insert(connection, statement)
        return
    text = statement.text.decode()
    if statement.is_streamed:
        with connection.send_query(text, name, params=query.parameters) as stream:
            none_yet = True
            for part in stream:
                none_yet = False
                yield Chunk(part.bytes(), name, part.rows_read(), part.bytes_read(), 0, int(part.elapsed() * 1e9))
            if none_yet:
                yield Chunk(b"", name)
        return
    result = connection.query(text, name, params=query.parameters)
    written, elapsed_ns = result.rows_written(), int(result.elapsed() * 1e9)
    yield Chunk(result.bytes() or b"", name, result.rows_read(), result.bytes_read(), written, elapsed_ns)


def _insert(connection: Connection, statement: Statement) -> Chunk:
    # From a file, which is in memory: chdb's streaming insert (`send_insert`) calls an insert done whose part could not
    # be written or whose materialized view failed. Rows were lost that way, and the sink could not know.
    with _file_in_memory(statement.data) as path:
        text = f"{statement.text.decode()} FROM INFILE '{path}' {statement.settings.decode()}"
        result = connection.query(f"{text} FORMAT {statement.format_name}")
        written, elapsed_ns = result.rows_written(), int(result.elapsed() * 1e9)
    return Chunk(b"", statement.format_name, 0, 0, written, elapsed_ns)


@contextmanager
def _file_in_memory(content: bytes) -> Iterator[str]:
    """The path of a file with this content, while the block runs."""
    descriptor = os.memfd_create("insert")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
