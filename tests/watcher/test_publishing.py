"""A version put into the repository: whole or not at all, once, beside whoever else is there."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import ModelRepositoryError
from pipeline.watcher.repository.publishing import Published, PublishRefused, publish
from pipeline.watcher.repository.scan import scan
from pipeline.watcher.repository.version_scan import QuietTime
from tests.watcher.folders import onnx_bytes, onnx_model, python_model, tree


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model file to publish."""
    path = tmp_path / "resnet.onnx"
    path.write_bytes(onnx_bytes())
    return path


def contents(repository: Path) -> dict[str, bytes]:
    return {name: content for name, (content, _) in tree(repository).items() if not name.endswith("MANIFEST.json")}


def test_file_becomes_the_first_version(repository: Path, source: Path) -> None:
    """An ONNX file alone is a model: published under the name its backend opens, and complete at once."""
    done = publish(repository, source, "resnet")
    assert done == Published("resnet", "1", repository / "resnet" / "1", 1, len(onnx_bytes()), True, True)
    assert contents(repository) == {"resnet/1/model.onnx": onnx_bytes()}
    found = scan(repository, QuietTime(60.0, time.time))
    assert (found.models[0].selected, found.faults, found.unfinished) == (("1",), (), ())
    modes = {path.stat().st_mode & 0o777 for path in repository.rglob("*")}
    assert modes == {0o755, 0o644}


def test_next_counts_from_the_highest(repository: Path, source: Path, tmp_path: Path) -> None:
    """`next` is one more than the highest number that is there, also of a version that is no good."""
    publish(repository, source, "resnet", "7")
    other = tmp_path / "other.onnx"
    other.write_bytes(onnx_bytes(factor=2.0))
    assert publish(repository, other, "resnet", "next").version == "8"
    (repository / "resnet" / "30").mkdir()
    other.write_bytes(onnx_bytes(factor=3.0))
    assert publish(repository, other, "resnet").version == "31"


def test_same_content_is_published_once(repository: Path, source: Path) -> None:
    """Publishing again what is there changes nothing, by number and by `next`."""
    publish(repository, source, "resnet")
    before = tree(repository)
    for version in (None, "next", "1"):
        done = publish(repository, source, "resnet", version)
        assert (done.version, done.is_new) == ("1", False)
    assert tree(repository) == before
    assert publish(repository, source, "resnet", "2").is_new


def test_version_never_changes(repository: Path, source: Path) -> None:
    """Other content under a number that is there is refused, and names the file."""
    publish(repository, source, "resnet", "1")
    before = tree(repository)
    source.write_bytes(onnx_bytes(factor=2.0))
    with pytest.raises(PublishRefused, match=r"other content: model\.onnx"):
        publish(repository, source, "resnet", "1")
    assert tree(repository) == before


def test_model_folder_brings_its_own_files(repository: Path, tmp_path: Path) -> None:
    """A model folder is published with its configuration and what all versions share; of its versions, one."""
    folder = python_model(tmp_path, "mine", versions=("3",))
    (folder / "labels").mkdir()
    (folder / "labels" / "a.txt").write_text("x", encoding="utf-8")
    (folder / "README.md").write_text("x", encoding="utf-8")
    (folder / ".git").mkdir()
    config = (folder / "config.pbtxt").read_text(encoding="utf-8").replace('name: "mine"', "")
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")
    assert publish(repository, folder, "m").version == "3"
    assert sorted(contents(repository)) == ["m/3/model.py", "m/README.md", "m/config.pbtxt", "m/labels/a.txt"]
    (folder / "4").mkdir()
    (folder / "4" / "model.py").write_text("VERSION = 4\n", encoding="utf-8")
    with pytest.raises(PublishRefused, match="versions 3, 4"):
        publish(repository, folder, "m")
    assert publish(repository, folder, "m", "4").path == repository / "m" / "4"
    assert [version.number for version in scan(repository).models[0].versions] == ["3", "4"]


def test_flat_folder_is_one_version(repository: Path, tmp_path: Path) -> None:
    """A folder of a version's files becomes one version; the configuration beside them becomes its model's."""
    folder = tmp_path / "build"
    (folder / "weights").mkdir(parents=True)
    (folder / "weights" / "a.bin").write_bytes(b"a")
    (folder / "model.py").write_text("", encoding="utf-8")
    config = (python_model(tmp_path, "m") / "config.pbtxt").read_text(encoding="utf-8")
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")
    publish(repository, folder, "m")
    assert sorted(contents(repository)) == ["m/1/model.py", "m/1/weights/a.bin", "m/config.pbtxt"]
    (folder / "model.py").write_text("# other\n", encoding="utf-8")
    assert publish(repository, folder, "m").version == "2"
    (folder / "config.pbtxt").write_text(config + "# other\n", encoding="utf-8")
    with pytest.raises(PublishRefused, match="not what the model has"):
        publish(repository, folder, "m")


