"""Whether a version's answers depend on their neighbours: what is asked, what is found, and what follows."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.fingerprint import answer_config
from pipeline.core.model_config import (
    batches_requests,
    config_text,
    parse_config,
    signature,
    without_batching,
)
from pipeline.errors import InvalidTensor, ModelFailed, ModelNotReady, ServerUnavailable
from pipeline.watcher.fleet.neighbour_check import (
    NeighbourLimits,
    NeighbourVerdict,
    check_neighbours,
    judge_neighbours,
    unchanged_versions,
    versions_to_check,
    with_earlier_verdicts,
)
from pipeline.watcher.fleet.neighbour_rows import companies, difference, rows_of_sample, rows_of_signature
from pipeline.watcher.fleet.triton_control import TritonControl
from pipeline.watcher.repository.sample import Sample, SampleRequest, read_sample
from pipeline.watcher.serving.folder import ServingFolder, StagedModel
from pipeline.watcher.serving.version_store import StoredFiles
from schemas.registry import ModelSignature, TensorSpec
from schemas.tensor import DATATYPES, Tensor, check_raw, from_numpy, to_numpy
from tests.models.folders import MODEL_REPOSITORY

CONFIG = """backend: "python" max_batch_size: 16
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ] output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] } ] """
SERVER_JOINS = "dynamic_batching { } "

Array = np.ndarray[Any, Any]
Model = Callable[[Array], Array]


def stated(word: str) -> str:
    return f'parameters {{ key: "client_batching" value {{ string_value: "{word}" }} }} '


def staged(text: str = CONFIG, name: str = "m") -> StagedModel:
    return StagedModel(name, parse_config(text).config, {}, None, {})


def sample_of(*inputs: Tensor) -> Sample:
    request = SampleRequest.model_validate({
        "model_name": "m",
        "inputs": [
            {"name": each.name, "datatype": each.datatype, "shape": list(each.shape), "data": to_numpy(each).tolist()}
            for each in inputs
        ],
    })  # fmt: skip
    return Sample(request)


class FakeServer:
    """A server with one model of one input, and a note of the batches it was asked."""

    def __init__(self, model: Model, *, failure: Exception | None = None) -> None:
        self.address = "fake:8001"
        self.asked: list[Array] = []
        self._model = model
        self._failure = failure

    async def infer(
        self, model_name: str, version: str, inputs: Sequence[Tensor], parameters: Mapping[str, Any], **_: Any
    ) -> tuple[Tensor, ...]:
        await asyncio.sleep(0)
        if self._failure is not None:
            raise self._failure
        array = to_numpy(inputs[0])
        self.asked.append(array)
        return (from_numpy("y", self._model(array)),)


async def verdict_of(
    *servers: FakeServer, text: str = CONFIG, sample: Sample | None = None, limits: NeighbourLimits | None = None
) -> NeighbourVerdict:
    found = await check_neighbours(cast("list[TritonControl]", servers), staged(text), sample, ["3"], limits)
    return found["3"]


async def test_row_by_row_model_passes() -> None:
    """A model that computes each row by itself is the same in every company, and was asked in twos and eights."""
    server = FakeServer(lambda x: np.tanh(x))
    assert await verdict_of(server) == NeighbourVerdict("same")
    sizes = [len(batch) for batch in server.asked]
    assert (sizes.count(1), sizes.count(2), sizes.count(8)) == (9, 8, 2)


def quantized(x: Array) -> Array:
    """One scale for the whole batch, as DynamicQuantizeLinear takes it."""
    scale = np.float32(max(float(np.max(x)), 1e-6) / 255)
    return cast("Array", np.rint(x / scale).astype(np.float32) * scale)


MODELS: dict[str, Model] = {
    "mean of the batch": lambda x: x - x.mean(axis=0),
    "one scale for the batch": quantized,
    "size of the batch": lambda x: x + np.float32(len(x) > 1) * np.float32(1e-6),
    "more than two rows": lambda x: x + np.float32(len(x) > 2),
    "first row": lambda x: np.where(np.arange(len(x))[:, None] == 0, x, x + 1).astype(np.float32),
    "one row for all": lambda x: x.mean(axis=0, keepdims=True),
}


@pytest.mark.parametrize("name", MODELS)
async def test_dependence_on_neighbours_is_found(name: str) -> None:
    """Whatever of the batch an answer depends on, down to the last bit, is seen."""
    verdict = await verdict_of(FakeServer(MODELS[name]))
    assert verdict.outcome == "differs", verdict
    assert "batch of" in verdict.reason
    assert "not batched" in str(verdict)


async def test_model_that_is_never_the_same_is_not_batched() -> None:
    """A model whose answer to one and the same row changes cannot be judged, and is left alone."""
    count = iter(range(1000))
    verdict = await verdict_of(FakeServer(lambda x: x + np.float32(next(count))))
    assert verdict.outcome == "differs"
    assert verdict.reason.startswith("asked twice")


async def test_failing_batch_is_a_difference() -> None:
    """A model that answers rows alone and fails on several must not be given several."""

    def fails(x: Array) -> Array:
        if len(x) > 1:
            raise ModelFailed("fake", "one row only")
        return x

    assert await verdict_of(FakeServer(fails)) == NeighbourVerdict("differs", "a batch of 2 fails: one row only")


async def test_rows_that_a_model_refuses_are_left_out() -> None:
    """What was made of a sample need not be an input of the model: the sample's own row is enough."""
    sample = sample_of(from_numpy("x", np.array([[1, 2, 3, 4]], np.float32)))

    def picky(x: Array) -> Array:
        if any(row.tolist() != [1, 2, 3, 4] for row in x):
            raise InvalidTensor("fake", "sorted rows only")
        return x * np.float32(len(x) == 1)

    assert (await verdict_of(FakeServer(picky), sample=sample)).outcome == "differs"
    refusing = FakeServer(lambda x: x, failure=InvalidTensor("fake", "never"))
    verdict = await verdict_of(refusing, sample=sample)
    assert verdict == NeighbourVerdict("not checked", "the model refuses what it was asked: never")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (CONFIG.replace("dims: [ 4 ]", "dims: [ -1 ]"), "any size"),
        (CONFIG.replace("dims: [ 4 ]", "dims: [ 4 ] optional: true", 1), "optional"),
        (CONFIG.replace("TYPE_FP32", "TYPE_BF16"), "BF16"),
        (CONFIG + "model_transaction_policy { decoupled: true }", "streams"),
        (CONFIG + "sequence_batching { }", "sequences"),
    ],
)
async def test_what_cannot_be_asked_is_told(text: str, words: str) -> None:
    """Where no rows can be made, the version is not checked, and the report says why."""
    server = FakeServer(lambda x: x)
    verdict = await verdict_of(server, text=text)
    assert (verdict.outcome, server.asked) == ("not checked", [])
    assert words in verdict.reason


