"""On which line a field of a text stands."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.model_config import config_text, parse_config
from pipeline.core.text_lines import indexed, json_line, line_of, pbtxt_lines

TEXT = """# dims: 1
name: "dims: [" "}"
input [
  {
    name: "x" dims: [
      1,
      -2
    ]
  },
  { name: "y"
    dims: -
    3; data_type: TYPE_FP32 }
]
input < name: 'z'
  reshape: { shape: [ ] }
>
parameters { key: "cache"
  value { string_value: "on" } }
parameters [ { value <
  string_value: "1"> key: "k" }, { key: "e" } ]
version_policy { latest {
  num_versions: 2 } }
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("name", 2),
        ("input", 4),
        ("input.name", 5),
        ("input.dims", 6),
        ("input.dims[1]", 7),
        ("input[1]", 10),
        ("input[1].dims", 11),
        ("input[1].data_type", 12),
        ("input[2]", 14),
        ("input[2].reshape", 15),
        ("parameters{cache}", 18),
        ("parameters{k}", 20),
        ("parameters{e}", 20),
        ("version_policy.latest.num_versions", 22),
        # What is not written: the nearest field around it.
        ("input.data_type", 4),
        ("input[2].reshape.shape", 15),
        ("version_policy.specific", 21),
        ("output", None),
        ("output[1].name", None),
    ],
)
def test_field_has_its_line(path: str, line: int | None) -> None:
    """Nested, repeated, in lists, in brackets of both kinds, past comments and strings: each field is found."""
    assert line_of(pbtxt_lines(TEXT).lines, path) == line


def test_repeated_key_is_found() -> None:
    """A map's key that is given twice is told with the second one's line."""
    text = 'parameters { key: "a" value { string_value: "1" } }\nparameters { key: "a" }'
    assert pbtxt_lines(text).repeated_keys == [("a", 2)]


names = st.lists(st.text(st.characters(codec="ascii"), max_size=5), max_size=4)


@given(names, names, st.integers(0, 3))
def test_lines_of_any_configuration(inputs: list[str], keys: list[str], blank: int) -> None:
    """Every field of a configuration, as protobuf itself writes it, is found on the line where it stands."""
    config = parse_config("").config
    for name in inputs:
        config.input.add(name=name, dims=[1, 2], data_type=11)
    for key in keys:
        config.parameters[key].string_value = "v"
    text = "\n" * blank + config_text(config)
    rows = text.split("\n")
    lines = parse_config(text).lines
    for index in range(len(inputs)):
        path = indexed("input", index)
        assert rows[lines[path] - 1].startswith("input")
        assert rows[lines[f"{path}.dims[1]"] - 1] == "  dims: 2"
    for key in filter(str.isalnum, keys):
        assert rows[lines[f"parameters{{{key}}}"] - 1] == '    string_value: "v"'


@given(st.text(alphabet="ab{}[]<>:,;#\"'\n-1 ", max_size=60))
def test_any_text_is_scanned(text: str) -> None:
    """No text stops the scanner, also none that is no configuration."""
    assert all(1 <= line <= text.count("\n") + 1 for line in pbtxt_lines(text).lines.values())


values = st.recursive(
    st.none() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


def places(value: Any) -> list[list[str | int]]:
    """Every way into a value."""
    steps: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        steps = list(value.items())
    elif isinstance(value, list):
        steps = list(enumerate(value))
    return [[], *([step, *rest] for step, inner in steps for rest in places(inner))]


@given(values, st.data())
def test_json_value_has_its_line(value: Any, data: st.DataObject) -> None:
    """Every value of a JSON text is found where it begins."""
    way = data.draw(st.sampled_from(places(value)))
    text = json.dumps(value, indent=1)
    inner = value
    for step in way:
        inner = inner[step]
    line = json_line(text, way)
    assert line is not None
    row = text.split("\n")[line - 1]
    first = json.dumps(inner, indent=1).split("\n")[0]
    assert first in row
    assert not way or isinstance(way[-1], int) or json.dumps(way[-1]) in row


def test_json_line_goes_as_far_as_it_can() -> None:
    """A member that is missing is told by what should hold it; a text that is no JSON has no lines."""
    text = '{"a":\n [1,\n {"b": 2}]}'
    assert json_line(text, ("a", 1, "c")) == 3
    assert json_line(text, ("z",)) == 1
    assert json_line("{x", ("a",)) is None
    assert json_line("", ("a",)) is None
