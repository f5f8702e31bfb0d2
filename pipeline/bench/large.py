"""`large.grpc_8mb`, `large.shared_8mb`, `large.shared_600kb`: large tensors to one real Triton and back, and their CPU.

A model that gives its input back, UINT8, so as much comes as goes. `pipeline bench large` alone runs them.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from pipeline.adapters.system import rare_garbage_collections
from pipeline.adapters.triton import TritonServer
from pipeline.adapters.triton_shared_memory import SharedSlots
from pipeline.bench.blobs import MODEL
from pipeline.bench.effort import Effort
from pipeline.bench.figure import Bar, Figure, paired
from pipeline.bench.rig import Rig
from pipeline.ports import InferenceCall
from schemas.tensor import Tensor

_SIZES = {"8mb": 8 << 20, "600kb": 600_000}
# A side moves about so many bytes in a round, each way: a third of a second.
_ROUND_BYTES = 64 << 20
# What the dispatcher has out to one instance.
_AT_ONCE = 4
_SHARED_BYTES = 128 << 20
_TIMEOUT_S = 20.0

Call = Callable[[], Awaitable[None]]


async def measure(rig: Rig, effort: Effort) -> list[Figure]:
    """All three, in turns: the raw stub, the client over gRPC, the client with shared memory."""
    url = (rig.settings.triton.urls or ("",))[0]
    version = rig.models[MODEL].default_version or ""
    plain = TritonServer("triton-0", url, rig.settings.triton.tls)
    shared = TritonServer("triton-0", url, rig.settings.triton.tls, partial(SharedSlots, bytes_max=_SHARED_BYTES))
    sizes = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
    try:
        async with grpc.aio.insecure_channel(url, options=sizes) as channel:
            infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
            figures: list[Figure] = []
            with rare_garbage_collections():
                for name, size in _SIZES.items():
                    raw = os.urandom(size)
                    sides = {
                        "raw stub": partial(_through_protobuf, infer, version, raw),
                        "gRPC": partial(_through_client, plain, version, raw),
                        "shared": partial(_through_client, shared, version, raw),
                    }
                    figures += _figures(name, await _rounds(rig, effort, name, sides, _ROUND_BYTES // size))
            return figures
    finally:
        await shared.close()
        await plain.close()


async def _rounds(
    rig: Rig, effort: Effort, name: str, sides: Mapping[str, Call], calls: int
) -> dict[str, list[tuple[float, float]]]:
    """Calls per second and milliseconds of CPU per call, of each side's rounds."""
    taken: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    calls = max(min(calls, effort.miss_calls), _AT_ONCE)
    for number in range(effort.miss_pairs + 1):
        for side, call in sides.items():
            rate = await _rate(call, calls)
            if number:  # the first round warms the server up, and has slots made
                taken[side].append(rate)
        if number:
            told = ", ".join(f"{side} {rates[-1][0]:,.0f}/s" for side, rates in taken.items())
            rig.tell(f"large, {name}: {told}")
    return taken


async def _rate(call: Call, calls: int) -> tuple[float, float]:
    async def loop(count: int) -> None:
        for _ in range(count):
            await call()

    each = calls // _AT_ONCE
    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(loop(each) for _ in range(_AT_ONCE)))
    done = each * _AT_ONCE
    return done / (time.perf_counter() - began), (time.process_time() - cpu) / done * 1e3


def _figures(size: str, taken: Mapping[str, list[tuple[float, float]]]) -> list[Figure]:
    rates = {side: [rate for rate, _ in rounds] for side, rounds in taken.items()}
    notes = {f"{side} cpu ms": median([cpu for _, cpu in rounds]) for side, rounds in taken.items()}
    over_grpc = paired(
        f"large.grpc_{size}", "calls/s", rates["gRPC"], rates["raw stub"], Bar("ratio_at_least", 1.0),
        how=f"tensors of {size} there and back through the Triton client, {_AT_ONCE} calls at a time",
        yardstick_how="the same through the raw stub and its protobuf messages",
        notes=notes,
    )  # fmt: skip
    in_memory = paired(
        f"large.shared_{size}", "calls/s", rates["shared"], rates["gRPC"], Bar("ratio_at_least", 1.0),
        how="the same with the inputs in shared memory; the outputs, of free size, travel",
        yardstick_how="the Triton client over gRPC",
        notes=notes,
    )  # fmt: skip
    return [over_grpc, in_memory] if size == "8mb" else [in_memory]


async def _through_client(server: TritonServer, version: str, raw: bytes) -> None:
    tensor = Tensor("blob", "UINT8", (1, len(raw)), raw)
    (output,) = await server.infer(InferenceCall(MODEL, version, [tensor], [("same", {})]), _TIMEOUT_S)
    assert len(output.raw) == len(raw), "the model gives its input back"


async def _through_protobuf(infer: Any, version: str, raw: bytes) -> None:
    request = service_pb2.ModelInferRequest(model_name=MODEL, model_version=version, raw_input_contents=[raw])
    request.inputs.add(name="blob", datatype="UINT8", shape=(1, len(raw)))
    request.outputs.add(name="same")
    answer = await infer(request, timeout=_TIMEOUT_S)
    assert len(answer.raw_output_contents[0]) == len(raw), "the model gives its input back"