async def test_next_server_is_asked_when_one_is_away() -> None:
    """A server that does not answer says nothing about the model; without any, nothing is known."""
    away = FakeServer(lambda x: x, failure=ServerUnavailable("fake", "gone"))
    assert (await verdict_of(away, FakeServer(lambda x: x))).outcome == "same"
    assert "gone" in (await verdict_of(away)).reason
    unready = FakeServer(lambda x: x, failure=ModelNotReady("fake", "unloaded"))
    assert (await verdict_of(unready)).outcome == "not checked"


async def test_check_ends_in_time() -> None:
    """A model that takes its time keeps nobody waiting longer than the limit."""

    class Slow(FakeServer):
        async def infer(self, *arguments: Any, **options: Any) -> tuple[Tensor, ...]:
            await asyncio.Event().wait()
            return ()

    verdict = await verdict_of(Slow(lambda x: x), limits=NeighbourLimits(version_timeout_s=0.01))
    assert verdict == NeighbourVerdict("not checked", "1 calls took 0.01 s")


async def test_same_seed_asks_the_same() -> None:
    """Two checks of one version are the same check, bit by bit; another seed is another one."""
    asked = []
    for seed in (1, 1, 2):
        server = FakeServer(lambda x: x)
        await verdict_of(server, limits=NeighbourLimits(seed=seed))
        asked.append([batch.tobytes() for batch in server.asked])
    assert asked[0] == asked[1]
    assert asked[0] != asked[2]


def test_stated_on_is_not_asked() -> None:
    """An owner who says `on` is batched whatever comes; who is not batched at all has nothing to check."""
    versions = ["1", "2"]
    for text, expected in (
        (CONFIG, versions),
        (CONFIG + SERVER_JOINS, versions),
        (CONFIG + stated("on"), []),
        (CONFIG + stated("off"), []),
        (CONFIG + stated("off") + SERVER_JOINS, versions),
        (CONFIG.replace("16", "1"), []),
        (CONFIG.replace("16", "0"), []),
    ):
        assert versions_to_check(parse_config(text).config, versions, None, []) == expected, text


