"""`config.pbtxt`: what is refused, where, and what is read from it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.fingerprint import answer_config, fingerprint
from pipeline.core.model_config import (
    ConfigText,
    ModelConfigError,
    config_text,
    content_mark,
    findings,
    parse_config,
    serving_config,
    signature,
    with_content_mark,
    without_content_mark,
)
from schemas.registry import TensorSpec

GOOD = """name: "m"
backend: "python"
max_batch_size: 8
input [ { name: "text" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "vector" data_type: TYPE_FP32 dims: [ -1, 4 ] } ]
version_policy { latest { num_versions: 2 } }
instance_group [ { kind: KIND_CPU, count: 1 } ]
"""


def reasons(text: str, model_name: str = "m") -> list[str]:
    parsed = parse_config(text)
    return [finding.reason for finding in findings(parsed.config, model_name, parsed.lines)]


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ('name: "m"\nbackend: "python"\nmax_batchsize: 8\n', 3, 1, 'no field named "max_batchsize"'),
        ('name: "m"\ninput [ { nme: "a" } ]\n', 2, 11, 'no field named "nme"'),
        ('name: "m"\ninput { data_type: TYPE_FLOAT }\n', 2, 20, "TYPE_FLOAT"),
        ('name: "m"\nmax_batch_size: "8"\n', 2, 17, "integer"),
        ('name: "m"\nname: "n"\n', 2, 7, 'multiple "name"'),
        ('parameters { key: "a" }\nparameters { key: "a" }\n', 2, 1, "key 'a' is given twice"),
        ("input [ { \n", 1, 9, "Expected"),
        ('name: "m"\nbackend = "python"\n', 2, 9, '":"'),
    ],
)
def test_syntax_error_names_line_and_column(text: str, line: int, column: int, words: str) -> None:
    """A text that is no configuration is refused with the place and what stands there."""
    with pytest.raises(ModelConfigError) as caught:
        parse_config(text)
    assert caught.value.line == line
    assert abs((caught.value.column or 1) - column) <= 1
    assert words in caught.value.reason
    assert str(caught.value).startswith(f"{line}:")


def test_good_configuration_has_no_findings() -> None:
    """What Triton accepts is accepted."""
    assert reasons(GOOD) == []


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("max_batch_size: 8", "max_batch_size: -4", "max_batch_size is -4"),
        ('name: "m"', 'name: "other"', "the folder is 'm'"),
        ('backend: "python"', "", "a backend is missing"),
        ('backend: "python"', 'platform: "onnx"', "is unknown"),
        ('backend: "python"', 'backend: "python" platform: "tensorrt_plan"', "does not belong"),
        ('backend: "python"', 'platform: "ensemble"', "ensembles"),
        ('input [ { name: "text" data_type: TYPE_STRING dims: [ 1 ] } ]', "", "no input is declared"),
        ('output [ { name: "vector" data_type: TYPE_FP32 dims: [ -1, 4 ] } ]', "", "no output is declared"),
        ("data_type: TYPE_STRING ", "", "data_type is missing"),
        ("dims: [ 1 ]", "", "dims are missing"),
        ("dims: [ 1 ]", "dims: [ 0 ]", "at least 1, or -1"),
        ("dims: [ 1 ]", "dims: [ -2 ]", "at least 1, or -1"),
        ("dims: [ 1 ]", "dims: [ 4 ] reshape { shape: [ 3 ] }", "not as many elements"),
        ("dims: [ 1 ] } ]", 'dims: [ 1 ] }, { name: "text" data_type: TYPE_BOOL dims: [ 1 ] } ]', "declared 2 times"),
        ('name: "text" ', "", "name is missing"),
        ("count: 1", "count: -1", "count is -1"),
        ("latest { num_versions: 2 }", "latest { }", "num_versions of at least 1"),
        ("latest { num_versions: 2 }", "specific { }", "name at least one"),
        ("latest { num_versions: 2 }", "specific { versions: [ 0 ] }", "name at least one"),
        ("max_batch_size: 8", "max_batch_size: 8 dynamic_batching { preferred_batch_size: [ 9 ] }", "preferred_batch"),
        (
            "count: 1 } ]",
            'count: 1 } ] parameters { key: "cache" value { string_value: "no" } }',
            "true, false, on or off",
        ),
        (
            "count: 1 } ]",
            'count: 1 } ] parameters { key: "cache_ttl_seconds" value { string_value: "-1" } }',
            "a number above 0",
        ),
        (
            "count: 1 } ]",
            'count: 1 } ] parameters { key: "built_files" value { string_value: "../x" } }',
            "in the version folder only",
        ),
        (
            "count: 1 } ]",
            'count: 1 } ] parameters { key: "built_files" value { string_value: "a, ../x" } }',
            "'../x'",
        ),
        ("count: 1 } ]", 'count: 1 } ] default_model_filename: "../model.py"', "names the file '../model.py'"),
        ("count: 1 } ]", 'count: 1 } ] cc_model_filenames { key: "7.5" value: "/etc/x" }', "names the file '/etc/x'"),
        ("-1, 4 ]", '-1, 4 ] label_filename: "a/../../x"', "names the file 'a/../../x'"),
        ("kind: KIND_CPU", "kind: KIND_CPU gpus: [ 0 ]", "KIND_CPU with gpus"),
        ("dims: [ 1 ]", "dims: [ 1 ] format: FORMAT_NCHW", "needs 3 dims"),
        ("max_batch_size: 8", "max_batch_size: 8 dynamic_batching { priority_levels: 2 }", "it is 1 to 2"),
        ("max_batch_size: 8", 'max_batch_size: 8 model_warmup { name: "w" batch_size: 9 }', "warm-up batch_size is 9"),
    ],
)
def test_semantic_fault_is_found_before_a_server(old: str, new: str, words: str) -> None:
    """What the parser passes and a server, or the pipeline, refuses is found here."""
    assert old in GOOD
    found = reasons(GOOD.replace(old, new))
    assert [reason for reason in found if words in reason], found


def test_finding_names_the_line_of_its_field() -> None:
    """A finding points at the field in the owner's text, past comments and strings that look like it."""
    text = '# max_batch_size: 1\nname: "max_batch_size: {"\n' + GOOD.replace('name: "m"\n', "").replace(": 8", ": -1")
    parsed = parse_config(text)
    found = {finding.reason: finding.line for finding in findings(parsed.config, "max_batch_size: {", parsed.lines)}
    assert [line for reason, line in found.items() if "max_batch_size is -1" in reason] == [4]


