"""`sql`: questions to the inference log."""

import asyncio
import sys
from typing import Annotated, Any

import typer


def add_to(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.command(epilog='Example: pipeline sql "SELECT model_name, count() FROM requests GROUP BY model_name"')(sql)


def sql(
    query: Annotated[str, typer.Argument(help="A statement in ClickHouse's SQL.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per row.")] = False,
    format_name: Annotated[
        str | None, typer.Option("--format", help="A format of ClickHouse's: CSVWithNames, Parquet, …")
    ] = None,
) -> None:
    """Ask the inference log in ClickHouse: tables `events` and `requests`, view `requests_per_minute`."""
    if as_json and format_name:
        raise typer.BadParameter("--json is a format of its own; give one of both")
    asyncio.run(_print_answer(query, "JSONEachRow" if as_json else format_name))


async def _print_answer(query: str, format_name: str | None) -> None:
    from pipeline.adapters.clickhouse import ClickHouseEventStore
    from pipeline.cli.context import effective_settings

    async with ClickHouseEventStore(effective_settings().clickhouse) as store:
        if format_name is None:
            answer = await store.query(query)
            _print_table(answer.column_names, answer.rows)
        else:
            sys.stdout.buffer.write(await store.query_raw(query, format_name))
            sys.stdout.buffer.flush()


def _print_table(names: tuple[str, ...], rows: Any) -> None:
    from pipeline.cli.console import plain_table, show

    show(plain_table(names, rows))
    show(f"{len(rows)} {'row' if len(rows) == 1 else 'rows'}", style="dim")
