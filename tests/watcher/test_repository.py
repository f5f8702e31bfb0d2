"""The owners' repository: every fault has its test, and hides no other model."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import ModelRepositoryError
from pipeline.watcher.repository import scan
from tests.watcher.folders import PYTHON_CONFIG, onnx_bytes, onnx_model, python_model, tree

Break = Callable[[Path], object]


def test_whole_models_are_found(tmp_path: Path) -> None:
    """Model folders with numbered versions are found, notes and hidden names are not part of them."""
    folder = python_model(tmp_path, versions=("1", "2", "10"), extra="version_policy { latest { num_versions: 2 } }")
    for name in ("README.md", "build.py", "sample.json", ".gitignore", "1/.hidden", "1/weights.bin", "labels.txt"):
        (folder / name).write_text("x", encoding="utf-8")
    (folder / "1" / "__pycache__").mkdir()
    (folder / "1" / "__pycache__" / "model.pyc").write_bytes(b"x")
    (folder / "configs").mkdir()
    (tmp_path / "README.md").write_text("x", encoding="utf-8")
    found = scan(tmp_path)
    assert found.faults == ()
    assert found.writable
    (model,) = found.models
    assert [version.number for version in model.versions] == ["1", "2", "10"]
    assert model.versions[0].files == ("model.py", "weights.bin")
    assert model.shared_files == ("labels.txt",)
    assert model.selected == ("2", "10")


@pytest.mark.parametrize(
    ("policy", "selected"),
    [
        ("", ("3",)),
        ("version_policy { all { } }", ("1", "2", "3")),
        ("version_policy { latest { num_versions: 2 } }", ("2", "3")),
        ("version_policy { latest { num_versions: 9 } }", ("1", "2", "3")),
        ("version_policy { specific { versions: [ 1, 3 ] } }", ("1", "3")),
    ],
)
def test_version_policy_selects(tmp_path: Path, policy: str, selected: tuple[str, ...]) -> None:
    """The owner's policy names the versions; without one it is the highest, as in Triton."""
    python_model(tmp_path, versions=("1", "2", "3"), extra=policy)
    assert scan(tmp_path).models[0].selected == selected


