"""On which line of an owner's text a field stands, so that a fault can point at it. Text in, numbers out.

A path names a field: `input.dims` is in the first `input`, `input[1].dims` in the second, `parameters{cache}` is the
parameter with that key. The parsers of protobuf and JSON say what is wrong; what is here only says where it stands, so
it takes texts for well-formed.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_TOKEN = re.compile(
    r"""(?P<comment>\#[^\n]*)|(?P<text>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|(?P<mark>[{}<>\[\]:;,])"""
    r"""|(?P<word>[^\s{}<>\[\]:;,"'\#]+)"""
)
_LAST_PART = re.compile(r"(\.[^.\[{]*|\[\d+\]|\{[^}]*\})$")
_SPACE = re.compile(r"[ \t\r\n]*")


def indexed(path: str, index: int) -> str:
    """The path of the field with this number among those of its name, from 0."""
    return f"{path}[{index}]" if index else path


def line_of(lines: Mapping[str, int], path: str) -> int | None:
    """The line of a field, else of the nearest one around it; None where the text has neither."""
    while path not in lines:
        shorter = _LAST_PART.sub("", path)
        if shorter == path:
            return None
        path = shorter
    return lines[path]


@dataclass(frozen=True, slots=True)
class TextLines:
    """Path -> line, from 1; and map keys given twice with the second one's line (protobuf silently takes the last)."""

    lines: Mapping[str, int]
    repeated_keys: Sequence[tuple[str, int]] = ()


def pbtxt_lines(text: str) -> TextLines:
    """The lines of the fields of a protobuf text that has been parsed."""
    reader = _PbtxtReader(text)
    reader.read_message("")
    return TextLines(reader.lines, reader.repeated_keys)


@dataclass(slots=True)
class _PbtxtReader:
    """One way through the tokens. Depth is the schema's: a text that parsed has no more."""

    text: str
    lines: dict[str, int] = field(default_factory=dict)
    repeated_keys: list[tuple[str, int]] = field(default_factory=list)
    _counts: dict[str, int] = field(default_factory=dict)
    _keys: dict[str, str] = field(default_factory=dict)
    _tokens: list[tuple[str, str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        line, position = 1, 0
        for match in _TOKEN.finditer(self.text):
            line += self.text.count("\n", position, match.start())
            position = match.start()
            if match.lastgroup != "comment":
                self._tokens.append((match.lastgroup or "", match.group(), line))
        self._tokens.reverse()

    def read_message(self, prefix: str) -> None:
        """Reads fields up to the end of the message, or of the text."""
        while self._tokens:
            kind, token, line = self._tokens.pop()
            if token in ("}", ">"):
                return
            if kind == "word":
                self._read_field(f"{prefix}{token}", line)

    def _read_field(self, name: str, line: int) -> None:
        if self._next() == ":":
            self._tokens.pop()
        if self._next() != "[":
            self._read_value(self._count(name, line))
            return
        self._tokens.pop()
        while self._tokens and self._next() != "]":
            if self._next() == ",":
                self._tokens.pop()
                continue
            self._read_value(self._count(name, self._tokens[-1][2]))
        if self._tokens:
            self._tokens.pop()

    def _read_value(self, path: str) -> None:
        if not self._tokens:
            return
        kind, word, line = self._tokens.pop()
        if word in ("{", "<"):
            self.read_message(f"{path}.")
            self._note_key(path)
            return
        if word == "-" and self._tokens:
            self._tokens.pop()
        while kind == "text" and self._tokens and self._tokens[-1][0] == "text":
            word += self._tokens.pop()[1]
        if path.endswith(".key"):
            self._keys[path.removesuffix(".key")] = word.strip("\"'")
        self.lines.setdefault(path, line)

    def _note_key(self, path: str) -> None:
        key = self._keys.get(path)
        if key is None:
            return
        name = f"{path.partition('[')[0]}{{{key}}}"
        if name in self.lines:
            self.repeated_keys.append((key, self.lines[path]))
        self.lines[name] = self.lines.get(f"{path}.value.string_value", self.lines[path])

    def _count(self, name: str, line: int) -> str:
        number = self._counts.get(name, 0)
        self._counts[name] = number + 1
        path = indexed(name, number)
        self.lines[path] = line
        return path

    def _next(self) -> str:
        return self._tokens[-1][1] if self._tokens else ""


def json_line(text: str, location: Sequence[str | int]) -> int | None:
    """The line of a value in a JSON text: keys and indices lead to it; as far as they do, where they end too early.

    None where the text is no JSON.
    """
    try:
        position = _json_position(text, location)
    except (ValueError, IndexError, RecursionError):
        return None
    return text.count("\n", 0, position) + 1


def _json_position(text: str, location: Sequence[str | int]) -> int:
    decoder = json.JSONDecoder()
    here = _after_space(text, 0)
    for step in location:
        closing = {"{": "}", "[": "]"}.get(text[here])
        index, there = 0, _after_space(text, here + 1)
        while closing is not None and text[there] != closing:
            key: str | int = index
            if closing == "}":
                key, there = decoder.raw_decode(text, there)
                there = _after_space(text, _after_space(text, there) + 1)
            if key == step:
                here = there
                break
            _, there = decoder.raw_decode(text, there)
            there = _after_space(text, there)
            if text[there] == ",":
                there = _after_space(text, there + 1)
            index += 1
        else:
            return here
    return here


def _after_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position
