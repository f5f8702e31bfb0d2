"""Asking as any producer may: raw records in, results found by their request's place in the log."""

import asyncio
import itertools
import struct
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import orjson
from aiokafka import AIOKafkaProducer, ConsumerRecord

from pipeline.adapters.kafka import client_options
from pipeline.config import Settings
from schemas.result import InferenceResult, decode_result
from tests.live.topics import Headers, TopicLog, committed_offsets, end_offsets, header
from tests.live.waiting import until

ANSWER_TIMEOUT_S = 15.0
_unique = itertools.count(1)


@dataclass(frozen=True)
class Sent:
    """A request record's place."""

    partition: int
    offset: int


@dataclass(frozen=True)
class Answered:
    """A result record and what it says."""

    record: ConsumerRecord
    result: InferenceResult

    @property
    def status(self) -> str:
        """The result's own."""
        return self.result.status

    @property
    def error(self) -> str | None:
        """The error's code, if it has one."""
        return self.result.error.code.value if self.result.error else None

    @property
    def message(self) -> str:
        """The error's sentence."""
        return self.result.error.message if self.result.error else ""

    @property
    def cache_status(self) -> str | None:
        """How the cache took part."""
        return self.result.parameters.cache_status

    def header(self, name: str) -> str | None:
        """One of the record's headers."""
        return header(self.record, name)


@dataclass(frozen=True)
class EventLine:
    """One line of the events topic, and what its record's headers say of it.

    Attributes:
        text: the line's bytes.
    """

    event_id: str
    event_type: str
    request_id: str
    text: bytes
    generation: int
    incarnation: int
    redelivered: bool


class Asking:
    """A producer of requests that reads all results.

    Args:
        settings: where to ask.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.results = TopicLog(settings, "results", from_beginning=False)
        self.dead_letters = TopicLog(settings, "dead-letter", from_beginning=False)
        self._producer = AIOKafkaProducer(
            **client_options(settings.kafka), acks="all", max_request_size=settings.limits.record_bytes + (1 << 16)
        )
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opening:
            await opening.enter_async_context(self.results)
            await opening.enter_async_context(self.dead_letters)
            await opening.enter_async_context(self._producer)
            self._open = opening.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    async def send(
        self, value: bytes | None, *, headers: Headers = (), key: bytes | None = None, partition: int | None = None
    ) -> Sent:
        """Puts any bytes on the requests topic; returns when Kafka has them."""
        placed = await self._producer.send_and_wait(
            self.settings.topic("requests"), value, key=key, partition=partition, headers=list(headers)
        )
        return Sent(placed.partition, placed.offset)

    async def answer(self, sent: Sent, timeout_s: float = ANSWER_TIMEOUT_S) -> Answered:
        """The first result to a request record."""

        def belongs(record: ConsumerRecord) -> bool:
            return record.partition == sent.partition and header(record, "request-offset") == str(sent.offset)

        record = await self.results.first(belongs, timeout_s, f"the answer to {sent}")
        return Answered(record, decode_result(record.value, record.headers))

    async def ask(
        self,
        request: Mapping[str, Any],
        *,
        headers: Headers = (),
        key: bytes | None = None,
        partition: int | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> Answered:
        """Sends a JSON request and waits for its answer."""
        sent = await self.send(orjson.dumps(request), headers=headers, key=key, partition=partition)
        return await self.answer(sent, timeout_s)

    async def ask_all(
        self, requests: Sequence[Mapping[str, Any]], timeout_s: float = ANSWER_TIMEOUT_S
    ) -> list[Answered]:
        """Likewise for many at once."""
        return await asyncio.gather(*(self.ask(request, timeout_s=timeout_s) for request in requests))


async def all_committed(settings: Settings, timeout_s: float = 30.0) -> None:
    """Returns when every record of the requests topic is done with."""

    async def done() -> bool:
        return await committed_offsets(settings) == await end_offsets(settings, "requests")

    await until(done, timeout_s, "all offsets are committed")


def event_lines(records: Iterable[ConsumerRecord]) -> list[EventLine]:
    """The lines of records of the events topic, in their order."""
    lines = []
    for record in records:
        generation, incarnation = (int(header(record, name) or 0) for name in ("generation", "incarnation"))
        redelivered = header(record, "redelivered") == "1"
        for text in record.value.splitlines():
            members = orjson.loads(text)
            event_id, event_type, request_id = (members[name] for name in ("event_id", "event_type", "request_id"))
            lines.append(EventLine(event_id, event_type, request_id, text, generation, incarnation, redelivered))
    return lines


def fresh_id(label: str = "r") -> str:
    """An id that nobody has used."""
    return f"{label}-{uuid.uuid4().hex}"


def fresh_value() -> float:
    """A number that no other request of this run has, exact in FP32."""
    return float(next(_unique))


def echo_request(*values: float, **members: Any) -> dict[str, Any]:
    """A request to the echo model: one row of FP32, a fresh one where no values are given."""
    row = list(values) or [fresh_value()]
    tensor = {"name": "fp32", "datatype": "FP32", "shape": [1, len(row)], "data": row}
    return {"id": fresh_id(), "model_name": "echo", "inputs": [tensor], "outputs": [{"name": "fp32_echo"}], **members}


def binary_record(request: Mapping[str, Any], raws: Sequence[bytes]) -> tuple[bytes, Headers]:
    """A request's record in binary form: value and headers. `raws` replace the data of its inputs, in their order."""
    inputs = [
        {name: tensor[name] for name in ("name", "datatype", "shape")} | {"parameters": {"binary_data_size": len(raw)}}
        for tensor, raw in zip(request["inputs"], raws, strict=True)
    ]
    json = orjson.dumps({**request, "inputs": inputs})
    return json + b"".join(raws), [("Inference-Header-Content-Length", b"%d" % len(json))]


def bytes_tensor(*elements: bytes) -> bytes:
    """Elements of a BYTES tensor in raw form."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)
