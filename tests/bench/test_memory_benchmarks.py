"""What the benchmarks of memory ask, promise and conclude; no server runs."""

import zlib
from pathlib import Path

import onnx
import pytest

from pipeline.bench.blobs import MODEL, blob_records, write_model
from pipeline.bench.memory_flat import Reading, figure_of
from pipeline.bench.process_memory import MIB
from pipeline.bench.worker_memory import CASES, promised_bytes
from pipeline.config import Settings
from pipeline.core.cache_key import content_digest
from schemas.request import decode_request


def test_blob_records_are_requests_of_their_size() -> None:
    """Each is a request that decodes, under an id of its own, with a tensor that no other has."""
    requests = [decode_request(record.value, record.headers) for record in blob_records(3, 5000)]
    tensors = [request.inputs[0].to_tensor() for request in requests]
    assert [len(tensor.raw) for tensor in tensors] == [5000] * 3
    assert len({content_digest([tensor], {}) for tensor in tensors}) == 3
    assert len({request.id for request in requests}) == 3
    assert {request.model_name for request in requests} == {MODEL}


def test_repeating_blobs_compress_as_much() -> None:
    """A tensor that repeats its beginning twenty times shrinks to about a twentieth, a random one not at all."""
    plain, repeated = next(blob_records(1, 60_000)), next(blob_records(1, 60_000, repeats=20))
    assert len(plain.value) == len(repeated.value)
    assert len(zlib.compress(plain.value)) > 59_000
    assert 3000 < len(zlib.compress(repeated.value)) < 6000


def test_model_folder_gives_its_input_back(tmp_path: Path) -> None:
    """What is registered is valid ONNX: one input, one output, bytes with a batch axis."""
    write_model(tmp_path / MODEL)
    model = onnx.load(tmp_path / MODEL / "1" / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.UINT8
        assert len(value.type.tensor_type.shape.dim) == 2


def test_promise_follows_the_cache_and_the_record_limit() -> None:
    """Without a cache nothing is promised for it; the other parts depend on settings alone."""
    cached, uncached = (promised_bytes(Settings(), case, 2000) for case in CASES[:2])
    assert cached["cache"] == 64 * MIB
    assert uncached == cached | {"cache": 0}
    small = promised_bytes(Settings(limits={"record_bytes": 65536}), CASES[0], 2000)
    assert small["fetched"] < cached["fetched"]


def test_promised_ids_are_those_of_the_windows() -> None:
    """Ids are remembered as far as their windows reach: 100,000 for each of four partitions."""
    held = {count: promised_bytes(Settings(), CASES[0], count)["ids"] for count in (1000, 400_000, 10**7)}
    assert held[1000] * 400 == held[400_000] == held[10**7]


@pytest.mark.parametrize(("per_million", "ok"), [(0.0, True), (100.0, True), (1000.0, False)])
def test_growing_memory_misses_its_bar(per_million: float, ok: bool) -> None:
    """The slope is told per million requests; a tenth more at the end is too much."""
    readings = [Reading(answered, 100.0 + per_million * answered / 1e6) for answered in range(1000, 60_000, 1000)]
    figure = figure_of(readings, 30.0)
    assert figure.ok is ok
    assert figure.notes["mib_per_million_requests"] == pytest.approx(per_million, abs=1e-6)
    assert figure.notes["requests"] == 59_000
