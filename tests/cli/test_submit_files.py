"""Files that requests come from and answers go to: CSV, ids by line, and runs that go on where one was cut short."""

import io
import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.answers_file import AnswersFile, OutputFileError
from pipeline.cli.csv_file import from_csv
from pipeline.cli.request_files import BadLine, InputFileError, Target, from_json_lines, from_text_lines
from pipeline.client.records import RequestRecord
from schemas.decoded import DecodedRequest
from schemas.request import decode_request

RUN = "0123456789ab"
LINE = b'{"model_name": "digits", "inputs": [{"name": "image", "datatype": "FP32", "shape": [1], "data": [1]}]}\n'


def read_csv(text: str | bytes, input_name: str = "", datatype: str = "FP32") -> list[DecodedRequest | BadLine]:
    """The requests of a CSV file's rows."""
    file = io.BytesIO(text.encode() if isinstance(text, str) else text)
    numbers = count()
    target = Target("m", input_name, callback="https://a.b/c")
    records = from_csv(file, "x.csv", target, datatype, lambda number, content: f"r-{next(numbers)}", lambda: 0.0)
    return [decode_request(one.value, one.headers) if isinstance(one, RequestRecord) else one for one in records]


def tensors_of(requests: list[DecodedRequest | BadLine]) -> list[list[tuple[Any, ...]]]:
    """Name, datatype, shape and elements of each request's inputs."""
    return [
        [(one.name, one.datatype, tuple(one.shape), one.value()) for one in request.inputs]
        for request in requests
        if not isinstance(request, BadLine)
    ]


@pytest.mark.parametrize("header", ["", "a,b\r\n"])
def test_csv_rows_are_vectors_of_one_input(header: str) -> None:
    """With an input's name a row is its vector; a first row of words is a header, one of numbers a row."""
    found = tensors_of(read_csv(f"{header}0,1.5\r\n\r\n-2,3e1\r\n", "image"))
    assert found == [[("image", "FP32", (1, 2), [0, 1.5])], [("image", "FP32", (1, 2), [-2, 30])]]


def test_csv_columns_are_inputs() -> None:
    """Without one each column is an input of its own datatype; quotes, commas and line ends belong to the text."""
    text = '\ufeffage:INT64,text:BYTES,ok:BOOL,score\n41,"a ""happy"",\nperson",true,0.5\n'
    ((age, words, known, score),) = tensors_of(read_csv(text))
    assert age == ("age", "INT64", (1, 1), [41])
    assert words == ("text", "BYTES", (1, 1), ['a "happy",\nperson'])
    assert known == ("ok", "BOOL", (1, 1), [True])
    assert score == ("score", "FP32", (1, 1), [0.5])


def test_bad_csv_rows_are_told_with_their_lines() -> None:
    """A row that is none is told by its number, and the rows around it are requests."""
    rows = b'n:INT8\n1\nx\n300\n1,2\n"open\n\xff\n2\n'
    found = read_csv(rows.replace(b'"open\n', b'"a"b\n'))
    assert [one.number if isinstance(one, BadLine) else "good" for one in found] == [
        "good", 3, 4, 5, 6, 7, "good",
    ]  # fmt: skip
    reasons = [one.reason for one in found if isinstance(one, BadLine)]
    assert "'x' is no INT8" in reasons[0]
    assert "the row has 2 fields, the first row has 1" in reasons[2]


@pytest.mark.parametrize("text", ["1,2\n", "a,,b\n", "a:FP99\n"])
def test_csv_header_that_names_no_inputs_is_refused(text: str) -> None:
    """Without an input's name the first row has to name them; what it has instead is shown."""
    with pytest.raises(InputFileError, match=r"x\.csv: the header's column \d"):
        read_csv(text)


def test_callback_is_part_of_every_request() -> None:
    """A callback's URL goes with each line, also in the place of a JSON line's own."""
    (row,) = read_csv("1\n", "x")
    assert not isinstance(row, BadLine)
    own = LINE.replace(b"{", b'{"callback": {"url": "https://mine"}, ', 1)
    lines = io.BytesIO(LINE + own)
    for one in from_json_lines(
        lines, lambda number, content: "r", lambda: 0.0, enable_cache=None, callback="https://x"
    ):
        assert isinstance(one, RequestRecord)
        callback = decode_request(one.value).callback
        assert callback is not None
        assert callback.url == "https://x"
    assert row.callback is not None
    assert row.callback.url == "https://a.b/c"