WRONG = """name:
  "other"
platform: "x"
max_batch_size: 0
input {
  name: "a"
  data_type: TYPE_FP32
  dims: [ 1,
    0 ]
}
input {
  name: "a" dims: 2
  reshape { }
  allow_ragged_batch: true
}
output [
  { dims: 1
    data_type: TYPE_INVALID },
  { name: "z" data_type: TYPE_FP32
    dims: [ 2 ] reshape {
      shape: 3 } }
]
instance_group [ { count: 1 }, { kind: KIND_CPU
  count: -1 } ]
dynamic_batching {
  preferred_batch_size: [ 1 ] }
version_policy { latest { num_versions:
  0 } }
parameters { key: "cache"
  value { string_value: "x" } }
"""


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("name is 'other'", 1),
        ("platform 'x' is unknown", 3),
        ("input 'a': dims", 9),
        ("declared 2 times", 12),
        ("input 'a': data_type", 11),
        ("empty reshape", 13),
        ("allow_ragged_batch", 14),
        ("output '': name is missing", 17),
        ("output '': data_type", 18),
        ("output 'z': reshape", 21),
        ("count is -1", 24),
        ("preferred_batch_size 1", 26),
        ("num_versions of at least 1", 27),
        ("parameter cache", 30),
    ],
)
def test_every_finding_has_the_line_of_the_very_field(words: str, line: int) -> None:
    """Nested fields have their own lines; what is missing is told at what should hold it."""
    parsed = parse_config(WRONG)
    found = [finding.line for finding in findings(parsed.config, "m", parsed.lines) if words in finding.reason]
    assert found == [line]


def test_configuration_beyond_measure_is_refused() -> None:
    """A text of more than a megabyte is no configuration."""
    with pytest.raises(ModelConfigError, match="at most"):
        parse_config("#" * (1 << 20) + "#")


def test_signature_reads_every_switch() -> None:
    """Workers learn tensors, batch axis, kind of protocol, and the owner's cache switches."""
    plain = signature(parse_config(GOOD).config)
    assert plain.inputs == (TensorSpec(name="text", datatype="BYTES", dims=(1,)),)
    assert plain.outputs == (TensorSpec(name="vector", datatype="FP32", dims=(-1, 4)),)
    assert (plain.max_batch_size, plain.decoupled, plain.stateful) == (8, False, False)
    assert (plain.cacheable, plain.cache_ttl_seconds, plain.client_batching) == (True, None, True)
    switched = GOOD.replace("dims: [ 1 ]", "dims: [ 1 ] optional: true") + (
        'parameters { key: "cache" value { string_value: "Off" } }'
        'parameters { key: "cache_ttl_seconds" value { string_value: "2.5" } }'
        'parameters { key: "client_batching" value { string_value: "false" } }'
        "model_transaction_policy { decoupled: true } sequence_batching { }"
    )
    assert reasons(switched) == []
    other = signature(parse_config(switched).config)
    assert other.inputs[0].optional
    assert (other.decoupled, other.stateful) == (True, True)
    assert (other.cacheable, other.cache_ttl_seconds, other.client_batching) == (False, 2.5, False)


