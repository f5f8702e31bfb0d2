"""The whole gateway over fake inferences, for tests: asked within this process, or over real sockets."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI

from pipeline.config import GatewaySettings, LimitSettings, Settings
from pipeline.gateway.app import create_app
from pipeline.gateway.http.limits import Limits
from tests.gateway.fake_inferences import FakeInferences

BODY: dict[str, Any] = {
    "model_name": "digits",
    "inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}],
}


@dataclass(frozen=True)
class Front:
    """A gateway and a client that asks it."""

    inferences: FakeInferences
    limits: Limits
    app: FastAPI
    http: httpx.AsyncClient

    async def problem(self, method: str, path: str, **options: Any) -> tuple[int, str]:
        """Status and code of an answer that must be a problem."""
        response = await self.http.request(method, path, **options)
        assert response.headers["content-type"] == "application/problem+json", response.text
        document = response.json()
        assert document["status"] == response.status_code
        assert document["type"].endswith(document["code"])
        assert document["title"]
        assert document["detail"]
        return response.status_code, document["code"]


def settings_of(record_bytes: int = 64 * 1024, **gateway: Any) -> Settings:
    """Settings of a gateway, with a record limit that a test can reach."""
    return Settings(gateway=GatewaySettings(**gateway), limits=LimitSettings(record_bytes=record_bytes))


@asynccontextmanager
async def front(*, echoes: bool = False, record_bytes: int = 64 * 1024, **gateway: Any) -> AsyncIterator[Front]:
    """A gateway asked without sockets."""
    settings = settings_of(record_bytes, **gateway)
    inferences, limits = FakeInferences(echoes=echoes), Limits(settings.gateway)
    app = create_app(inferences, settings, limits=limits)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        yield Front(inferences, limits, app, http)


async def until(condition: Callable[[], object]) -> None:
    """Returns once a condition holds; the test's own time limit ends it otherwise."""
    while not condition():  # noqa: ASYNC110 - what is looked at has no event
        await asyncio.sleep(0.001)
