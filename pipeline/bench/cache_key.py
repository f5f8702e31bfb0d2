"""Parsing, validating and keying a binary tensor, beside the digest of its bytes alone."""

import os

from blake3 import blake3

from pipeline.bench.answering import engine_without_servers
from pipeline.bench.effort import Effort
from pipeline.bench.engine_hit import key_of
from pipeline.bench.figure import Bar, Figure, best
from pipeline.bench.timing import cpu_microseconds
from pipeline.bench.workload import model_record
from pipeline.client.records import build_record
from pipeline.config import Settings
from pipeline.engine import InferenceEngine
from schemas.registry import ModelSignature, TensorSpec
from schemas.request import decode_request
from schemas.tensor import Tensor

_MODEL = "any_size"
_SIZES = {"cache.key_600kb": 600_000, "cache.key_4kb": 4096, "cache.key_256b": 256}
# Only the large one has a bar: at 256 B the digest takes 1 us, and a call in Python costs as much.
_BARS = {"cache.key_600kb": Bar("ratio_at_most", 3.0)}


async def measure(settings: Settings, effort: Effort) -> list[Figure]:
    """`cache.key_600kb`, and the same at 4 KB and 256 B."""
    engine, _ = engine_without_servers(settings)
    spec = TensorSpec(name="values", datatype="FP32", dims=(-1,))
    engine.catalog.apply(model_record(_MODEL, ModelSignature(inputs=(spec,), outputs=(spec,), max_batch_size=8)))
    figures = [_figure(engine, effort, name, size) for name, size in _SIZES.items()]
    await engine.stop()
    return figures


def _figure(engine: InferenceEngine, effort: Effort, name: str, size: int) -> Figure:
    raw = os.urandom(size)
    tensor = Tensor("values", "FP32", (1, size // 4), raw)
    record = build_record("bench", _MODEL, [tensor], now=0.0, binary=True)

    def ours(_: int) -> bytes:
        return key_of(engine, decode_request(record.value, record.headers))

    def digest(_: int) -> bytes:
        return blake3(raw).digest()

    calls = max(effort.cpu_calls * 256 // (size + 4096), 10)
    taken = cpu_microseconds({"ours": ours, "digest": digest}, rounds=effort.cpu_rounds, calls=calls)
    return best(
        name, "us", taken["ours"], taken["digest"], _BARS.get(name),
        how=f"CPU to parse, validate and key a binary FP32 tensor of {size:,} bytes, best round",
        yardstick_how="BLAKE3 of the same bytes",
    )  # fmt: skip