def test_serving_copy_names_its_versions() -> None:
    """The serving copy loads exactly the versions it is made for, with Triton's own cache off."""
    source = parse_config(GOOD + "response_cache { enable: true }").config
    serving = serving_config(source, ["10", "9"])
    assert list(serving.version_policy.specific.versions) == [9, 10]
    assert not serving.response_cache.enable
    assert source.version_policy.latest.num_versions == 2


def test_text_is_the_same_for_the_same_configuration() -> None:
    """The order in which an owner wrote parameters changes no byte of the serving copy."""
    one, two = (f'parameters {{ key: "{key}" value {{ string_value: "1" }} }}' for key in "ab")
    first, second = (parse_config(GOOD + parts).config for parts in (one + two, two + one))
    assert config_text(first) == config_text(second)
    assert config_text(parse_config(config_text(first)).config) == config_text(first)


@given(st.text(max_size=200))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    """No text makes the parser fail in another way than with ModelConfigError."""
    try:
        parsed = parse_config(text)
    except ModelConfigError:
        return
    assert isinstance(parsed, ConfigText)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("latest { num_versions: 2 }", "all { }"),
        ("count: 1", "count: 2"),
        ("instance_group", "dynamic_batching { max_queue_delay_microseconds: 5 } instance_group"),
        ("instance_group", 'parameters { key: "cache" value { string_value: "off" } } instance_group'),
    ],
)
def test_fingerprint_ignores_when_and_where_a_model_runs(old: str, new: str) -> None:
    """A cache is not thrown away for a change that no answer depends on."""
    before, after = (answer_config(parse_config(text).config) for text in (GOOD, GOOD.replace(old, new)))
    assert before == after


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("dims: [ 1 ]", "dims: [ 2 ]"),
        ("max_batch_size: 8", "max_batch_size: 9"),
        ("KIND_CPU", "KIND_GPU"),
        ("instance_group", 'parameters { key: "threads" value { string_value: "2" } } instance_group'),
    ],
)
def test_fingerprint_covers_what_reaches_the_model(old: str, new: str) -> None:
    """What can change an answer changes the fingerprint."""
    before, after = (answer_config(parse_config(text).config) for text in (GOOD, GOOD.replace(old, new)))
    assert fingerprint({}, before) != fingerprint({}, after)


files = st.dictionaries(st.text(min_size=1, max_size=8), st.binary(max_size=8), max_size=4)


@given(files, files, st.text(max_size=4), st.text(max_size=4), st.binary(max_size=4), st.binary(max_size=4))
def test_fingerprints_are_equal_only_for_equal_content(
    one: dict[str, bytes], two: dict[str, bytes], config: str, other: str, script: bytes, script2: bytes
) -> None:
    """No two different contents have one encoding: names, contents, configuration and script are told apart."""
    same = (one, config, script) == (two, other, script2)
    assert (fingerprint(one, config, script) == fingerprint(two, other, script2)) is same


def test_mark_tells_configurations_and_contents_apart() -> None:
    """Another configuration, or another content beside it, is another mark; the same has the same, marked or not."""
    config = serving_config(parse_config(GOOD).config, ["1"])
    mark = content_mark(with_content_mark(config, "files"))
    assert mark is not None
    assert content_mark(with_content_mark(with_content_mark(config, "others"), "files")) == mark
    others = [
        with_content_mark(config, "other files"),
        with_content_mark(serving_config(config, ["1", "2"]), "files"),
        with_content_mark(serving_config(parse_config(GOOD.replace("count: 1", "count: 2")).config, ["1"]), "files"),
    ]
    assert len({mark, *map(content_mark, others)}) == 4


def test_mark_is_no_part_of_the_configuration() -> None:
    """It changes no fingerprint and no signature, is written and read as the rest, and can be taken off again."""
    config = serving_config(parse_config(GOOD).config, ["1"])
    marked = with_content_mark(config, "files")
    assert content_mark(config) is None
    assert (answer_config(marked), signature(marked)) == (answer_config(config), signature(config))
    assert without_content_mark(marked) == config
    assert content_mark(parse_config(config_text(marked)).config) == content_mark(marked)
