"""A gateway and its worker for a benchmark over HTTP, and what they are asked, by the protocol's route."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import numpy as np
import numpy.typing as npt
import orjson

from pipeline.bench.rig import Rig, valkey_on
from pipeline.bench.workload import MODEL
from pipeline.config import Settings
from pipeline.stack.ports import PortBook


@asynccontextmanager
async def running_gateway(rig: Rig, settings: Settings, name: str) -> AsyncIterator[str]:
    """A gateway, a worker and a Valkey of their own; the address that bodies are sent to.

    Args:
        rig: the servers.
        settings: with topics of the benchmark's own.
        name: of the benchmark, for the processes' logs.
    """
    port = PortBook(rig.folder / "ports.json").take("gateway", 8080)
    async with AsyncExitStack() as closing:
        redis = await closing.enter_async_context(valkey_on(rig.settings, rig.folder))
        variables = {
            "PIPELINE_REDIS__URL": redis.url or "",
            "PIPELINE_WORKER__GROUP": f"{settings.kafka.topic_prefix}worker",
            "PIPELINE_GATEWAY__PORT": str(port),
        }
        for command in ("worker", "gateway"):
            process = rig.process(settings, f"{name}-{command}", "pipeline", command, variables=variables)
            await closing.enter_async_context(process)
        yield f"http://127.0.0.1:{port}/v2/models/{MODEL}/infer"


def protocol_body(image: npt.NDArray[np.float32]) -> bytes:
    """A request of the Open Inference Protocol, as JSON."""
    tensor = {"name": "image", "datatype": "FP32", "shape": list(image.shape), "data": image.ravel().tolist()}
    return orjson.dumps({"inputs": [tensor]})
