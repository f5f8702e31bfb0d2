"""`pipeline submit` with picture files, to the gateway's real routes with an echo behind them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.gateway.protocol.models import Fleet
from schemas.registry import ModelRecord, TensorSpec
from tests.cli.picture_samples import encoded, ink_on_paper
from tests.gateway.protocol_gateway import ScriptedInferences, announced, make_app, model_record, serving

ROWS = [(np.arange(64) + shift) % 17 for shift in (0, 5, 11)]


@pytest.fixture
def inferences() -> ScriptedInferences:
    """What the gateway has behind it."""
    return ScriptedInferences()


def with_inputs(name: str, *inputs: TensorSpec) -> ModelRecord:
    """A model with these inputs."""
    record = model_record(name)
    versions = {
        number: version.model_copy(update={"signature": version.signature.model_copy(update={"inputs": inputs})})
        for number, version in record.versions.items()
        if version.signature is not None
    }
    return record.model_copy(update={"versions": versions})


@pytest.fixture
def url(inferences: ScriptedInferences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The gateway's address; it knows digits, a model of two pictures, and one of texts. The folder has pictures."""
    monkeypatch.chdir(tmp_path)
    for number, row in enumerate(ROWS):
        Path(f"digit{number}.png").write_bytes(encoded(ink_on_paper(row)))
    two = (TensorSpec(name=name, datatype="UINT8", dims=(3, 8, 8)) for name in ("left", "right"))
    texts = TensorSpec(name="text", datatype="BYTES", dims=(1,))
    models = announced(model_record(), with_inputs("pair", *two), with_inputs("texts", texts))
    with serving(make_app(inferences, Fleet(models))) as address:
        yield f"http://{address}"


def submit(url: str, *arguments: str, output: str = "answers.jsonl") -> tuple[int, dict[str, Any], str]:
    """Exit code, summary and standard error."""
    result = CliRunner().invoke(app, ("submit", *arguments, "--json", "--output", output, "--url", url))
    return result.exit_code, json.loads(result.stdout or "{}"), result.stderr


def answers(path: str = "answers.jsonl") -> list[dict[str, Any]]:
    """What is in the file of answers."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


DIGITS = ("--model", "digits", "--invert", "--scale", "16/255")


def test_pictures_are_answered_in_order_by_name(url: str) -> None:
    """Each file is a request of the model's own input, datatype and shape, and its answer says which file it was."""
    code, summary, _ = submit(url, "digit2.png", "digit[01].png", *DIGITS)
    assert (code, summary["sent"], summary["succeeded"]) == (0, 3, 3)
    found = answers()
    assert [answer["file"] for answer in found] == ["digit2.png", "digit0.png", "digit1.png"]
    for answer, row in zip(found, (ROWS[2], ROWS[0], ROWS[1]), strict=True):
        (tensor,) = answer["outputs"]
        assert (tensor["name"], tensor["datatype"], tensor["shape"]) == ("image", "FP32", [1, 64])
        assert np.abs(np.array(tensor["data"]).reshape(-1) - row).max() < 0.04


def test_one_bad_picture_stops_no_other(url: str) -> None:
    """What is no picture, is not there, or is a folder is told by its name, why, and what was expected."""
    Path("broken.png").write_bytes(Path("digit0.png").read_bytes()[:60])
    Path("notes.png").write_text("not a picture")
    Path("folder.png").mkdir()
    code, summary, err = submit(url, "broken.png", "*.png", "missing.jpg", "nothing/*.png", *DIGITS)
    assert (code, summary["succeeded"], summary["bad_lines"]) == (1, 3, 6)
    assert [answer["file"] for answer in answers()] == ["digit0.png", "digit1.png", "digit2.png"]
    assert [line.split(": ")[:2] for line in err.splitlines()] == [
        ["broken.png", "it is broken or cut short, a whole picture was expected"],
        ["broken.png", "it is broken or cut short, a whole picture was expected"],
        ["folder.png", "it is no file"],
        ["notes.png", "it is none of PNG, JPEG, BMP, GIF, TIFF, WEBP; it begins with b'not a pi'"],
        ["missing.jpg", "No such file or directory"],
        ["nothing/*.png", "No such file or directory"],
    ]


def test_name_with_marks_of_a_pattern_is_a_name(url: str) -> None:
    """A file that is there is meant, whatever its name looks like, and whatever that would match."""
    for name in ("scan[1].png", "scan1.png"):
        Path(name).write_bytes(Path("digit0.png").read_bytes())
    assert submit(url, "scan[1].png", *DIGITS)[0] == 0
    assert [answer["file"] for answer in answers()] == ["scan[1].png"]


def test_run_with_pictures_goes_on(url: str, inferences: ScriptedInferences) -> None:
    """A second run into the same file asks nothing again; a picture that changed, or another option, is asked."""
    assert submit(url, "digit*.png", *DIGITS)[1]["sent"] == 3
    assert submit(url, "digit*.png", *DIGITS)[1]["skipped"] == 3
    Path("digit1.png").write_bytes(encoded(ink_on_paper(ROWS[2])))
    _, summary, _ = submit(url, "digit*.png", *DIGITS)
    assert (summary["sent"], summary["skipped"]) == (1, 2)
    assert submit(url, "digit*.png", "--model", "digits")[1]["sent"] == 3
    assert len(inferences.records) == 7


def test_receipts_say_whose_they_are(url: str) -> None:
    """Without waiting, too, a line has its file."""
    assert submit(url, "digit0.png", "--no-wait", *DIGITS)[0] == 0
    assert answers()[0].keys() == {"file", "id", "location"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "nothing"), "model_name: 'nothing' is not served (served: digits, pair, texts)"),
        (("--model", "digits", "--version", "7"), "model_version: '7' of 'digits' is not served"),
        (("--model", "pair"), "has 2 inputs (left UINT8 [-1, 3, 8, 8], right UINT8 [-1, 3, 8, 8]): --input says which"),
        (("--model", "pair", "--input", "up"), "--input is 'up': the model pair has left"),
        (("--model", "pair", "--input", "left", "--scale", "1/255"), "--scale, --mean and --std are for floats"),
        (("--model", "texts"), "the input text BYTES [-1, 1] takes no pixels"),
        (("--model", "a/b"), "there is nothing at '/v2/models/a/b'"),
    ],
)
def test_model_that_takes_no_picture_is_one_line(url: str, arguments: tuple[str, ...], words: str) -> None:
    """What the model is and what was expected, before anything is sent."""
    code, _, err = submit(url, "digit0.png", *arguments, output="none.jsonl")
    assert (code, err.count("\n")) == (1, 1), err
    assert words in err


def test_input_that_is_named_is_the_pictures(url: str, inferences: ScriptedInferences) -> None:
    """Of several inputs the one that --input says; colours for three channels, of any picture."""
    code, summary, err = submit(url, "digit0.png", "--model", "pair", "--input", "right")
    assert (code, summary["succeeded"]) == (0, 1), err
    (tensor,) = answers()[0]["outputs"]
    assert (tensor["name"], tensor["datatype"], tensor["shape"]) == ("right", "UINT8", [1, 3, 8, 8])
