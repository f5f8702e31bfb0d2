"""What every process of ours tells over HTTP: metrics, liveness, readiness, its own state."""

from collections.abc import Callable, Mapping
from typing import Any, Self

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest


class StatusServer:
    """Serves `/metrics`, `/health/live`, `/health/ready` and `/status`.

    Args:
        port: where to listen; 0 takes a free one, see `port` after the start.
        registry: the metrics.
        not_ready: reasons why the process is not ready, by name; empty when it is.
        state: what `/status` says besides, as JSON.
        host: the address to bind to.
    """

    def __init__(
        self,
        port: int,
        registry: CollectorRegistry,
        not_ready: Callable[[], Mapping[str, str]],
        state: Callable[[], Mapping[str, Any]],
        host: str = "127.0.0.1",
    ) -> None:
        self.port = port
        self._host = host
        self._registry = registry
        self._not_ready = not_ready
        self._state = state
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/health/live", self._live)
        app.router.add_get("/health/ready", self._ready)
        app.router.add_get("/status", self._status)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _live(self, request: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def _ready(self, request: web.Request) -> web.Response:
        reasons = dict(self._not_ready())
        return web.json_response({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response({"ready": not self._not_ready(), **self._state()})