def test_links_are_followed_once(repository: Path, source: Path, tmp_path: Path) -> None:
    """What a link leads to is copied: the repository depends on nothing outside of it."""
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "model.onnx").symlink_to(source)
    publish(repository, folder, "resnet")
    published = repository / "resnet" / "1" / "model.onnx"
    assert (published.is_symlink(), published.stat().st_nlink) == (False, 1)
    assert scan(repository).faults == ()


Make = Callable[[Path], object]


@pytest.mark.parametrize(
    ("make", "place", "words"),
    [
        (lambda folder: (folder / "model.onnx").write_bytes(onnx_bytes()[:-30]), "model.onnx", "no whole ONNX"),
        (lambda folder: (folder / "model.onnx.part").touch(), "model.onnx.part", "temporary name"),
        (lambda folder: (folder / "a\nb").touch(), "a\nb", "cannot be seen"),
        (lambda folder: os.mkfifo(folder / "pipe"), "pipe", "neither a file"),
        (lambda folder: (folder / "gone").symlink_to("nowhere"), "gone", "neither a file"),
        (lambda folder: (folder / "model.onnx").rename(folder / "m.bin"), "model.onnx", "is missing"),
        (lambda folder: (folder / "config.pbtxt").write_text("nonsense: 1"), "config.pbtxt", "nonsense"),
        (lambda folder: (folder / "config.pbtxt").write_text("\n\nmax_batch_size: -1"), "config.pbtxt", "is -1"),
        (lambda folder: (folder / "sample.json").write_text("{}"), "sample.json", "model_name"),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "", "no file of a version"),
    ],
)
def test_fault_is_told_of_what_was_given(repository: Path, tmp_path: Path, make: Make, place: str, words: str) -> None:
    """What `models check` would find is found before anything is there, with the given file's path."""
    folder = tmp_path / "build"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(onnx_bytes())
    make(folder)
    with pytest.raises(PublishRefused) as caught:
        publish(repository, folder, "resnet")
    assert [fault.path for fault in caught.value.faults if words in fault.reason] == [folder / place]
    assert list(repository.iterdir()) == []


def test_fault_keeps_its_line(repository: Path, tmp_path: Path) -> None:
    """A fault in a configuration that is published names the line of the given file."""
    folder = onnx_model(tmp_path, "m", "\n\nmax_batch_size: -1")
    with pytest.raises(PublishRefused) as caught:
        publish(repository, folder, "m")
    assert [(fault.path, fault.line) for fault in caught.value.faults] == [(folder / "config.pbtxt", 3)]


def test_version_is_judged_by_the_model_that_is_there(repository: Path, tmp_path: Path) -> None:
    """A version that the model's own configuration contradicts is refused; so is one of a model at fault."""
    folder = onnx_model(repository, "m", 'input { name: "x" data_type: TYPE_FP32 dims: [ 2 ] }')
    source = tmp_path / "model.onnx"
    source.write_bytes(onnx_bytes(rank_one_output=True))
    assert publish(repository, source, "m").version == "2"
    (folder / "config.pbtxt").write_text('input { name: "z" data_type: TYPE_FP32 dims: [ 2 ] }', encoding="utf-8")
    source.write_bytes(onnx_bytes(factor=2.0))
    with pytest.raises(PublishRefused, match="not in the graph"):
        publish(repository, source, "m")
    (folder / "config.pbtxt").write_text("nonsense", encoding="utf-8")
    with pytest.raises(PublishRefused) as caught:
        publish(repository, source, "m")
    assert caught.value.faults[0].path == folder / "config.pbtxt"
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "config.pbtxt"]


def test_policy_that_does_not_select_is_told(repository: Path, source: Path) -> None:
    """A version that the version_policy leaves out is published, and the answer says that nobody will serve it."""
    onnx_model(repository, "m", "version_policy { specific { versions: [ 1 ] } }", onnx_bytes(factor=2.0))
    done = publish(repository, source, "m")
    assert (done.version, done.is_new, done.is_selected) == ("2", True, False)


@pytest.mark.parametrize(
    ("name", "version", "words"),
    [
        ("../m", None, "a model's name"),
        ("m", "01", "positive integer"),
        ("m", "-1", "positive"),
        ("m", "２", "positive"),
    ],
)
def test_wrong_name_or_number_is_refused(
    repository: Path, source: Path, name: str, version: str | None, words: str
) -> None:
    """A name that leads elsewhere, or no number, is refused with what was expected."""
    with pytest.raises(ModelRepositoryError, match=words):
        publish(repository, source, name, version)
    assert list(repository.iterdir()) == []