def write(name: str, text: str) -> Break:
    def apply(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")

    return apply


def link(name: str, target: str) -> Break:
    return lambda folder: (folder / name).symlink_to(target)


@pytest.mark.parametrize(
    ("break_it", "place", "words"),
    [
        (lambda folder: (folder / "1" / "model.py").unlink(), "1/model.py", "backend 'python' needs it"),
        (write("config.pbtxt", 'name: "m"\nbackend: [\n'), "config.pbtxt", "column"),
        (write("config.pbtxt", PYTHON_CONFIG.format(name="other")), "config.pbtxt", "the folder is 'm'"),
        (lambda folder: (folder / "config.pbtxt").write_bytes(b"\xff\xfe"), "config.pbtxt", "is not UTF-8"),
        (lambda folder: (folder / "config.pbtxt").unlink(), "1/model.onnx", "config.pbtxt must name a backend"),
        (write("config.pbtxt", 'name: "m"\n'), "1/model.onnx", "config.pbtxt must name a backend"),
        (write("01/model.py", ""), "01", "without leading zeros"),
        (write("0/model.py", ""), "0", "positive integers"),
        (write("-3/model.py", ""), "-3", "positive integers"),
        (write("v2/model.py", ""), "v2", "positive integers"),
        (write("2", "a file"), "2", "positive integers"),
        (write("1/model.py.part", ""), "1/model.py.part", "temporary name"),
        (write("1/weights~", ""), "1/weights~", "temporary name"),
        (write("1/.weights.bin.Ab3xY9", ""), "1/.weights.bin.Ab3xY9", "temporary name"),
        (link("1/secret", "/etc/hostname"), "1/secret", "leads out of the repository"),
        (link("1/gone", "nowhere"), "1/gone", "neither a file"),
        (link("2", "1"), "2", "cannot be a link"),
        (lambda folder: os.mkfifo(folder / "1" / "pipe"), "1/pipe", "neither a file"),
    ],
)
def test_fault_is_told_with_its_place(tmp_path: Path, break_it: Break, place: str, words: str) -> None:
    """A fault names file and reason, and the model beside it is served all the same."""
    folder = python_model(tmp_path)
    python_model(tmp_path, "other")
    break_it(folder)
    found = scan(tmp_path)
    told = [fault for fault in found.faults if words in fault.reason]
    assert [fault.path for fault in told] == [folder / place], found.faults
    assert "other" in [model.name for model in found.models]


def test_fault_of_a_text_has_its_line(tmp_path: Path) -> None:
    """A wrong field in config.pbtxt is told with its line."""
    folder = python_model(tmp_path)
    (folder / "config.pbtxt").write_text('name: "m"\nbackend: "python"\nnonsense: 1\n', encoding="utf-8")
    (fault,) = scan(tmp_path).faults
    assert (fault.line, str(fault).startswith(f"{folder / 'config.pbtxt'}:3: ")) == (3, True)


def test_one_bad_version_leaves_the_others(tmp_path: Path) -> None:
    """A version without its file is left out; the highest good one is selected."""
    folder = python_model(tmp_path, versions=("1", "2"))
    (folder / "2" / "model.py").unlink()
    found = scan(tmp_path)
    assert [version.number for version in found.models[0].versions] == ["1"]
    assert found.models[0].selected == ("1",)
    assert len(found.faults) == 1


def test_specific_version_that_is_missing_is_told(tmp_path: Path) -> None:
    """A policy that names a version nobody put there is a fault, and the others are served."""
    python_model(tmp_path, extra="version_policy { specific { versions: [ 1, 7 ] } }")
    found = scan(tmp_path)
    assert found.models[0].selected == ("1",)
    assert "names 7" in found.faults[0].reason


def test_unfinished_folders_are_ignored(tmp_path: Path) -> None:
    """A model or version that is still being copied under a temporary name is neither served nor a fault."""
    folder = python_model(tmp_path)
    for name in ("2.tmp", "3~", ".tmp-4"):
        (folder / name).mkdir()
    python_model(tmp_path, "n.partial")
    found = scan(tmp_path)
    assert found.faults == ()
    assert [version.number for version in found.models[0].versions] == ["1"]


@pytest.mark.parametrize("name", ["with space", "-dash", "ünicode"])
def test_model_name_must_be_plain(tmp_path: Path, name: str) -> None:
    """Model names go into paths, keys and addresses: others are refused."""
    (tmp_path / name / "1").mkdir(parents=True)
    found = scan(tmp_path)
    assert found.models == ()
    assert "a model's name" in found.faults[0].reason


def test_folder_without_versions_is_told(tmp_path: Path) -> None:
    """A model folder without a version is a fault."""
    python_model(tmp_path, versions=())
    assert "no version folder" in scan(tmp_path).faults[0].reason


def test_link_inside_the_repository_is_followed(tmp_path: Path) -> None:
    """A file may be a link to another file of the repository."""
    folder = python_model(tmp_path)
    (tmp_path / "shared.py").write_text("x", encoding="utf-8")
    (folder / "1" / "shared.py").symlink_to(tmp_path / "shared.py")
    found = scan(tmp_path)
    assert found.faults == ()
    assert "shared.py" in found.models[0].versions[0].files


def test_default_model_filename_is_what_is_asked_for(tmp_path: Path) -> None:
    """A model may name the file its backend opens."""
    folder = python_model(tmp_path, extra='default_model_filename: "run.py"')
    assert "run.py" in str(scan(tmp_path).faults[0].path)
    (folder / "1" / "run.py").write_text("", encoding="utf-8")
    assert scan(tmp_path).faults == ()


def test_onnx_model_needs_no_configuration(tmp_path: Path) -> None:
    """An ONNX file alone is a model; a truncated one, or one its configuration contradicts, is a fault."""
    onnx_model(tmp_path, "whole")
    onnx_model(tmp_path, "cut", content=onnx_bytes()[:-30])
    onnx_model(tmp_path, "wrong", config='input { name: "x" data_type: TYPE_INT64 dims: [ 2 ] }')
    found = scan(tmp_path)
    assert [model.name for model in found.models] == ["whole"]
    told = {fault.path.relative_to(tmp_path).parts[0]: fault.reason for fault in found.faults}
    assert "no whole ONNX file" in told["cut"]
    assert "the graph says FP32" in told["wrong"]


def test_built_files_need_a_script(tmp_path: Path) -> None:
    """Files that a build step makes may be missing, if there is a build step."""
    extra = 'parameters { key: "built_files" value { string_value: "weights.bin, words.txt" } }'
    folder = python_model(tmp_path, extra=extra)
    assert "no build.py" in scan(tmp_path).faults[0].reason
    (folder / "build.py").write_text("", encoding="utf-8")
    (folder / "1" / "words.txt").write_text("", encoding="utf-8")
    found = scan(tmp_path)
    assert found.faults == ()
    assert found.models[0].versions[0].built_files == ("weights.bin",)


def test_missing_repository_stops_the_pass(tmp_path: Path) -> None:
    """A repository that is not there, or is no folder, is one clear error."""
    with pytest.raises(ModelRepositoryError, match="PIPELINE_MODEL_REPOSITORY"):
        scan(tmp_path / "nowhere")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ModelRepositoryError, match="no folder"):
        scan(tmp_path / "file")


def test_scan_writes_nothing(tmp_path: Path) -> None:
    """Looking at a repository changes nothing in it."""
    onnx_model(tmp_path, "a")
    python_model(tmp_path, "b")
    before = tree(tmp_path)
    scan(tmp_path)
    assert tree(tmp_path) == before
