"""`cache stats` and `cache clear`: what the caches of all workers hold, how much they help, and dropping it."""

import asyncio
import json
import re
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.adapters.control_topic import Asked
    from pipeline.cli.cache_view import ClearOutcome
    from pipeline.config import Settings
    from schemas.control import CacheClearCommand, CacheCommand

Timeout = Annotated[float, typer.Option("--timeout", min=0.1, max=600, help="Seconds to wait for the workers.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]


def add_to(app: typer.Typer) -> None:
    """Adds this module's commands."""
    cache = typer.Typer(
        help="The caches of all workers, and the shared one.",
        epilog="Example: pipeline cache stats",
        no_args_is_help=True,
    )
    cache.command(epilog="Example: pipeline cache stats --json")(stats)
    cache.command(epilog="Example: pipeline cache clear --model digits --version 2")(clear)
    app.add_typer(cache, name="cache")


def stats(timeout: Timeout = 10.0, as_json: AsJson = False) -> None:
    """Show what the workers' caches hold, and how requests met them; exit code 1 where a worker does not answer."""
    from pipeline.cli.cache_view import show_stats, stats_document
    from pipeline.cli.context import effective_settings, quiet_libraries
    from schemas.control import CacheStatsCommand

    quiet_libraries()
    asked = asyncio.run(_ask(effective_settings(), CacheStatsCommand(id=_command_id()), timeout))
    if as_json:
        typer.echo(json.dumps(stats_document(asked), indent=2))
    else:
        show_stats(asked)
    for member in asked.missing:
        typer.echo(f"no answer: {member}", err=True)
    raise typer.Exit(1 if asked.missing else 0)


def clear(
    model: Annotated[str | None, typer.Option(help="Only answers of this model.")] = None,
    version: Annotated[str | None, typer.Option(help="Only of this version of the model.")] = None,
    tenant: Annotated[str | None, typer.Option(help='Only of this tenant; "" for requests without one.')] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; with a filter nothing is asked.")] = False,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> None:
    """Drop stored answers from the workers' caches and the shared one; what is being computed is not stored either.

    Exit code 1 where a worker or the shared cache does not answer: clear again once it is back.
    """
    from pipeline.cli.cache_view import clear_document, show_cleared
    from pipeline.cli.context import effective_settings, quiet_libraries
    from schemas.control import CacheClearCommand

    if version is not None and model is None:
        raise typer.BadParameter("--version needs --model: each model has a version of that number")
    if version is not None and re.fullmatch(r"[0-9]{1,18}", version) is None:
        raise typer.BadParameter(f"--version {version}: expected a version's number, e.g. 2")
    quiet_libraries()
    settings = effective_settings()
    if model is None and tenant is None and not yes:
        typer.confirm("Drop all stored answers, of all models and tenants?", abort=True, err=True)
    command = CacheClearCommand(id=_command_id(), tenant=tenant, model_name=model, model_version=version)
    outcome = asyncio.run(_clear(settings, command, timeout))
    if as_json:
        typer.echo(json.dumps(clear_document(outcome), indent=2))
    else:
        show_cleared(outcome)
    for problem in outcome.problems:
        typer.echo(problem, err=True)
    raise typer.Exit(1 if outcome.problems else 0)


async def _ask(settings: "Settings", command: "CacheCommand", timeout_s: float) -> "Asked":
    from pipeline.adapters.control_topic import ask_workers
    from pipeline.adapters.kafka import client_options

    options = client_options(settings.kafka)
    return await ask_workers(options, settings.topic("control"), settings.worker.group, command, timeout_s)


async def _clear(settings: "Settings", command: "CacheClearCommand", timeout_s: float) -> "ClearOutcome":
    """Clears the workers, the shared cache behind them, and the workers again.

    After the first round no worker gives old answers to the shared cache any more. What one took from there until that
    was cleared, too, goes in the second.
    """
    from pipeline.cli.cache_view import ClearOutcome
    from pipeline.errors import PipelineError

    outcome = ClearOutcome()
    outcome.add(await _ask(settings, command, timeout_s))
    if settings.redis.url:
        try:
            outcome.shared_entries = await _clear_shared(settings, command)
        except PipelineError as error:
            outcome.shared_problem = str(error)
        outcome.add(await _ask(settings, command.model_copy(update={"id": _command_id()}), timeout_s))
    return outcome


async def _clear_shared(settings: "Settings", command: "CacheClearCommand") -> int:
    from random import Random

    from pipeline.adapters.redis import RedisSharedCache
    from pipeline.adapters.system import SystemClock

    cache = RedisSharedCache(settings.redis, settings.cache, settings.kafka.topic_prefix, SystemClock(), Random())
    try:
        return await cache.clear(
            tenant=command.tenant, model_name=command.model_name, model_version=command.model_version
        )
    finally:
        await cache.close()


def _command_id() -> str:
    from pipeline.client.client import fresh_id

    return fresh_id()
