"""`worker`, `gateway`, `sink` and `watcher`: one process each, in the foreground, until SIGTERM or Ctrl-C."""

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from pipeline.config import Settings


def add_to(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.command(epilog="Example: PIPELINE_WORKER__MAX_IN_FLIGHT=512 pipeline worker")(worker)
    app.command(epilog="Example: PIPELINE_GATEWAY__PORT=9000 pipeline gateway")(gateway)
    app.command(epilog="Example: PIPELINE_SINK__BATCH_WAIT_S=0.2 pipeline sink")(sink)
    app.command(epilog="Example: PIPELINE_WATCHER__INTERVAL_S=1 pipeline watcher")(watcher)


def worker() -> None:
    """Answer requests: the cache, then Triton. Start as many as there is work, up to one per partition."""
    from pipeline.cli.context import effective_settings, log_to_stderr
    from pipeline.worker.main import run_worker

    settings = effective_settings()
    log_to_stderr(settings.log)
    raise typer.Exit(run_worker(settings))


def gateway() -> None:
    """Take requests over HTTP and hand results out, on 127.0.0.1:8080 by default. Start as many as there is work."""
    from pipeline.cli.context import effective_settings, log_to_stderr
    from pipeline.gateway.delivery.current_request import current_request
    from pipeline.gateway.main import run_gateway

    settings = effective_settings()
    log_to_stderr(settings.log, current_request)
    raise typer.Exit(run_gateway(settings))


def sink() -> None:
    """Move the events to ClickHouse, each once. Start as many as there is work, up to one per partition."""
    import uvloop

    from pipeline.cli.context import effective_settings, log_to_stderr

    settings = effective_settings()
    log_to_stderr(settings.log)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run_sink(settings))


def watcher() -> None:
    """Bring new versions from the model repository to every Triton while they serve. Start one, or two for safety."""
    from pipeline.cli.context import effective_settings, log_to_stderr
    from pipeline.watcher.main import run_watcher

    settings = effective_settings()
    log_to_stderr(settings.log)
    raise typer.Exit(run_watcher(settings))


async def _run_sink(settings: "Settings") -> None:
    from prometheus_client import CollectorRegistry

    from pipeline.adapters.status_http import StatusServer
    from pipeline.sink.run import Readiness, run_sink

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    registry = CollectorRegistry()
    readiness: list[Readiness] = []

    def state() -> dict[str, Any]:
        return {"pid": os.getpid()}

    def not_ready() -> dict[str, str]:
        return dict(readiness[-1]()) if readiness else {"sink": "starting"}

    async with StatusServer(settings.sink.metrics_port, registry, not_ready, state):
        await run_sink(settings, stop, registry=registry, on_ready=readiness.append)