def test_name_that_is_a_link_is_refused(repository: Path, source: Path, tmp_path: Path) -> None:
    """Nothing is written through a link in the repository."""
    (repository / "m").symlink_to(tmp_path)
    with pytest.raises(PublishRefused, match="a link or a file"):
        publish(repository, source, "m")


def test_missing_source_or_repository_is_named(repository: Path, source: Path) -> None:
    """What is not there is named, with what was expected."""
    with pytest.raises(PublishRefused, match="is not there"):
        publish(repository, source.with_name("gone.onnx"), "m")
    with pytest.raises(ModelRepositoryError, match="PIPELINE_MODEL_REPOSITORY"):
        publish(repository / "gone", source, "m")


def test_publishers_at_once_take_different_numbers(repository: Path, tmp_path: Path) -> None:
    """Eight who publish `next` at the same time get eight versions, each with its own content."""
    sources = []
    for index in range(8):
        path = tmp_path / f"{index}.onnx"
        path.write_bytes(onnx_bytes(factor=float(index + 1)))
        sources.append(path)
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda path: publish(repository, path, "m"), sources))
    assert sorted(int(each.version) for each in done) == list(range(1, 9))
    for each, path in zip(done, sources, strict=True):
        assert (each.path / "model.onnx").read_bytes() == path.read_bytes()
    assert scan(repository).faults == ()
    assert not list(repository.rglob(".publish-*"))


def test_number_taken_meanwhile_is_no_overwrite(
    repository: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever loses the race for a number by a moment leaves the winner's content as it is."""
    rename = Path.rename
    winner = onnx_bytes(factor=5.0)

    def overtaken(self: Path, target: Path) -> Path:
        if not (repository / "m" / "1").exists():
            onnx_model(repository, "m", content=winner)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", overtaken)
    assert publish(repository, source, "m").version == "2"
    assert (repository / "m" / "1" / "model.onnx").read_bytes() == winner
    with pytest.raises(PublishRefused, match="other content"):
        publish(repository, source, "m", "1")


def test_disk_that_fails_leaves_nothing(repository: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk in the middle leaves the repository as it was."""

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pipeline.watcher.repository.publishing.sync_file", full)
    with pytest.raises(OSError, match="space"):
        publish(repository, source, "m")
    assert list(repository.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.watcher.repository import publishing
publishing.sync_file = lambda path: os.kill(os.getpid(), signal.SIGKILL)
publishing.publish(Path(sys.argv[1]), Path(sys.argv[2]), "m")
"""


def test_killed_publisher_leaves_no_version(repository: Path, source: Path) -> None:
    """A publisher that is killed half way leaves nothing that anybody serves; the next one removes what is left."""
    done = subprocess.run((sys.executable, "-c", KILLED, str(repository), str(source)), check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = repository.iterdir()
    found = scan(repository)
    assert (found.models, found.faults) == ((), ())
    publish(repository, source, "m")
    assert left.exists()  # it is young: somebody may be about to lock it
    os.utime(left, (1, 1))
    publish(repository, source, "m")
    assert not left.exists()


def test_publisher_at_work_is_left_alone(repository: Path, source: Path) -> None:
    """A copy that takes long is not taken for one that a crash left: its publisher holds it."""
    work = repository / ".publish-slow"
    work.mkdir()
    os.utime(work, (1, 1))
    descriptor = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        publish(repository, source, "m")
        assert work.exists()
    finally:
        os.close(descriptor)


def test_manifest_holds_what_was_published(repository: Path, source: Path) -> None:
    """The manifest names each file, and a file that is changed afterwards is a fault."""
    done = publish(repository, source, "m")
    manifest = json.loads((done.path / "MANIFEST.json").read_text(encoding="utf-8"))
    assert list(manifest["files"]) == ["model.onnx"]
    (done.path / "model.onnx").write_bytes(onnx_bytes(factor=2.0))
    assert "SHA-256" in scan(repository).faults[0].reason


def test_folder_of_another_publisher_may_vanish_at_any_moment(
    repository: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What others copy under hidden names comes and goes while this one looks for what the dead have left."""
    (repository / ".publish-another").mkdir()
    iterdir = Path.iterdir

    def vanishing(self: Path) -> Iterator[Path]:
        if self.name == ".publish-another" and self.exists():
            self.rmdir()
        return iterdir(self)

    monkeypatch.setattr(Path, "iterdir", vanishing)
    assert publish(repository, source, "m").version == "1"
