"""`pipeline bench`: chooses benchmarks, gives them servers, prints their figures."""

import asyncio
import logging
import signal
import sys
from collections.abc import Sequence

import orjson
import uvloop
from rich.console import Console
from rich.table import Table

from pipeline.bench.catalogue import Alone, Benchmark, OnServers, UnknownBenchmarkError, chosen
from pipeline.bench.effort import Effort
from pipeline.bench.figure import Bar, Figure
from pipeline.bench.machine import describe_machine
from pipeline.bench.rig import rig_on, stack_for, temporary_folder
from pipeline.config import Settings, load_settings

Chosen = Sequence[tuple[Benchmark, frozenset[str]]]
_SIGNS = {"ratio_at_least": "ratio ≥ {:g}", "ratio_at_most": "ratio ≤ {:g}", "value_below": "value < {:g}"}


def run(names: Sequence[str], as_json: bool, effort: Effort | None = None) -> int:
    """Measures and prints; progress goes to standard error.

    Args:
        names: groups or figures; none for all that take less than minutes.
        as_json: a JSON list of figures instead of tables.
        effort: how much; None for figures worth reading.

    Returns:
        The exit code: 0 when everything was measured, whether bars are met or not; 2 for an unknown name; 130 when
        it was interrupted.

    Raises:
        StackError, PipelineError: a server cannot start or be prepared.
    """
    try:
        benchmarks = chosen(names)
    except UnknownBenchmarkError as error:
        _tell(f"pipeline bench: {error}")
        return 2
    # The client's own lines on connections that open and close would drown the figures.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    machine = describe_machine()
    _tell(machine)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            figures = runner.run(_measure(benchmarks, load_settings(), effort or Effort()))
    except KeyboardInterrupt:
        figures = None
    if figures is None:
        _tell("interrupted; everything that was started is stopped")
        return 128 + signal.SIGINT
    if as_json:
        sys.stdout.buffer.write(orjson.dumps([figure.as_json(machine) for figure in figures]) + b"\n")
        sys.stdout.flush()
    else:
        _print(figures, machine)
    return 0


async def _measure(benchmarks: Chosen, settings: Settings, effort: Effort) -> list[Figure] | None:
    """All figures, or None where a signal came first: the stack's supervisor takes signals while it runs."""
    figures: list[Figure] = []
    for benchmark, wanted in benchmarks:
        if isinstance(benchmark, Alone):
            figures += _only(await benchmark.measure(settings, effort), wanted)
    on_servers = [(benchmark, wanted) for benchmark, wanted in benchmarks if isinstance(benchmark, OnServers)]
    # The sink's own servers: a Triton beside them would only take memory and time to start.
    for tritons in sorted({benchmark.tritons for benchmark, _ in on_servers}, reverse=True):
        some = [one for one in on_servers if one[0].tritons == tritons]
        if not await _measure_on_servers(some, tritons, settings, effort, figures):
            return None
    return figures


async def _measure_on_servers(
    benchmarks: Sequence[tuple[OnServers, frozenset[str]]],
    tritons: int,
    settings: Settings,
    effort: Effort,
    figures: list[Figure],
) -> bool:
    """Adds to `figures`; False where a signal ended it."""
    models = {model for benchmark, _ in benchmarks for model in benchmark.models}
    clickhouse = any(benchmark.clickhouse for benchmark, _ in benchmarks)
    done = 0
    with temporary_folder() as folder:
        async with (
            stack_for(settings, folder, _tell, tritons=tritons, clickhouse=clickhouse) as stack,
            rig_on(stack, settings, folder, _tell, models=models, clickhouse=clickhouse) as rig,
        ):
            for benchmark, wanted in benchmarks:
                figures += _only(await benchmark.measure(rig, effort), wanted)
                done += 1
    return done == len(benchmarks)


def _only(figures: Sequence[Figure], wanted: frozenset[str]) -> list[Figure]:
    return [figure for figure in figures if figure.name in wanted]


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _print(figures: Sequence[Figure], machine: str) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160, color_system=None)
    console.print(machine)
    console.print(_table(figures))
    for figure in figures:
        if figure.steps:
            console.print(_steps(figure))
    for figure in figures:
        console.print(f"[bold]{figure.name}[/bold]: {figure.how}; yardstick: {figure.yardstick_how}.")
        if figure.notes:
            console.print("  " + ", ".join(f"{name} {value:.4g}" for name, value in figure.notes.items()))


def _table(figures: Sequence[Figure]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("figure", "value", "unit", "yardstick", "ratio", "ratios seen", "bar", ""):
        table.add_column(name, justify="right" if name in {"value", "yardstick", "ratio"} else "left")
    for figure in figures:
        seen = f"{figure.ratios[0]:.2f}-{figure.ratios[1]:.2f}" if figure.ratios else ""
        met = "" if figure.bar is None else "[green]ok[/green]" if figure.ok else "[red]missed[/red]"
        table.add_row(
            figure.name, _number(figure.value), figure.unit, _number(figure.yardstick), _ratio(figure.ratio), seen,
            _bar(figure.bar), met,
        )  # fmt: skip
    return table


def _steps(figure: Figure) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"where {figure.name} goes")
    table.add_column(figure.unit, justify="right")
    for name, value in figure.steps.items():
        table.add_row(name, f"{value:.1f}")
    return table


def _bar(bar: Bar | None) -> str:
    return "" if bar is None else _SIGNS[bar.direction].format(bar.limit)


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _number(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"
