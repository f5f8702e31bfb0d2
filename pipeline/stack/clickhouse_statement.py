"""Just enough of ClickHouse's grammar to serve its HTTP interface: where an INSERT's data begin, which FORMAT is asked.

Pure. Statements are bytes, since an INSERT's text and its binary data come in one body.
"""

import re
from dataclasses import dataclass

_TOKEN = re.compile(
    rb"""
    (?P<space>\s+ | --[^\n]* | /\*.*?\*/ )
  | (?P<quoted>'(?:[^'\\]|\\.|'')*' | `(?:[^`\\]|\\.)*` | "(?:[^"\\]|\\.)*" )
  | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
  | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_LINE_END = re.compile(rb"[ \t\f]*(?:\r?\n)?")
# After these an INSERT has no data of its own in a format: rows are in the text, or come from a query.
_ROWS_IN_TEXT = {b"VALUES", b"SELECT", b"WITH", b"WATCH", b"INFILE", b"EXPLAIN"}
_READS = {b"SELECT", b"WITH"}
# A table may be called like a clause.
_BEFORE_A_TABLE = {b"INTO", b"TABLE", b"."}
# Chunks of these can be sent one after the other; others have a head and a foot around all rows.
STREAMED_FORMATS = {
    "Native", "RowBinary", "TabSeparated", "TSV", "TabSeparatedRaw", "TSVRaw",
    "CSV", "JSONEachRow", "NDJSON", "JSONLines", "JSONCompactEachRow", "JSONStringsEachRow",
}  # fmt: skip
DEFAULT_FORMAT = "TabSeparated"


class MultiStatementError(ValueError):
    """More than one statement in a request, which ClickHouse's HTTP interface refuses too."""


@dataclass(frozen=True, slots=True)
class Statement:
    """One parsed statement.

    Attributes:
        text: the SQL; of an INSERT with data, up to its SETTINGS or FORMAT clause.
        keywords: its first two words in capitals, such as (b"CREATE", b"TEMPORARY").
        format_name: what its FORMAT clause says, else the given default.
        takes_data: it is an INSERT whose rows are `data`, in that format.
        data: what follows the FORMAT clause of an INSERT.
        settings: the SETTINGS clause of an INSERT with data.
    """

    text: bytes
    keywords: tuple[bytes, bytes]
    format_name: str
    takes_data: bool = False
    data: bytes = b""
    settings: bytes = b""

    @property
    def is_streamed(self) -> bool:
        """Whether its result can be sent while it is computed."""
        return self.keywords[0] in _READS and self.format_name in STREAMED_FORMATS


def parse_statement(text: bytes, default_format: str) -> Statement:
    """Split a request's query and body, already joined.

    Raises:
        MultiStatementError: something other than an INSERT's data follows a semicolon.
    """
    keywords: list[bytes] = []
    depth = 0
    format_name: str | None = None
    after_format = ended = False
    format_start = settings_start = 0
    before = b""
    for token in _TOKEN.finditer(text):
        if token.lastgroup == "space":
            continue
        if ended:
            raise MultiStatementError("Multi-statements are not allowed")
        if token.lastgroup == "word":
            word, previous = token.group().upper(), before
            before = word
            if len(keywords) < 2:  # its first two words
                keywords.append(word)
            if after_format:
                format_name, after_format = token.group().decode(), False
                if keywords[0] == b"INSERT":
                    clauses = (settings_start or format_start, format_start)
                    return _split_insert(text, keywords, clauses, token.end(), format_name)
            elif depth == 0 and word == b"FORMAT":
                after_format, format_start = True, token.start()
            elif depth == 0 and word == b"SETTINGS" and previous not in _BEFORE_A_TABLE:
                settings_start = token.start()
            elif depth == 0 and keywords[0] == b"INSERT" and word in _ROWS_IN_TEXT:
                break
            continue
        after_format = False
        before = character = token.group()
        depth += (character == b"(") - (character == b")")
        ended = character == b";"
    return Statement(text, _two(keywords), format_name or default_format)


def _split_insert(
    text: bytes, keywords: list[bytes], clauses: tuple[int, int], end: int, format_name: str
) -> Statement:
    """An INSERT, split where its SETTINGS and FORMAT clauses begin, and at the `end` of its format's name."""
    if format_name.upper() == "VALUES":
        return Statement(text, _two(keywords), format_name)
    # Data begin after the first line end, if there is one, else after the blanks.
    line_end = _LINE_END.match(text, end)
    data = text[line_end.end() if line_end else end :]
    head, settings = text[: clauses[0]].rstrip(), text[slice(*clauses)].rstrip()
    return Statement(head, _two(keywords), format_name, takes_data=True, data=data, settings=settings)


def _two(keywords: list[bytes]) -> tuple[bytes, bytes]:
    first, second = [*keywords, b"", b""][:2]
    return first, second
