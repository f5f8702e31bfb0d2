"""The owners' repository: every fault has its test, and hides no other model."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.core.completeness import ManifestEntry
from pipeline.errors import ModelRepositoryError
from pipeline.watcher.repository.manifest import manifest_text
from pipeline.watcher.repository.scan import check_repository, scan
from pipeline.watcher.repository.version_checks import completed_config
from pipeline.watcher.repository.version_scan import QuietTime
from tests.watcher.folders import PYTHON_CONFIG, onnx_bytes, onnx_model, python_model, tree

Break = Callable[[Path], object]

SAMPLE = """{"model_name": "m",
 "inputs": [{"name": "x", "datatype": "FP32",
   "shape": [1, 2],
   "data": [1, 2]}]}"""


def test_whole_models_are_found(tmp_path: Path) -> None:
    """Model folders with numbered versions are found, notes and hidden names are not part of them."""
    folder = python_model(tmp_path, versions=("1", "2", "10"), extra="version_policy { latest { num_versions: 2 } }")
    for name in ("README.md", "build.py", ".gitignore", "1/.hidden", "1/weights.bin", "labels.txt"):
        (folder / name).write_text("x", encoding="utf-8")
    (folder / "sample.json").write_text(SAMPLE, encoding="utf-8")
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


def relink(name: str, target: str) -> Break:
    def apply(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return apply


def refifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def hard_link(path: Path) -> None:
    outside = path.parents[2] / "outside.txt"
    outside.write_text("x", encoding="utf-8")
    path.hardlink_to(outside)


def sparse(path: Path, size: int) -> None:
    with path.open("ab") as file:
        file.truncate(size)


def rename(path: Path, name: str, inner: str | None = None, inner_name: str = "") -> None:
    path.rename(path.with_name(name))
    if inner is not None:
        inside = path.parent / "1" / inner
        inside.rename(inside.with_name(inner_name))


@pytest.mark.parametrize(
    ("break_it", "place", "words"),
    [
        (lambda folder: (folder / "1" / "model.py").unlink(), "1/model.py", "backend 'python' needs it"),
        (write("config.pbtxt", 'name: "m"\nbackend: [\n'), "config.pbtxt", "column"),
        (write("config.pbtxt", PYTHON_CONFIG.format(name="other")), "config.pbtxt", "the folder is 'm'"),
        (lambda folder: (folder / "config.pbtxt").write_bytes(b"\xff\xfe"), "config.pbtxt", "is not UTF-8"),
        (lambda folder: (folder / "config.pbtxt").unlink(), "config.pbtxt", "no input is declared"),
        (write("config.pbtxt", 'name: "m"\n'), "config.pbtxt", "no input is declared"),
        (write("config.pbtxt", 'backend: "onnxruntime"\n'), "1/model.onnx", "backend 'onnxruntime' needs it"),
        (
            lambda folder: rename(folder / "config.pbtxt", "config.txt", "model.py", "model.bin"),
            "1/model.onnx",
            "config.pbtxt must name a backend",
        ),
        (lambda folder: rename(folder / "1" / "model.py", "mоdel.py"), "1/model.py", "only look like its own"),
        (lambda folder: rename(folder / "1" / "model.py", "gone"), "1/model.py", "needs it"),
        (write("01/model.py", ""), "01", "without leading zeros"),
        (write("0/model.py", ""), "0", "positive integers"),
        (write("-3/model.py", ""), "-3", "positive integers"),
        (write("v2/model.py", ""), "v2", "positive integers"),
        (write("2", "a file"), "2", "positive integers"),
        (write("２/model.py", ""), "２", "ASCII digits"),
        (write("٣/model.py", ""), "٣", "ASCII digits"),
        (write("9223372036854775808/model.py", ""), "9223372036854775808", "positive integers"),
        (write("Config.pbtxt", ""), "Config.pbtxt", "config.pbtxt alone"),
        (write("config.pbtxt.txt", ""), "config.pbtxt.txt", "config.pbtxt alone"),
        (write("1/-rf", ""), "1/-rf", "begins with a dash"),
        (write("1/a\nb", ""), "1/a\nb", "cannot be seen"),
        (write("1/a\u202eb", ""), "1/a\u202eb", "cannot be seen"),
        (write("1/a ", ""), "1/a ", "space around it"),
        (write("1/a\\b", ""), "1/a\\b", "a backslash"),
        (write("1/e\u0301", ""), "1/e\u0301", "second spelling"),
        (write("labels/-x", ""), "labels/-x", "begins with a dash"),
        (write("1/-d/model.py", ""), "1/-d", "begins with a dash"),
        (lambda folder: (folder / "1" / "\udcff").mkdir(), "1/\udcff", "not UTF-8"),
        (lambda folder: (folder / "3").mkdir(), "3/model.py", "needs it"),
        (write("1/" + "d/" * 17 + "x", ""), "1/" + "/".join("d" * 16), "folders deep"),
        (lambda folder: sparse(folder / "1" / "huge", 1 << 41), "1", "more than 1099511627776 bytes"),
        (lambda folder: sparse(folder / "config.pbtxt", (1 << 20) + 1), "config.pbtxt", "are the most"),
        (write("1/model.py.part", ""), "1/model.py.part", "temporary name"),
        (write("1/weights~", ""), "1/weights~", "temporary name"),
        (write("1/.weights.bin.Ab3xY9", ""), "1/.weights.bin.Ab3xY9", "temporary name"),
        (link("1/secret", "/etc/hostname"), "1/secret", "leads out of the repository"),
        (link("1/gone", "nowhere"), "1/gone", "neither a file"),
        (link("1/loop", "loop"), "1/loop", "neither a file"),
        (link("1/folder", "../../other"), "1/folder", "neither a file"),
        (link("sample.json", "/etc/hostname"), "sample.json", "leads out of the repository"),
        (link("build.py", "/etc/hostname"), "build.py", "leads out of the repository"),
        (link("labels.txt", "/etc/hostname"), "labels.txt", "leads out of the repository"),
        (relink("config.pbtxt", "/etc/hostname"), "config.pbtxt", "leads out of the repository"),
        (lambda folder: hard_link(folder / "1" / "twin.py"), "1/twin.py", "a hard link"),
        (lambda folder: os.mkfifo(folder / "sample.json"), "sample.json", "neither a file"),
        (lambda folder: refifo(folder / "config.pbtxt"), "config.pbtxt", "neither a file"),
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


@contextmanager
def ordinary_user() -> Iterator[None]:
    """What may not be read is read by root all the same: the test looks as somebody else."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def open_to_all(path: Path) -> None:
    """Makes a test's folder one that another user reaches."""
    for folder in (path, *path.parents[: len(path.parents) - 2]):
        folder.chmod(folder.stat().st_mode | 0o755)


