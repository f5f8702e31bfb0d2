"""The serving folder: immutable copies, whole trees, fingerprints of what is served."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.core.model_config import parse_config
from pipeline.errors import ModelRepositoryError
from pipeline.watcher.repository.model_folder import ModelFolder
from pipeline.watcher.repository.scan import scan
from pipeline.watcher.repository.version_checks import completed_config
from pipeline.watcher.serving.build_step import run_build
from pipeline.watcher.serving.folder import ServingFolder, StagedModel
from tests.watcher.folders import python_model, tree, write_sample

BUILT = 'parameters { key: "built_files" value { string_value: "weights.bin" } }'
BUILD = """
def build(version_folder):
    (version_folder / "weights.bin").write_bytes(b"built from " + (version_folder / "model.py").read_bytes())
"""


def serve_all(serving: ServingFolder, repository: Path, name: str = "m") -> tuple[StagedModel, bool]:
    """Stages and serves what the policy selects."""
    found = scan(repository)
    assert found.faults == ()
    model = next(model for model in found.models if model.name == name)
    chosen = [version for version in model.versions if version.number in model.selected]
    stored = {version.number: serving.stage(model, version) for version in chosen}
    config = completed_config(model, next(iter(stored.values())).files)
    return serving.serve(model.name, config, stored, serving.stage_shared(model))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    python_model(tmp_path / "repository", versions=("1", "2"), extra="version_policy { all { } }")
    return tmp_path / "repository"


@pytest.fixture
def serving(tmp_path: Path) -> ServingFolder:
    return ServingFolder(tmp_path / "serving")


def test_tree_has_what_a_server_needs_and_nothing_else(repository: Path, serving: ServingFolder) -> None:
    """Version folders, shared files and a configuration that names the versions are served; notes are not."""
    for name in ("README.md", "build.py", "labels.txt"):
        (repository / "m" / name).write_text("x", encoding="utf-8")
    write_sample(repository / "m")
    before = tree(repository)
    staged, changed = serve_all(serving, repository)
    assert changed
    assert sorted(tree(serving.path / "m")) == [
        ".staged.json",
        "1/model.py",
        "2/model.py",
        "config.pbtxt",
        "labels.txt",
    ]
    config = parse_config((serving.path / "m" / "config.pbtxt").read_text(encoding="utf-8")).config
    assert list(config.version_policy.specific.versions) == [1, 2]
    assert tree(repository) == before
    assert [path.name for path in serving.path.iterdir()] == ["m"]
    read = serving.read("m")
    assert read is not None
    assert read.fingerprints == staged.fingerprints


def test_same_content_is_not_copied_again(repository: Path, serving: ServingFolder) -> None:
    """A second pass over the same content changes no file and no time."""
    first, _ = serve_all(serving, repository)
    before = tree(serving.path.parent)
    (repository / "m" / "1" / "model.py").touch()
    (serving.path / "m" / "1" / "__pycache__").mkdir()
    second, changed = serve_all(ServingFolder(serving.path), repository)
    assert not changed
    assert second.fingerprints == first.fingerprints
    after = tree(serving.path.parent)
    touched = "repository/m/1/model.py"
    assert {**after, touched: before[touched]} == before


def test_changed_content_replaces_the_copy(repository: Path, serving: ServingFolder) -> None:
    """New content under an old number gets a new fingerprint; the other version keeps its own, and its file."""
    first, _ = serve_all(serving, repository)
    kept = (serving.path / "m" / "2" / "model.py").stat().st_ino
    (repository / "m" / "1" / "model.py").write_text("VERSION = 1.5\n", encoding="utf-8")
    second, changed = serve_all(serving, repository)
    assert changed
    assert second.fingerprints["1"] != first.fingerprints["1"]
    assert second.fingerprints["2"] == first.fingerprints["2"]
    assert (serving.path / "m" / "1" / "model.py").read_text(encoding="utf-8") == "VERSION = 1.5\n"
    assert (serving.path / "m" / "2" / "model.py").stat().st_ino == kept


def test_going_back_needs_no_copy(repository: Path, serving: ServingFolder) -> None:
    """What was served before can be served again from the store, until it is swept away."""
    first, _ = serve_all(serving, repository)
    (repository / "m" / "1" / "model.py").write_text("broken", encoding="utf-8")
    serve_all(serving, repository)
    again, changed = serving.serve("m", first.config, first.versions, first.shared)
    assert changed
    assert again.fingerprints == first.fingerprints
    assert (serving.path / "m" / "1" / "model.py").read_text(encoding="utf-8") == "VERSION = 1\n"
    store = serving.path.with_name("serving.versions") / "m"
    assert len(list(store.iterdir())) == 3
    serving.sweep("m")
    assert len(list(store.iterdir())) == 2
    serving.withdraw("m")
    assert serving.read("m") is None


def test_damaged_copy_is_made_again(repository: Path, serving: ServingFolder) -> None:
    """A copy that somebody edited, or deleted from, is not served a second time."""
    serve_all(serving, repository)
    (serving.path / "m" / "1" / "model.py").write_text("edited", encoding="utf-8")
    (serving.path / "m" / "2" / "model.py").unlink()
    _, changed = serve_all(serving, repository)
    assert changed
    assert (serving.path / "m" / "1" / "model.py").read_text(encoding="utf-8") == "VERSION = 1\n"
    assert (serving.path / "m" / "2" / "model.py").is_file()


def test_crash_leaves_the_old_tree(repository: Path, serving: ServingFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that dies before the exchange has changed nothing a server can see."""
    serve_all(serving, repository)
    before = tree(serving.path)
    (repository / "m" / "1" / "model.py").write_text("next", encoding="utf-8")

    def die(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("pipeline.watcher.serving.folder.write_synced", die)
    with pytest.raises(OSError, match="full"):
        serve_all(serving, repository)
    assert tree(serving.path) == before


def test_shared_file_is_part_of_every_fingerprint(repository: Path, serving: ServingFolder) -> None:
    """A file beside the version folders can change the answers of all of them."""
    first, _ = serve_all(serving, repository)
    (repository / "m" / "labels.txt").write_text("x", encoding="utf-8")
    second, _ = serve_all(serving, repository)
    assert all(second.fingerprints[number] != first.fingerprints[number] for number in ("1", "2"))


def test_build_step_writes_into_the_copy(tmp_path: Path, serving: ServingFolder) -> None:
    """Files that the model builds are made in the serving copy, once, and are part of the fingerprint."""
    folder = python_model(tmp_path / "repository", extra=BUILT)
    (folder / "build.py").write_text(BUILD, encoding="utf-8")
    before = tree(tmp_path / "repository")
    first, _ = serve_all(serving, tmp_path / "repository")
    built = serving.path / "m" / "1" / "weights.bin"
    assert built.read_bytes() == b"built from VERSION = 1\n"
    made = built.stat().st_mtime_ns
    assert tree(tmp_path / "repository") == before
    _, changed = serve_all(serving, tmp_path / "repository")
    assert (changed, built.stat().st_mtime_ns) == (False, made)
    (folder / "build.py").write_text(BUILD + "# the same, written otherwise\n", encoding="utf-8")
    second, _ = serve_all(serving, tmp_path / "repository")
    assert second.fingerprints != first.fingerprints


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("def build(folder):\n    raise RuntimeError('no weights here')\n", "no weights here"),
        ("def build(folder):\n    pass\n", "made no weights.bin"),
        ("x = 1\n", "no function build"),
        ("def build(:\n", "SyntaxError"),
    ],
)
def test_failed_build_is_told(tmp_path: Path, serving: ServingFolder, script: str, words: str) -> None:
    """A build that fails, or leaves a file out, stages nothing and says why."""
    folder = python_model(tmp_path / "repository", extra=BUILT)
    (folder / "build.py").write_text(script, encoding="utf-8")
    with pytest.raises(ModelRepositoryError, match=words):
        serve_all(serving, tmp_path / "repository")
    assert not (serving.path / "m").exists()
    assert list(serving.path.with_name("serving.versions").rglob("*.py")) == []


