"""`bench`: figures beside their yardsticks."""

from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.command(epilog="Example: pipeline bench hit cache --json")(bench)


def bench(
    names: Annotated[list[str] | None, typer.Argument(help="Groups or single figures; none for all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A list of figures as JSON.")] = False,
    backlog: Annotated[int, typer.Option(min=1, help="Requests that wait, for the group memory.")] = 2000,
    seconds: Annotated[float, typer.Option(min=1, help="How long worker.memory_flat runs.")] = 60.0,
) -> None:
    """Measure: every figure beside its yardstick, in the same run."""
    from pipeline.bench.effort import Effort
    from pipeline.bench.main import run

    raise typer.Exit(run(names or [], as_json, Effort(backlog_records=backlog, flat_seconds=seconds)))