def refuse(repository: Path, words: str) -> None:
    with ordinary_user(), pytest.raises(ModelRepositoryError, match=words) as caught:
        check_repository(repository)
    assert "PIPELINE_MODEL_REPOSITORY" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_start_needs_a_repository_to_read_and_write(tmp_path: Path) -> None:
    """A start with a repository that cannot be used ends in one line that names the setting."""
    repository = tmp_path / "repository"
    open_to_all(tmp_path)
    refuse(repository, "not there")
    repository.touch()
    refuse(repository, "a file")
    repository.unlink()
    repository.mkdir()
    for mode, words in ((0o555, "may not write into"), (0o333, "may not read")):
        repository.chmod(mode)
        refuse(repository, words)
    repository.chmod(0o777)
    with ordinary_user():
        check_repository(repository)


def test_read_only_repository_is_still_looked_at(tmp_path: Path) -> None:
    """A repository that becomes read-only is served as before; that it is, is told."""
    repository = tmp_path / "repository"
    python_model(repository)
    repository.chmod(0o555)
    open_to_all(tmp_path)
    with ordinary_user():
        found = scan(repository)
    assert ([model.name for model in found.models], found.writable, found.faults) == (["m"], False, ())


@pytest.mark.parametrize("place", ["closed", "closed/1", "closed/1/model.py", "closed/config.pbtxt", "closed/labels"])
def test_what_cannot_be_read_hides_nothing_else(tmp_path: Path, place: str) -> None:
    """A folder or file that this user may not read is a fault of its own; good models beside it are served."""
    repository = tmp_path / "repository"
    python_model(repository, "a")
    folder = python_model(repository, "closed")
    (folder / "labels").mkdir()
    python_model(repository, "z")
    (repository / place).chmod(0)
    open_to_all(repository)
    with ordinary_user():
        found = scan(repository)
    (repository / place).chmod(0o755)
    assert [model.name for model in found.models if model.name != "closed"] == ["a", "z"]
    (fault,) = found.faults
    assert fault.path in (repository / place, repository / place / "config.pbtxt")
    assert "cannot be read" in fault.reason
    assert found.folders == {"a", "closed", "z"}