def test_build_script_from_elsewhere_is_refused(tmp_path: Path) -> None:
    """A build.py that is a link out of the model's folder does not run."""
    folder = python_model(tmp_path / "repository", extra=BUILT)
    (tmp_path / "elsewhere.py").write_text(BUILD, encoding="utf-8")
    (folder / "build.py").symlink_to(tmp_path / "elsewhere.py")
    with pytest.raises(ModelRepositoryError, match="leads out"):
        run_build(folder / "build.py", folder, tmp_path)
    assert "leads out" in scan(tmp_path / "repository").faults[0].reason


contents = st.dictionaries(
    st.sampled_from(["model.py", "a.bin", "b.bin", "sub/a.bin"]), st.binary(max_size=6), min_size=1
).map(lambda files: {"model.py": b"", **files})


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(contents, contents)
def test_fingerprint_changes_with_any_byte_or_name(
    tmp_path_factory: pytest.TempPathFactory, one: dict[str, bytes], two: dict[str, bytes]
) -> None:
    """Two contents of a version have one fingerprint only if every name and byte is the same."""
    root = tmp_path_factory.mktemp("content")
    prints = []
    for number, files in (("1", one), ("2", two)):
        folder = python_model(root / number, versions=("1",))
        for name, content in files.items():
            (folder / "1" / name).parent.mkdir(exist_ok=True)
            (folder / "1" / name).write_bytes(content)
        staged, _ = serve_all(ServingFolder(root / f"serving-{number}"), root / number)
        prints.append(staged.fingerprints["1"])
    assert (prints[0] == prints[1]) is (one == two)


def test_model_folder_knows_its_extras(repository: Path) -> None:
    """Build script and sample are found where they are, and only there."""
    model = scan(repository).models[0]
    assert isinstance(model, ModelFolder)
    assert (model.build_script, model.sample) == (None, None)
