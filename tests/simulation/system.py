"""An engine on a fake fleet, and what tests say to it."""

import asyncio
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipeline.core.answer import Answer, StoredAnswer
from pipeline.core.catalog import ModelCatalog
from pipeline.core.fleet_queue import QueueBounds
from pipeline.core.response_cache import ResponseCache
from pipeline.core.routing import Router
from pipeline.dispatcher import Dispatcher
from pipeline.engine import InferenceEngine
from pipeline.metrics import EngineMetrics
from pipeline.ports import Clock, SharedCache, Tracer
from schemas.registry import ModelRecord, ModelSignature, ModelVersion, TensorSpec
from schemas.request import InferenceRequest
from schemas.tensor import Tensor
from tests.simulation.fleet import FakeInferenceServer, FakeVersion, right_outputs
from tests.simulation.virtual_time import UNIX_START, the_clock

MODEL = "adder"


def signature(**changes: Any) -> ModelSignature:
    """The signature of the fake model: `x` INT32 of any length to `y` and `text`, batches up to 8."""
    return ModelSignature(
        inputs=(TensorSpec(name="x", datatype="INT32", dims=(-1,)),),
        outputs=(
            TensorSpec(name="y", datatype="INT64", dims=(2,)),
            TensorSpec(name="text", datatype="BYTES", dims=(1,)),
        ),
        **{"max_batch_size": 8, **changes},
    )


def model_record(
    versions: Mapping[str, str],
    default: str | None,
    *,
    model_name: str = MODEL,
    previous: str | None = None,
    effective_at: float = 0.0,
    **signature_changes: Any,
) -> ModelRecord:
    """A model whose versions have these contents; the content is its own fingerprint."""
    return ModelRecord(
        model_name=model_name,
        versions={
            number: ModelVersion(fingerprint=content, state="ready", signature=signature(**signature_changes))
            for number, content in versions.items()
        },
        default_version=default,
        previous_version=previous,
        effective_at=datetime.fromtimestamp(UNIX_START + effective_at, UTC),
    )


def request(*rows: int, **changes: Any) -> InferenceRequest:
    """A request with one number per row, rows of one number; one row `1` if none is given."""
    data = list(rows or (1,))
    members: dict[str, Any] = {
        "model_name": MODEL,
        "inputs": [{"name": "x", "datatype": "INT32", "shape": [len(data), 1], "data": data}],
        **changes,
    }
    return InferenceRequest.model_validate_json(json.dumps(members))


def outputs_of(answer: Answer) -> tuple[Tensor, ...]:
    """The outputs of an answer that succeeded."""
    assert answer.outputs is not None, f"no outputs: {answer.failure}"
    return answer.outputs.tensors


def code_of(answer: Answer) -> str:
    """The error code of an answer, empty for one that succeeded."""
    return str(answer.failure.code) if answer.failure else ""


def expected(content: str, asked: InferenceRequest, *, batched: bool = True) -> tuple[Tensor, ...]:
    """What a version of this content answers to this request."""
    tensors = [given.to_tensor() for given in asked.inputs]
    reaching = {name: value for name, value in asked.parameters.items() if not name.startswith("binary_")}
    outputs = right_outputs(content, tensors, reaching, batched=batched)
    if not asked.outputs:
        return outputs
    by_name = {tensor.name: tensor for tensor in outputs}
    return tuple(by_name[output.name] for output in asked.outputs)


@dataclass(eq=False)
class RecordingWaiter:
    """Remembers its answers and when they came."""

    answers: list[Answer] = field(default_factory=list)
    at: list[float] = field(default_factory=list)

    def answered(self, answer: Answer) -> None:
        """See `pipeline.core.coalescing.Waiter`."""
        self.answers.append(answer)
        self.at.append(the_clock().monotonic())


@dataclass
class System:
    """An engine, its parts, and the fleet it runs on."""

    clock: Clock
    catalog: ModelCatalog
    cache: ResponseCache[StoredAnswer]
    servers: list[FakeInferenceServer]
    router: Router
    dispatcher: Dispatcher
    engine: InferenceEngine

    @property
    def server(self) -> FakeInferenceServer:
        """The only server."""
        (server,) = self.servers
        return server

    @property
    def calls(self) -> int:
        """Calls that the fleet has heard."""
        return sum(len(server.heard) for server in self.servers)

    @property
    def rows(self) -> int:
        """Rows that the fleet was asked."""
        return sum(heard.rows for server in self.servers for heard in server.heard)

    async def ask(self, asked: InferenceRequest, *, enable_cache: bool | None = None) -> Answer:
        """One request, answered."""
        return await self.engine.perform_inference_with_cache_check(asked, enable_cache)

    def start(self, asked: InferenceRequest) -> "asyncio.Task[Answer]":
        """One request, on its way."""
        return asyncio.get_running_loop().create_task(self.ask(asked))


def make_system(
    *,
    servers: int = 1,
    versions: Mapping[str, str] | None = None,
    default: str = "1",
    loaded: Mapping[str, FakeVersion] | None = None,
    ttl_s: float = 60.0,
    unavailable_timeout_s: float = 30.0,
    attempt_timeout_s: float = 20.0,
    batches_in_flight: int = 4,
    cache_bytes: int = 1 << 20,
    shared: SharedCache | None = None,
    metrics: EngineMetrics | None = None,
    bounds: QueueBounds | None = None,
    tracer: Tracer | None = None,
    seed: int = 0,
    **signature_changes: Any,
) -> System:
    """A system in virtual time. `versions` are contents by number, served by all servers."""
    versions = {"1": "one"} if versions is None else versions
    clock = the_clock()
    batched = bool(signature_changes.get("max_batch_size", 8))
    fleet = [
        FakeInferenceServer(
            f"fake-{index}",
            {
                (MODEL, number): (loaded or {}).get(number, FakeVersion(content, batched))
                for number, content in versions.items()
            },
        )
        for index in range(servers)
    ]
    catalog = ModelCatalog([model_record(versions, default, **signature_changes)])
    router = Router([server.name for server in fleet], random.Random(seed))
    dispatcher = Dispatcher(
        fleet,
        router,
        clock,
        attempt_timeout_s=attempt_timeout_s,
        batches_in_flight=batches_in_flight,
        metrics=metrics,
        bounds=bounds,
        tracer=tracer,
    )
    cache = ResponseCache[StoredAnswer](cache_bytes)
    engine = InferenceEngine(
        catalog, cache, dispatcher, clock, shared=shared, ttl_s=ttl_s, unavailable_timeout_s=unavailable_timeout_s
    )
    return System(clock, catalog, cache, fleet, router, dispatcher, engine)