def test_model_folder_cannot_be_a_link(tmp_path: Path) -> None:
    """A model folder that is a link is refused, wherever it leads; the repository itself may be one."""
    python_model(tmp_path / "elsewhere", "m")
    repository = tmp_path / "repository"
    python_model(repository, "good")
    (repository / "m").symlink_to(tmp_path / "elsewhere" / "m")
    (repository / "twin").symlink_to("good")
    (tmp_path / "current").symlink_to("repository")
    found = scan(tmp_path / "current")
    assert [model.name for model in found.models] == ["good"]
    assert [fault.path.name for fault in found.faults] == ["m", "twin"]


def test_files_beside_the_models_are_told_when_they_mean_one(tmp_path: Path) -> None:
    """A model file that lies in the repository itself is a fault, other files there are nobody's concern."""
    for name in ("model.onnx", "resnet.onnx", "README.md", "config.pbtxt"):
        (tmp_path / name).write_text("", encoding="utf-8")
    told = scan(tmp_path).faults
    assert [fault.path.name for fault in told] == ["config.pbtxt", "model.onnx", "resnet.onnx"]


def test_too_much_of_anything_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of models, versions and files are bounded; a model beyond a bound hides no other."""
    python_model(tmp_path, "m", versions=("1", "2", "3"))
    folder = python_model(tmp_path, "n")
    (folder / "1" / "more").write_text("", encoding="utf-8")
    python_model(tmp_path, "o")
    monkeypatch.setattr("pipeline.watcher.repository.scan.VERSIONS_MAX", 2)
    monkeypatch.setattr("pipeline.watcher.repository.version_scan.FILES_MAX", 1)
    found = scan(tmp_path)
    assert [model.name for model in found.models] == ["o"]
    assert [fault.reason for fault in found.faults] == [
        "has 3 versions, a model has 2 at most",
        "has more than 1 files",
    ]
    monkeypatch.setattr("pipeline.watcher.repository.scan.MODELS_MAX", 2)
    with pytest.raises(ModelRepositoryError, match="3 folders"):
        scan(tmp_path)


@pytest.mark.parametrize(
    ("extra", "line", "words"),
    [
        ("\n\nversion_policy { specific {\n versions: [ 7 ] } }", 9, "names 7"),
        ('\n\noutput { name: "z"\n data_type: TYPE_FP32\n dims: 0 }', 10, "at least 1"),
        ('\nparameters { key: "cache"\n value {\n string_value: "maybe" } }', 9, "true, false, on or off"),
        ('\noutput { name: "z" data_type: TYPE_FP32 dims: 1\n label_filename: "gone.txt" }', 8, "gone.txt"),
        (
            '\nmodel_warmup { name: "w" batch_size: 1 inputs {\n key: "x" value { input_data_file: "x.bin" } } }',
            7,
            "x.bin",
        ),
        ('\nparameters { key: "built_files"\n value { string_value: "w.bin" } }', 8, "no build.py"),
    ],
)
def test_fault_of_a_field_has_its_line(tmp_path: Path, extra: str, line: int, words: str) -> None:
    """A fault points at the very field, however deep it stands."""
    folder = python_model(tmp_path, extra=extra)
    told = [fault for fault in scan(tmp_path).faults if words in fault.reason]
    assert [(fault.path, fault.line) for fault in told] == [(folder / "config.pbtxt", line)]


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("[1, 2]}]}", "[1, 2]}", 4, "Invalid JSON"),
        ('"name": "x"', '"name": "z"', 2, "not declared"),
        ('"FP32"', '"INT8"', 2, "declared is FP32"),
        ("[1, 2],", "[1, 3],", 4, "3"),
        ('"m"', '"n"', 1, "a sample of 'n'"),
        ("[1, 2]}]", '[1, 2]}, {"name": "q", "datatype": "INT8",\n"shape": [1], "data": [1]}]', 4, "not declared"),
    ],
)
def test_fault_of_a_sample_has_its_line(tmp_path: Path, old: str, new: str, line: int, words: str) -> None:
    """A sample that is no request of its model is told before a server meets it, with the line of the member."""
    folder = python_model(tmp_path)
    assert old in SAMPLE
    (folder / "sample.json").write_text(SAMPLE.replace(old, new, 1), encoding="utf-8")
    found = scan(tmp_path)
    assert [(fault.path, fault.line) for fault in found.faults if words in fault.reason] == [
        (folder / "sample.json", line)
    ], found.faults
    assert found.models == ()
    assert found.folders == {"m"}


def test_fault_is_one_line_whatever_the_name(tmp_path: Path) -> None:
    """A name with a line break in it cannot write a second line into a log."""
    (tmp_path / "m\nforged: line").mkdir()
    (fault,) = scan(tmp_path).faults
    assert "\n" not in str(fault)


class Clock:
    """A wall clock that stands."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_version_that_grows_is_not_complete(tmp_path: Path) -> None:
    """What changed within the quiet time, or since the last look, waits; then it is taken."""
    folder = python_model(tmp_path, versions=("1", "2"))
    clock = Clock(time.time() + 1)
    quiet = QuietTime(5.0, clock, clock)
    found = scan(tmp_path, quiet)
    assert (found.models[0].versions, found.faults) == ((), ())
    assert [version.number for version in found.unfinished] == ["1", "2"]
    assert "less than 5 s ago" in str(found.unfinished[0])
    clock.now += 10
    (model,) = scan(tmp_path, quiet).models
    assert ([version.number for version in model.versions], model.unfinished) == (["1", "2"], ())
    with (folder / "2" / "model.py").open("a") as file:
        file.write("# more\n")
    os.utime(folder / "2" / "model.py", (1, 1))  # as copying programs do
    (model,) = scan(tmp_path, quiet).models
    assert ([version.number for version in model.versions], model.selected) == (["1"], ("1",))
    assert "model.py changed since the last look" in str(model.unfinished[0])
    clock.now += 10
    (model,) = scan(tmp_path, quiet).models
    assert model.selected == ("2",)


