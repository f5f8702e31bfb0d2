"""A record of the largest size, from its bytes to its result's bytes, through the engine and a real Triton."""

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial

import pytest

from pipeline.adapters.triton import TritonServer
from pipeline.adapters.triton_shared_memory import SharedSlots
from pipeline.config import Settings
from pipeline.core.catalog import ModelCatalog
from pipeline.core.exchange import Exchange
from pipeline.core.result_record import encode_result
from pipeline.engine import InferenceEngine
from pipeline.metrics import EngineMetrics
from pipeline.worker.assembly import engine_of
from schemas.registry import ModelRecord, ModelSignature, ModelVersion, TensorSpec
from schemas.request import decode_request
from schemas.result import decode_result
from tests.adapters.triton_process import TritonProcess

pytestmark = [pytest.mark.live, pytest.mark.timeout(60)]

MIB = 1 << 20
_ECHO = ModelSignature(
    inputs=(
        TensorSpec(name="int16", datatype="INT16", dims=(-1,)),
        TensorSpec(name="bool", datatype="BOOL", dims=(-1,)),
    ),
    outputs=(
        TensorSpec(name="int16_echo", datatype="INT16", dims=(-1,)),
        TensorSpec(name="bool_echo", datatype="BOOL", dims=(-1,)),
    ),
    max_batch_size=8,
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One server for the module."""
    triton = TritonProcess(tmp_path_factory.mktemp("triton"))
    triton.start()
    try:
        yield triton.address
    finally:
        triton.kill()


def engine_on(server: TritonServer) -> InferenceEngine:
    version = ModelVersion(fingerprint="f", state="ready", signature=_ECHO)
    record = ModelRecord(
        model_name="echo", versions={"1": version}, default_version="1", effective_at=datetime(2026, 1, 1, tzinfo=UTC)
    )
    engine, _ = engine_of(Settings(), ModelCatalog([record]), [server], EngineMetrics(), None)
    return engine


def a_record(large: bytes, small: bytes) -> tuple[bytes, list[tuple[str, bytes]]]:
    tensors = (("int16", len(large) // 2, large), ("bool", len(small), small))
    inputs = [
        {"name": name, "datatype": name.upper(), "shape": [1, count], "parameters": {"binary_data_size": len(raw)}}
        for name, count, raw in tensors
    ]
    asked = [{"name": "bool_echo"}, {"name": "int16_echo"}]
    members = {"model_name": "echo", "parameters": {"binary_data_output": True}, "inputs": inputs, "outputs": asked}
    head = json.dumps(members).encode()
    return head + large + small, [("Inference-Header-Content-Length", b"%d" % len(head))]


@pytest.mark.parametrize("bytes_max", [0, 256 * MIB], ids=["over gRPC", "in shared memory"])
@pytest.mark.parametrize("size", [8 * MIB - 4096, 64 * MIB])
async def test_large_record_becomes_its_result(address: str, size: int, bytes_max: int) -> None:
    """Every bit that goes in comes out, in the order asked, computed three times and then from the cache."""
    server = TritonServer("triton-0", address, None, partial(SharedSlots, bytes_max=bytes_max))
    engine = engine_on(server)
    try:
        for enable_cache in (False, False, True, True):
            large, small = (os.urandom(size), b"\1\0\1") if not enable_cache else (b"ab" * (size // 2), b"\0")
            value, headers = a_record(large, small)
            request = decode_request(value, headers)
            answer = await engine.perform_inference_with_cache_check(request, enable_cache=enable_cache)
            exchange = Exchange("requests", 0, 0, 0, None, 0.0, "r-1", model_name="echo", request=request)
            exchange.complete(1.0)
            record = encode_result(exchange, answer, b'"w"', b"g")
            result = decode_result(record.value, record.headers)
            assert result.outputs is not None, result.error
            assert [output.data for output in result.outputs] == [small, large]
        assert answer.cache_status == "hit"
    finally:
        await engine.stop()
        await server.close()