def test_known_versions_are_not_asked_again() -> None:
    """What was batched before with this content passed then; who was not batched, or insisted, is asked now."""
    config = parse_config(CONFIG + SERVER_JOINS).config
    assert versions_to_check(config, ["1", "2"], config, ["1"]) == ["2"]
    off = parse_config(CONFIG + stated("off")).config
    assert versions_to_check(config, ["1", "2"], off, ["1"]) == ["1", "2"]
    insisted = parse_config(CONFIG + stated("on")).config
    assert versions_to_check(config, ["1"], insisted, ["1"]) == ["1"]


def test_verdict_is_remembered_with_what_is_served() -> None:
    """A version that was found to depend on its neighbours stays alone until it, or the owner's word, changes."""
    config = parse_config(CONFIG + SERVER_JOINS).config
    before = without_batching(config, ["2"])
    assert not batches_requests(with_earlier_verdicts(config, before, ["1", "2"]))
    assert with_earlier_verdicts(config, before, ["1", "2"]) == without_batching(config, ["2"])
    assert with_earlier_verdicts(config, before, ["1"]) == config
    assert with_earlier_verdicts(config, None, []) == config
    insisting = parse_config(CONFIG + stated("on")).config
    assert with_earlier_verdicts(insisting, before, ["1", "2"]) == insisting
    once_off = parse_config(CONFIG + stated("off")).config
    assert with_earlier_verdicts(config, once_off, ["1", "2"]) == config


def versions_of(text: str, digests: dict[str, str]) -> StagedModel:
    stored = {number: StoredFiles(Path(), digest, {}) for number, digest in digests.items()}
    return StagedModel("m", parse_config(text).config, stored, None, digests)


async def test_judgement_asks_what_is_not_known() -> None:
    """Only versions that are new, changed, or were never announced are asked; one that differs turns batching off."""
    server = FakeServer(MODELS["mean of the batch"])
    servers = cast("list[TritonControl]", [server])
    config = parse_config(CONFIG + SERVER_JOINS).config
    now = versions_of(CONFIG + SERVER_JOINS, {"1": "a", "2": "b"})
    before = versions_of(CONFIG + SERVER_JOINS, {"1": "a", "2": "b"})
    assert unchanged_versions(now, before) == {"1", "2"}
    assert unchanged_versions(now, versions_of(CONFIG, {"1": "x"})) == set()
    quiet = await judge_neighbours(servers, config, now, None, before, frozenset())
    assert (quiet.config, dict(quiet.verdicts), server.asked) == (config, {}, [])
    judged = await judge_neighbours(servers, config, now, None, before, {"2"})
    assert {number: verdict.outcome for number, verdict in judged.verdicts.items()} == {"2": "differs"}
    assert judged.config == without_batching(config, ["2"])
    server.asked.clear()
    again = await judge_neighbours(servers, judged.config, now, None, before, {"2"})
    assert (again.config, server.asked) == (judged.config, [])
    assert again.verdicts["2"].outcome == "differs"


def test_without_batching_neither_side_joins() -> None:
    """The serving copy of a version that depends on its neighbours has both batchers off, and nothing else changed."""
    config = parse_config(CONFIG + SERVER_JOINS).config
    alone = without_batching(config, ["2", "10"])
    assert batches_requests(config)
    assert not batches_requests(alone)
    assert not signature(alone).client_batching
    assert config.HasField("dynamic_batching")
    assert answer_config(alone) == answer_config(config)
    alone.parameters.clear()
    assert config_text(alone) == config_text(parse_config(CONFIG).config)


tensors = st.builds(
    lambda datatype, shape, seed: make_tensor(datatype, tuple(shape), np.random.default_rng(seed)),
    st.sampled_from([name for name in DATATYPES if name != "BF16"]),
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.integers(0, 1000),
)


