"""`topics create` and `migrate`: the topics and the tables, as this version of the program wants them."""

import asyncio
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.adapters.topics import TopicsReport


def add_to(app: typer.Typer) -> None:
    """Adds this module's commands."""
    topics = typer.Typer(help="Kafka's topics.", epilog="Example: pipeline topics create", no_args_is_help=True)
    topics.command(epilog="Example: pipeline topics create --alter")(create)
    app.add_typer(topics, name="topics")
    app.command(epilog="Example: PIPELINE_CLICKHOUSE__URL=http://clickhouse:8123 pipeline migrate")(migrate)


def create(
    alter: Annotated[bool, typer.Option("--alter", help="Change settings of existing topics that do not fit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="What was done, as JSON.")] = False,
) -> None:
    """Make the topics that are missing and check the others; exit code 1 while something does not fit."""
    from pipeline.adapters.topics import create_topics
    from pipeline.cli.context import effective_settings, quiet_libraries

    quiet_libraries()
    report = asyncio.run(create_topics(effective_settings(), alter=alter))
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2))
    else:
        _print_report(report)
    raise typer.Exit(1 if report.differences else 0)


def _print_report(report: "TopicsReport") -> None:
    for name in report.created:
        typer.echo(f"{name}: made")
    for name in report.existing:
        typer.echo(f"{name}: there already")
    for change in report.altered:
        typer.echo(f"{change.topic}: {change.setting} changed from {change.found or 'nothing'} to {change.expected}")
    for difference in report.differences:
        typer.echo(str(difference), err=True)


def migrate(as_json: Annotated[bool, typer.Option("--json", help="The files applied, as JSON.")] = False) -> None:
    """Bring ClickHouse's tables to this version; a second run changes nothing."""
    from pipeline.cli.context import effective_settings
    from pipeline.sink.migrations.runner import migrate as apply

    settings = effective_settings().clickhouse
    applied = asyncio.run(apply(settings))
    if as_json:
        typer.echo(json.dumps({"database": settings.database, "applied": applied}))
        return
    for name in applied:
        typer.echo(f"{name}: applied")
    typer.echo(f"database {settings.database} is up to date")
