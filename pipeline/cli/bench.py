"""`bench`: figures beside their yardsticks."""

from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.command(epilog="Example: pipeline bench hit cache --json")(bench)


def bench(
    names: Annotated[list[str] | None, typer.Argument(help="Groups or single figures; none for all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A list of figures as JSON.")] = False,
) -> None:
    """Measure: every figure beside its yardstick, in the same run."""
    from pipeline.bench.main import run

    raise typer.Exit(run(names or [], as_json))