def test_time_that_is_set_back_deceives_nobody(tmp_path: Path) -> None:
    """A copying program that gives a file its old time, as most do, does not make it an old file."""
    folder = python_model(tmp_path)
    for path in (folder / "1" / "model.py", folder / "config.pbtxt"):
        os.utime(path, (1, 1))
    (unfinished,) = scan(tmp_path, QuietTime(5.0, Clock(time.time() + 1))).unfinished
    assert unfinished.number == "1"


def test_clock_that_is_set_holds_no_version_and_completes_none(tmp_path: Path) -> None:
    """An hour back leaves what was complete complete; an hour forward makes no copy complete that just paused."""
    folder = python_model(tmp_path, versions=("1", "2"))
    wall, steady = Clock(time.time() + 10), Clock(0.0)
    quiet = QuietTime(5.0, wall, steady)
    assert scan(tmp_path, quiet).models[0].selected == ("2",)
    wall.now -= 3600
    assert scan(tmp_path, quiet).models[0].selected == ("2",)
    with (folder / "2" / "model.py").open("a") as file:
        file.write("# more\n")
    assert "changed since" in str(scan(tmp_path, quiet).unfinished[0])
    wall.now += 7200
    assert "less than 5 s ago" in str(scan(tmp_path, quiet).unfinished[0])
    steady.now += 5
    assert scan(tmp_path, quiet).models[0].selected == ("2",)