def opened(path: Path, run: str = RUN, switches: bytes = b"", **options: bool) -> AnswersFile:
    """An answers' file, closed again."""
    answers = AnswersFile(path, run, switches, **({"with_results": True, "continues_ids": True} | options))
    answers.file.close()
    return answers


def written(path: Path, *documents: dict[str, Any], torn: str = "") -> None:
    """An earlier run's answers."""
    path.write_text("".join(json.dumps(one) + "\n" for one in documents) + torn)


def test_ids_say_run_line_and_content(tmp_path: Path) -> None:
    """The same line of the same run has the same id; another line, content, switch or run has another one."""
    answers = opened(tmp_path / "a")
    first = answers.id_of(1, b"text")
    assert first.startswith(f"{RUN}.1.")
    assert opened(tmp_path / "b").id_of(1, b"text") == first
    others = [
        answers.id_of(2, b"text"),
        answers.id_of(1, b"other"),
        opened(tmp_path / "c", switches=b"no cache").id_of(1, b"text"),
        opened(tmp_path / "d", run="ba9876543210").id_of(1, b"text"),
    ]
    assert len({first, *others}) == 5
    assert decode_request(next(iter_records(first)).value).id == first


def iter_records(request_id: str) -> Any:
    """A record with this id, as `submit` makes it: ids are ids of the protocol."""
    return from_text_lines(io.BytesIO(b"x\n"), Target("m", "text"), lambda number, content: request_id, lambda: 0.0)


def test_answered_lines_are_known_again(tmp_path: Path) -> None:
    """What has its result in the file is not asked again, by its line or by its own id; a receipt is no result."""
    path = tmp_path / "a"
    first = opened(path)
    ids = [first.id_of(number, b"text") for number in (1, 2, 3)]
    written(path, {"id": ids[0], "status": "succeeded"}, {"id": ids[1], "offset": 7}, {"id": "own", "status": "failed"})
    again = opened(path, run="ba9876543210")
    assert [again.has_answer(one) for one in (*ids, "own", "other")] == [True, False, False, True, False]
    assert opened(path, with_results=False).has_answer(ids[1])


def test_ids_go_on_where_the_other_side_knows_them(tmp_path: Path) -> None:
    """Over HTTP a request under way keeps its id; over Kafka it has a fresh one, and answered lines are known too."""
    path = tmp_path / "a"
    answered = opened(path).id_of(1, b"text")
    written(path, {"id": answered, "status": "succeeded"})
    over_http, over_kafka = (opened(path, run="ba9876543210", continues_ids=continues) for continues in (True, False))
    assert over_http.id_of(2, b"text").startswith(f"{RUN}.2.")
    assert over_kafka.id_of(2, b"text").startswith("ba9876543210.2.")
    assert over_kafka.has_answer(over_kafka.id_of(1, b"text"))


def test_line_that_was_cut_is_cut_off(tmp_path: Path) -> None:
    """A last line without its end is removed, and its request asked again."""
    path = tmp_path / "a"
    ids = [opened(path).id_of(number, b"text") for number in (1, 2)]
    written(path, {"id": ids[0], "status": "succeeded"}, torn=json.dumps({"id": ids[1], "status": "succeeded"}))
    answers = opened(path)
    assert [answers.has_answer(one) for one in ids] == [True, False]
    assert path.read_text().count("\n") == 1
    assert path.read_text().endswith("}\n")


@pytest.mark.parametrize("text", ["a,b\n", "{}\n", "[1]\n", '{"id": 1}\n'])
def test_foreign_file_is_left_alone(tmp_path: Path, text: str) -> None:
    """A file of something else is refused with its line, and keeps its content."""
    path = tmp_path / "a"
    path.write_text(text)
    with pytest.raises(OutputFileError, match="line 1 is no answer of `submit`"):
        opened(path)
    assert path.read_text() == text


def test_starting_over_replaces_the_file(tmp_path: Path) -> None:
    """Answers to what was typed replace those of the time before."""
    path = tmp_path / "a"
    path.write_text("whatever")
    assert len(opened(path, starts_over=True)) == 0
    assert path.read_text() == ""


def test_file_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    """A folder that is not there is told with the path."""
    with pytest.raises(OutputFileError, match=r"nowhere/a: No such file"):
        opened(tmp_path / "nowhere" / "a")