def make_tensor(datatype: str, shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    spec = TensorSpec(name="x", datatype=cast("Any", datatype), dims=shape[1:])
    rows = rows_of_signature(ModelSignature(inputs=(spec,), outputs=(), max_batch_size=8), rng)
    assert not isinstance(rows, str)
    parts = [rows[index % len(rows)][0] for index in range(shape[0])]
    return Tensor("x", datatype, shape, b"".join(part.raw for part in parts))


@given(tensors, st.integers(0, 1000))
def test_rows_are_valid_tensors(tensor: Tensor, seed: int) -> None:
    """Every row made of a sample has its datatype and shape, and values between 0 and the sample's."""
    rows = rows_of_sample([tensor], np.random.default_rng(seed))
    assert len(rows) == 8
    for (row,) in rows:
        assert (row.name, row.datatype, row.shape) == (tensor.name, tensor.datatype, (1, *tensor.shape[1:]))
        check_raw(row.name, row.datatype, row.shape, row.raw)
        if tensor.datatype not in ("BYTES", "BOOL"):
            assert to_numpy(row).min() >= 0
            assert to_numpy(row).max() <= to_numpy(tensor).max()
    assert rows[0][0].raw == tensor.raw[: len(rows[0][0].raw)]


def test_bfloat16_rows_keep_their_bits() -> None:
    """BF16, which numpy does not have, is put in another order by its bits."""
    raw = b"\x80\x3f\x00\x40\x40\x40"
    rows = rows_of_sample([Tensor("x", "BF16", (1, 3), raw)], np.random.default_rng(1))
    assert all(sorted(np.frombuffer(row[0].raw, "<u2")) == sorted(np.frombuffer(raw, "<u2")) for row in rows)


@given(st.integers(1, 8), st.integers(2, 64), st.integers(0, 100))
def test_companies_fit_the_model(rows: int, rows_max: int, seed: int) -> None:
    """No batch is larger than the model takes; every compared row is asked with another, first and last."""
    found = list(companies(rows, rows_max, np.random.default_rng(seed)))
    assert all(2 <= len(company) <= min(8, rows_max) for company in found)
    assert all(0 <= row < rows for company in found for row in company)
    for row in range(min(4, rows)):
        for place in (0, 1):
            met = [company for company in found if len(company) == 2 and company[place] == row]
            assert met
            assert rows == 1 or any(company[0] != company[1] for company in met)


def test_difference_sees_signs_and_nans() -> None:
    """Bits are compared: -0.0 is not 0.0, and one NaN is itself."""
    one = from_numpy("y", np.array([[0.0, np.nan]], np.float32))
    two = from_numpy("y", np.array([[-0.0, np.nan]], np.float32))
    assert difference({0: [one]}, (0,), [one]) is None
    assert difference({0: [one]}, (0,), [two]) is not None
    assert difference({0: [one]}, (0,), [one, one._replace(name="z")]) is not None


# --- On a real server -------------------------------------------------------------------------------------------------

JOINS = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        arrays = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        answer = FORMULA
        ends = np.cumsum([len(array) for array in arrays])[:-1]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", part)]) for part in np.split(answer, ends)]
"""


@pytest.fixture
async def server(triton_urls: tuple[str, ...]) -> AsyncIterator[TritonControl]:
    """The first Triton of the stack."""
    async with TritonControl(triton_urls[0]) as control:
        yield control


@pytest.mark.live
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["digits", "sentences"])
async def test_shipped_models_may_be_batched(name: str, server: TritonControl, serving_dir: Path) -> None:
    """The models that come with the pipeline give every row the same bits in any company."""
    served = ServingFolder(serving_dir).read(name)
    assert served is not None
    sample = read_sample(MODEL_REPOSITORY / name / "sample.json", name)
    found = await check_neighbours([server], served, sample, served.versions)
    assert set(found.values()) == {NeighbourVerdict("same")}


@pytest.mark.live
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("formula", "outcome"),
    [
        ("np.concatenate(arrays) * np.float32(0.1)", "same"),
        ("np.concatenate(arrays) - np.concatenate(arrays).mean(axis=0)", "differs"),
        # A matrix product of one row is another routine than that of several: they round otherwise.
        ("np.concatenate(arrays) @ np.random.default_rng(1).random((256, 4), np.float32)", "differs"),
    ],
)
async def test_real_server_tells_dependence(
    formula: str, outcome: str, server: TritonControl, serving_dir: Path
) -> None:
    """A model whose answer depends on its neighbours is recognized on a real Triton, one that does not is not."""
    name = f"m{uuid4().hex[:8]}"
    text = f'name: "{name}" ' + CONFIG.replace("dims: [ 4 ]", "dims: [ 256 ]", 1 if "@" in formula else 0)
    folder = serving_dir / name
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(JOINS.replace("FORMULA", formula), encoding="utf-8")
    (folder / "config.pbtxt").write_text(text, encoding="utf-8")
    try:
        await server.load(name, 60)
        found = await check_neighbours([server], staged(text, name), None, ["1"])
    finally:
        await server.unload(name, 60)
        ServingFolder(serving_dir).withdraw(name)
    assert found["1"].outcome == outcome, found
