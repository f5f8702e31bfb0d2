"""`up`: everything on one machine, until Ctrl-C."""

import asyncio
import time
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.config import Settings
    from pipeline.stack import PartState


def add_to(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.command(epilog="Example: PIPELINE_KAFKA__BOOTSTRAP_SERVERS=kafka:9092 pipeline up --workers 2")(up)


def up(
    workers: Annotated[int, typer.Option(min=0, max=64, help="How many workers to start.")] = 1,
    with_sink: Annotated[bool, typer.Option("--sink/--no-sink", help="Whether to start the sink.")] = True,
) -> None:
    """Start everything that is not configured as somebody else's, and keep it running; Ctrl-C stops it."""
    from pipeline.cli.context import quiet_libraries
    from pipeline.config import load_settings

    quiet_libraries()
    raise typer.Exit(asyncio.run(_stay_up(load_settings(), workers, with_sink=with_sink)))


async def _stay_up(settings: "Settings", workers: int, *, with_sink: bool) -> int:
    from pipeline.cli.local_pipeline import plan_stack, start_all
    from pipeline.stack import Stack
    from pipeline.watcher.fleet.strategy import chosen_update

    chosen_update(settings)  # a fleet that nobody can restart is told before anything starts
    lines = StateLines()
    async with Stack(plan_stack(settings), lines.change) as stack:
        full = await start_all(stack, settings, workers, lines.tell, with_sink=with_sink)
        _print_ready(full, stack.endpoints.other.get("gateway"), stack.logs_dir)
        await stack.wait_stopped()
    lines.tell("everything is stopped")
    return 0 if stack.stop_signal is not None else 1


class StateLines:
    """One line per change of state, with the time of day and what kind of news it is."""

    _STYLES = {"ready": "green", "exited": "red", "failed": "bold red", "restarting": "yellow"}  # noqa: RUF012

    def change(self, state: "PartState") -> None:
        """Tells of a part's change of state."""
        from pipeline.cli.local_pipeline import describe

        self.tell(describe(state), self._STYLES.get(state.phase.value))

    def tell(self, line: str, style: str | None = None) -> None:
        """Tells anything else."""
        from pipeline.cli.console import show

        show(f"{time.strftime('%H:%M:%S')}  {line}", style=style)


def _print_ready(settings: "Settings", gateway_url: str | None, logs_dir: object) -> None:
    from pipeline.cli.console import program, show

    addresses = {
        "Gateway": gateway_url,
        "Kafka": settings.kafka.bootstrap_servers,
        "Triton": ", ".join(settings.triton.urls or ()),
        "ClickHouse": settings.clickhouse.url,
        "Valkey": settings.redis.url,
        "logs": logs_dir,
    }
    show()
    show("ready", style="bold green")
    for name, address in addresses.items():
        if address:
            show(f"  {name:<11}{address}")
    show("try, in another terminal")
    name = program()
    for command in (
        f"{name} status",
        f'echo "What a lovely day" | {name} submit - --model sentences --input text --lines',
        f"{name} results --from-beginning --limit 10",
        f'{name} sql "SELECT model_name, cache_status, count() FROM requests GROUP BY ALL"',  # noqa: S608 - shown, not run
    ):
        show(f"  {command}")
    show("Ctrl-C stops everything")
    show()
