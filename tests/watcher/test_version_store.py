"""The store on a disk that is full, under owners who change and take away what is being copied, and after a crash."""

import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.core.model_config import parse_config
from pipeline.errors import ModelRepositoryError
from pipeline.watcher.serving import version_store
from pipeline.watcher.serving.folder import ServingFolder
from pipeline.watcher.serving.version_store import CopyPostponed, StoredFiles, VersionStore, digest_of
from tests.watcher.folders import PYTHON_CONFIG, tree

MIB = 1 << 20
NAMES = ("a.bin", "b.bin")


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """An owner's version folder of two files, 300 KiB each."""
    folder = tmp_path / "repository" / "m" / "1"
    folder.mkdir(parents=True)
    for name in NAMES:
        (folder / name).write_bytes(name.encode() * 60_000)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    """A store on a disk with space."""
    return VersionStore(tmp_path / "serving.versions")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "pipeline-test", place], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted by this user: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def put(store: VersionStore, folder: Path, label: str = "1") -> StoredFiles:
    return store.put("m", label, folder, NAMES)


def fill(disk: Path) -> Path:
    """A file that takes all the space there is."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return path
    return path


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process may grow beyond that: the kernel refuses it as a disk does, whoever asks."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_full_disk_postpones_the_copy_and_keeps_nothing_of_it(disk: Path, version: Path) -> None:
    """The words are the same each time, no half copy stays, and with space again the version is stored."""
    filler = fill(disk)
    with filler.open("r+b") as file:
        file.truncate(filler.stat().st_size - 400 * 1024)  # the first file fits, the second does not
    store = VersionStore(disk / "serving.versions")
    told = set()
    for _ in range(2):
        with pytest.raises(CopyPostponed, match="No space left on device") as refused:
            put(store, version)
        told.add(str(refused.value))
    assert told == {f"{version}: cannot be copied into {disk / 'serving.versions'} now: No space left on device"}
    assert tree(disk / "serving.versions") == {}
    filler.unlink()
    assert {name: digest_of(put(store, version).files / name) for name in NAMES} == {
        name: digest_of(version / name) for name in NAMES
    }


def test_file_that_the_disk_refuses_postpones_the_copy(store: VersionStore, version: Path, tmp_path: Path) -> None:
    """A limit on the size of files, which needs no mount: told as the disk's, not as the owner's fault."""
    with file_size_limit(100 * 1024), pytest.raises(CopyPostponed, match="File too large"):
        put(store, version)
    assert tree(tmp_path / "serving.versions") == {}
    assert put(store, version).files.is_dir()


def test_store_that_cannot_be_written_is_named(store: VersionStore, version: Path, tmp_path: Path) -> None:
    """Whatever it is that stands in the way: the store is at fault then, and not the owner's file."""
    (tmp_path / "serving.versions").touch()
    with pytest.raises(CopyPostponed, match=r"cannot be copied into .*serving\.versions now: Not a directory"):
        put(store, version)


def test_full_disk_leaves_the_old_tree_serving(disk: Path, version: Path) -> None:
    """A tree that cannot be written whole is not exchanged, and what was made of it goes before the next is made."""
    serving = ServingFolder(disk / "serving")
    stored = put(VersionStore(disk / "serving.versions"), version)
    config = parse_config(PYTHON_CONFIG.format(name="m")).config
    serving.serve("m", config, {"1": stored}, None)
    before = tree(disk / "serving")
    filler = fill(disk)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left on device"):
            serving.serve("m", config, {"1": stored, "2": stored}, None)
        assert tree(disk / "serving") == before
    assert len(list((disk / "serving.versions" / "m").glob(".tmp-*"))) <= 1
    filler.unlink()
    serving.serve("m", config, {"1": stored, "2": stored}, None)
    assert set(tree(disk / "serving" / "m" / "2")) == set(NAMES)
    assert list((disk / "serving.versions" / "m").glob(".tmp-*")) == []


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("happens", "words"),
    [
        (lambda folder: grow(folder / "b.bin"), "b.bin: changed while it was copied"),
        (shutil.rmtree, "b.bin: went while it was copied"),
        (lambda folder: shutil.rmtree(folder.parent.parent), "b.bin: went while it was copied"),
        (lambda folder: (folder / "b.bin").unlink(), "b.bin: went while it was copied"),
        (lambda folder: replace_by_folder(folder / "b.bin"), "b.bin: cannot be read now: Is a directory"),
    ],
    ids=["grows", "version removed", "repository removed", "file removed", "file becomes a folder"],
)
def test_what_changes_while_it_is_copied_is_not_stored(
    store: VersionStore,
    version: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    happens: Callable[[Path], None],
    words: str,
) -> None:
    """The copy is given up without a trace and without a word against the version; what is there later is stored."""
    copy = version_store._copy

    def copied(source: Path, target: Path) -> None:
        if source.name == "b.bin":
            happens(version)
        copy(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(version_store, "_copy", copied)
        with pytest.raises(CopyPostponed) as refused:
            put(store, version)
    assert words in str(refused.value)
    assert tree(tmp_path / "serving.versions") == {}
    shutil.rmtree(version, ignore_errors=True)
    version.mkdir(parents=True)
    for name in NAMES:
        (version / name).write_bytes(b"whole")
    assert set(put(store, version).digests) == set(NAMES)


def test_build_that_fails_is_the_version_s_fault(store: VersionStore, version: Path, tmp_path: Path) -> None:
    """It is no reason to wait for: it is told as what it is, and leaves nothing either."""

    def build(copy: Path) -> None:
        raise ModelRepositoryError(copy, "the build failed")

    with pytest.raises(ModelRepositoryError, match="the build failed") as refused:
        store.put("m", "1", version, NAMES, (version / "a.bin", build))
    assert not isinstance(refused.value, CopyPostponed)
    assert tree(tmp_path / "serving.versions") == {}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"files": [], "build_script": ""}', '{"files": {"a": "zz"}, "build_script": ""}']
)
def test_damaged_entry_is_made_again(store: VersionStore, version: Path, text: str) -> None:
    """What a disk lost of an entry ends no process: the entry is not there, and is copied once more."""
    stored = put(store, version)
    (stored.path / "digests.json").write_text(text, encoding="utf-8")
    assert store.find("m", "1", stored.source) is None
    assert put(store, version) == stored
    assert store.find("m", "1", stored.source) == stored


def test_what_a_killed_process_left_goes_with_the_next_copy(store: VersionStore, version: Path) -> None:
    """Whoever writes next removes it: it is the only one that writes, and looks after one model at a time."""
    left = store.new_folder("m")
    (left / "half").write_bytes(b"half")
    other = store.new_folder("n")
    put(store, version)
    assert not left.exists()
    assert other.exists()
