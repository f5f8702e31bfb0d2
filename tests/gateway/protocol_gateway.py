"""A gateway of the Open Inference Protocol for tests: its real routes, limits and bodies; an echo model behind them.

Requests are prepared, and results written, by the code that the gateway's delivery and the worker have: what the routes
see is what they see of the pipeline.
"""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from pipeline.client.records import RequestRecord
from pipeline.config import GatewaySettings, Settings
from pipeline.core.answer import Answer, failed, stored_answer
from pipeline.core.exchange import Exchange
from pipeline.core.result_record import encode_result
from pipeline.core.stored_result import Pending, StoredResult
from pipeline.gateway.app import create_app
from pipeline.gateway.delivery.inferences import Inferences, Receipt
from pipeline.gateway.delivery.submission import PreparedRequest, Submission, prepare_request
from pipeline.gateway.http.limits import Limits
from pipeline.gateway.protocol.models import AnnouncedModels, Fleet
from schemas.decoded import DecodedRequest
from schemas.errors import WireError
from schemas.registry import ModelRecord, ModelSignature, ModelVersion, TensorSpec
from schemas.request import decode_request

_DIGEST = b"d" * 16
_NOW = 1_700_000_000.0

Respond = Callable[[DecodedRequest], Answer]


def echo(request: DecodedRequest) -> Answer:
    """Every input back under its own name; of the outputs asked for, those."""
    wanted = None if request.outputs is None else {output.name for output in request.outputs}
    tensors = [tensor.to_tensor() for tensor in request.inputs if wanted is None or tensor.name in wanted]
    stored = stored_answer(tensors, stored_at=0.0, instance="triton-0")
    version = request.model_version or "2"
    return Answer("succeeded", version, stored, None, "miss", bytes(32), instance="triton-0")


class ScriptedInferences(Inferences):
    """Delivery without Kafka: what is submitted is prepared as ever, and answered by `respond` at once.

    Attributes:
        records: what would be on the requests topic.
        submissions: as the routes handed them in.
        respond: the worker and its model.
        raises: of `submit`, instead of a receipt.
        waits: seconds that were waited, or asked to be.
        is_silent: no answer ever comes.
        while_silent: called when somebody waits in vain.
        reasons: what `not_ready` tells.
    """

    def __init__(self, respond: Respond = echo) -> None:
        self.records: list[RequestRecord] = []
        self.submissions: list[Submission] = []
        self.respond = respond
        self.raises: Exception | None = None
        self.waits: list[float] = []
        self.is_silent = False
        self.while_silent: Callable[[], None] = lambda: None
        self.reasons: dict[str, str] = {}
        self._results: dict[str, StoredResult] = {}

    async def submit(self, submission: Submission) -> Receipt:
        """Prepares a request as the gateway does, and answers it."""
        if self.raises is not None:
            raise self.raises
        self.submissions.append(submission)
        prepared = prepare_request(
            submission,
            now=_NOW,
            fresh_id=lambda: f"fresh-{len(self.records)}",
            topic="inference.requests",
            reply_partition=3,
            record_bytes_max=8 << 20,
        )
        self.records.append(prepared.record)
        self._results[prepared.record.id] = self._result_of(prepared)
        return Receipt(prepared.record.id, prepared.tenant, 0, len(self.records), is_repeated=False)

    async def wait(self, tenant: str | None, request_id: str, wait_s: float) -> StoredResult | Pending | None:
        """The result, or for a silent one a wait like any other."""
        self.waits.append(wait_s)
        if not self.is_silent:
            return self._results.get(request_id)
        if wait_s:
            self.while_silent()
            await asyncio.sleep(min(wait_s, 0.01))
        return Pending(_DIGEST)

    def not_ready(self) -> dict[str, str]:
        """What the test says."""
        return self.reasons

    def _result_of(self, prepared: PreparedRequest) -> StoredResult:
        record = prepared.record
        request = decode_request(record.value, record.headers)
        exchange = Exchange(
            "inference.requests", 0, 0, int(_NOW * 1e3), record.key, _NOW, record.id, prepared.tenant,
            model_name=request.model_name, request=request, requested_at=_NOW,
        )  # fmt: skip
        exchange.complete(_NOW + 0.001)
        try:
            answer = self.respond(request)
        except WireError as error:
            answer = failed(error)
        result = encode_result(exchange, answer, b'"worker-0"', b"inference-worker")
        is_binary = any(name == "Inference-Header-Content-Length" for name, _ in result.headers)
        return StoredResult(_DIGEST, result.json_bytes if is_binary else 0, result.value)


def model_record(name: str = "digits", **changes: Any) -> ModelRecord:
    """A model with versions 1, draining, and 2, served by default; 3 was rejected, 10 is unloaded."""
    signature = ModelSignature(
        inputs=(TensorSpec(name="image", datatype="FP32", dims=(64,)),),
        outputs=(TensorSpec(name="label", datatype="INT64", dims=(1,)),),
        max_batch_size=64,
    )
    versions = {
        "10": ModelVersion(fingerprint="e", state="unloaded", signature=signature),
        "2": ModelVersion(fingerprint="b", state="ready", signature=signature),
        "1": ModelVersion(fingerprint="a", state="draining", signature=signature),
        "3": ModelVersion(fingerprint="c", state="rejected", reason="its sample's answer differs"),
    }
    members: dict[str, Any] = {
        "model_name": name,
        "versions": versions,
        "default_version": "2",
        "effective_at": datetime(2026, 1, 1, tzinfo=UTC),
    }
    return ModelRecord(**members | changes)


def announced(*records: ModelRecord) -> AnnouncedModels:
    """These models, announced."""
    models = AnnouncedModels()
    for record in records:
        models.apply(record)
    return models


def make_app(
    inferences: Inferences, fleet: Fleet | None = None, limits: Limits | None = None, **gateway: Any
) -> FastAPI:
    """The gateway's app, whole, with this fleet in the place of the one its settings name."""
    known = fleet or Fleet(announced(model_record()))
    return create_app(inferences, Settings(gateway=GatewaySettings(**gateway)), limits=limits, fleet=known)


@contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """An app on a port of 127.0.0.1, in a thread: host:port, for clients that block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(
            uvicorn.Config(app, ws="none", lifespan="on", log_config=None, log_level="warning", http="h11")
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            host, port = listener.getsockname()
            yield f"{host}:{port}"
        finally:
            server.should_exit = True
            thread.join()
