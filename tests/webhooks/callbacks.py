"""Callbacks as the worker writes them, and the process that delivers them, in this process or in one of its own."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaProducer
from standardwebhooks import Webhook

from pipeline.adapters.kafka import client_options
from pipeline.adapters.webhook_http import LookUp
from pipeline.config import Settings, WebhookSettings
from pipeline.core.callback_record import first_headers
from pipeline.core.exchange import Exchange
from pipeline.webhooks.main import WebhooksProcess
from tests.live.stack import LiveStack
from tests.models.folders import PROJECT
from tests.webhooks.receivers import Received

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLD_SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
# Quick, so that a whole schedule takes a second; the second tier is left for what is asked to wait.
QUICK: dict[str, Any] = {
    "secrets": {"": [SECRET, OLD_SECRET], "acme": [OLD_SECRET]},
    "allowed_networks": ["127.0.0.0/8"],
    "allow_http": True,
    "timeout_s": 1.0,
    "tiers_s": [0.1, 0.5],
    "retry_delays_s": [0.1, 0.1],
}
_STOP_TIMEOUT_S = 15.0

Headers = list[tuple[str, bytes]]


def with_webhooks(settings: Settings, **changes: Any) -> Settings:
    """The settings with quick retries to this machine."""
    return settings.model_copy(update={"webhooks": WebhookSettings.model_validate(QUICK | changes)})


def live_settings(stack: LiveStack, **changes: Any) -> Settings:
    """Settings of the stack with topics of their own."""
    return with_webhooks(stack.make_settings(kafka={"session_timeout_s": 6.0, "partitions": 2}), **changes)


def fresh_id() -> str:
    """An id that nobody has used."""
    return f"c-{uuid.uuid4().hex}"


def callback_record(
    url: str, request_id: str, *, tenant: str | None = None, offset: int = 0, completed_at: float = 1.0, text: str = ""
) -> tuple[bytes, Headers]:
    """Value and headers of a callback that nobody has tried to deliver."""
    exchange = Exchange("inference.requests", 3, offset, 0, None, 0.0, request_id, tenant=tenant)
    exchange.completed_at = completed_at
    value = json.dumps({"id": request_id, "status": "succeeded", "text": text}).encode()
    own = [("ce_id", request_id.encode()), ("ce_subject", b"echo"), ("content-type", b"application/json")]
    return value, first_headers(own, exchange, url)


def verified(call: Received, *secrets: str) -> Any:
    """The result that a call brought, once the standard's own library believes it with every one of these secrets."""
    for secret in secrets:
        result = Webhook(secret).verify(call.body, call.headers)
    assert result["id"] == call.webhook_id
    return result


class Requests:
    """Writes callbacks to the webhooks topic. Use it as an async context manager."""

    def __init__(self, settings: Settings) -> None:
        self._topic = settings.topic("webhooks")
        self._producer = AIOKafkaProducer(
            **client_options(settings.kafka), acks="all", max_request_size=settings.limits.record_bytes + (1 << 16)
        )
        self._offset = 0

    async def __aenter__(self) -> Self:
        await self._producer.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._producer.stop()

    async def ask(self, url: str, *, tenant: str | None = None, text: str = "") -> str:
        """One callback; returns its request's id once Kafka has it."""
        return (await self.ask_many([url], tenant=tenant, text=text))[0]

    async def ask_many(self, urls: Sequence[str], *, tenant: str | None = None, text: str = "") -> list[str]:
        """Likewise for many at once."""
        ids, sent = [fresh_id() for _ in urls], []
        for request_id, url in zip(ids, urls, strict=True):
            self._offset += 1
            value, headers = callback_record(
                url, request_id, tenant=tenant, offset=self._offset, completed_at=time.time(), text=text
            )
            sent.append(await self._producer.send(self._topic, value, key=request_id.encode(), headers=headers))
        await asyncio.gather(*sent)
        return ids


@asynccontextmanager
async def delivering(settings: Settings, look_up: LookUp | None = None) -> AsyncIterator[WebhooksProcess]:
    """The process, within this one; it must end as it should."""
    process = WebhooksProcess(settings, look_up=look_up)
    stop = asyncio.Event()
    running = asyncio.create_task(process.run(stop))
    try:
        yield process
    finally:
        stop.set()
        await running


class WebhooksChild:
    """`pipeline webhooks` as a process that can be killed.

    Args:
        settings: what it gets, by environment variables.
    """

    def __init__(self, settings: Settings) -> None:
        variables: Mapping[str, str] = {
            "PIPELINE_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers or "",
            "PIPELINE_KAFKA__TOPIC_PREFIX": settings.kafka.topic_prefix,
            "PIPELINE_KAFKA__SESSION_TIMEOUT_S": str(settings.kafka.session_timeout_s),
            "PIPELINE_DATA_DIR": str(settings.data_dir),
        } | {f"PIPELINE_WEBHOOKS__{name.upper()}": json.dumps(value) for name, value in QUICK.items()}
        program = "import typer; from pipeline.cli import webhooks; app = typer.Typer(); webhooks.add_to(app); app()"
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        self._log_path = settings.data_dir / f"webhooks-{fresh_id()}.log"
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                (sys.executable, "-c", program), cwd=PROJECT, env=os.environ | variables, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log,
            )  # fmt: skip

    @property
    def log(self) -> str:
        """What it has written."""
        return self._log_path.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL, and nothing more."""
        self._process.kill()
        self._process.wait()

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit code after a signal; it is killed where it does not end."""
        self._process.send_signal(number)
        try:
            return await asyncio.to_thread(self._process.wait, _STOP_TIMEOUT_S)
        finally:
            self.kill()