def test_configuration_that_changes_holds_its_versions(tmp_path: Path) -> None:
    """A model's own files count for its versions: a config.pbtxt that somebody edits is waited for, too."""
    folder = python_model(tmp_path)
    clock = Clock(time.time() + 10)
    quiet = QuietTime(5.0, clock, clock)
    assert scan(tmp_path, quiet).models[0].selected == ("1",)
    with (folder / "config.pbtxt").open("a") as file:
        file.write("# a note\n")
    assert "config.pbtxt changed" in str(scan(tmp_path, quiet).unfinished[0])


def write_manifest(folder: Path, **changes: ManifestEntry) -> None:
    entries = {
        path.name: ManifestEntry(path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in folder.iterdir()
        if path.name != "MANIFEST.json"
    }
    (folder / "MANIFEST.json").write_text(manifest_text(entries | changes), encoding="utf-8")


def test_manifest_makes_a_version_complete_at_once(tmp_path: Path) -> None:
    """A version with all that its manifest names waits for no quiet time, and the manifest is none of its files."""
    folder = python_model(tmp_path)
    write_manifest(folder / "1")
    (model,) = scan(tmp_path, QuietTime(5.0, time.time)).models
    assert (model.selected, model.versions[0].files, model.unfinished) == (("1",), ("model.py",), ())


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda folder: write_manifest(folder, more=ManifestEntry(5, "0" * 64)), "more is in the manifest"),
        (lambda folder: (folder / "extra").touch(), "extra is there and not in the manifest"),
        (lambda folder: (folder / "model.py").write_text("", encoding="utf-8"), "has 0 bytes, the manifest says"),
        (lambda folder: (folder / "model.py").write_text("VERSION = 2\n", encoding="utf-8"), "SHA-256"),
        (lambda folder: (folder / "MANIFEST.json").write_text("{", encoding="utf-8"), "Invalid JSON"),
        (lambda folder: (folder / "MANIFEST.json").write_text('{"files": {}}', encoding="utf-8"), "files"),
        (lambda folder: write_manifest(folder, **{"../x": ManifestEntry(5, "0" * 64)}), "'../x'"),
        (lambda folder: relink("MANIFEST.json", "/etc/hostname")(folder), "a plain file"),
    ],
)
def test_manifest_that_is_not_met_holds_the_version(tmp_path: Path, break_it: Break, words: str) -> None:
    """What differs from the manifest is not served: awaited while somebody may be copying, then a fault."""
    folder = python_model(tmp_path)
    write_manifest(folder / "1")
    break_it(folder / "1")
    clock = Clock(time.time())
    quiet = QuietTime(5.0, clock, clock)
    found = scan(tmp_path, quiet)
    assert (found.models[0].versions, found.faults) == ((), ())
    assert words in str(found.unfinished[0])
    clock.now += 10
    settled = scan(tmp_path, quiet)
    assert words in str(settled.faults[0])
    assert (settled.models, scan(tmp_path).faults) == ((), settled.faults)


def test_backend_follows_from_the_files(tmp_path: Path) -> None:
    """A configuration that names no backend gets the one whose file is there; two of them are no answer."""
    folder = python_model(tmp_path)
    text = (folder / "config.pbtxt").read_text(encoding="utf-8").replace('backend: "python"\n', "")
    (folder / "config.pbtxt").write_text(text, encoding="utf-8")
    found = scan(tmp_path)
    assert found.faults == ()
    config = completed_config(found.models[0], folder / "1")
    assert (config.backend, config.max_batch_size) == ("python", 8)
    (folder / "1" / "model.pt").write_text("", encoding="utf-8")
    assert "must name a backend" in scan(tmp_path).faults[0].reason


def test_scan_writes_nothing(tmp_path: Path) -> None:
    """Looking at a repository changes nothing in it."""
    onnx_model(tmp_path, "a")
    python_model(tmp_path, "b")
    before = tree(tmp_path)
    scan(tmp_path)
    assert tree(tmp_path) == before
