"""`status`: what runs, where, and whether it is ready."""

import asyncio
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipeline.cli.probes import Probed
    from pipeline.config import Settings
    from pipeline.stack import StackState

_MEMBERS = ("kafka", "gateway", "clickhouse", "redis", "triton", "workers", "sink", "watcher")
_LISTS = frozenset({"triton", "workers"})


def add_to(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.command(epilog="Example: PIPELINE_DATA_DIR=/srv/pipeline pipeline status --json")(status)


def status(as_json: Annotated[bool, typer.Option("--json", help="As JSON; null for what is down.")] = False) -> None:
    """Show what runs; exit code 1 while something that is configured is not ready."""
    from pipeline.cli.context import quiet_libraries, with_endpoints
    from pipeline.cli.probes import probe_all
    from pipeline.config import load_settings
    from pipeline.stack.state import read_running

    quiet_libraries()
    settings = load_settings()
    running = read_running(settings.data_dir)
    if running is not None:
        settings = with_endpoints(settings, running.endpoints)
    probed = asyncio.run(probe_all(settings, running))
    if as_json:
        typer.echo(json.dumps(as_document(settings, probed, running), indent=2))
    else:
        _print_table(settings, probed)
    raise typer.Exit(0 if probed and not any(part.problem for part in probed) else 1)


def as_document(settings: "Settings", probed: "list[Probed]", running: "StackState | None" = None) -> dict[str, Any]:
    """What `status --json` prints: null for what is down, not built or not configured.

    `processes` are those the supervisor keeps, ready or not: what hangs is found by its pid.
    """
    document: dict[str, Any] = dict.fromkeys(_MEMBERS)
    for part in probed:
        if part.problem or part.kind not in document:
            continue
        if part.kind in _LISTS:
            document[part.kind] = [*(document[part.kind] or []), dict(part.facts)]
        else:
            document[part.kind] = dict(part.facts)
    repository = settings.model_repository.absolute()
    document["model_repository"] = str(repository) if repository.is_dir() else None
    document["processes"] = (
        [
            {"name": name, "pid": process.pid}
            for name, process in sorted(running.processes.items())
            if process.is_alive()
        ]
        if running is not None
        else None
    )
    return document


def _fleet_rows(part: "Probed") -> "list[tuple[str, ...]]":
    """Which instance gets how much of a worker's calls, and why."""
    return [
        (
            part.name,
            seen["name"],
            str(seen["calls"]),
            str(seen["unanswered"]),
            str(seen["in_flight"]),
            f"{seen['latency_s'] * 1e3:.1f} ms",
            f"nothing for {seen['ejected_s']:.1f} s" if seen["ejected_s"] else f"{seen['share']:.0%} of its part",
        )
        for seen in part.facts.get("fleet", {}).get("instances", ())
    ]


def _print_table(settings: "Settings", probed: "list[Probed]") -> None:
    from pipeline.cli.console import plain_table, show

    rows = [
        (
            part.name,
            f"not ready: {part.problem}" if part.problem else "ready",
            part.address,
            "" if part.facts.get("pid") is None else str(part.facts["pid"]),
            " ".join(map(str, part.facts.get("partitions", ()))),
        )
        for part in probed
    ]
    if rows:
        show(plain_table(("part", "state", "address", "pid", "partitions"), rows))
        if fleet := [row for part in probed for row in _fleet_rows(part)]:
            show(plain_table(("worker", "instance", "calls", "unanswered", "in flight", "latency", "gets"), fleet))
    else:
        show(f"nothing runs in {settings.data_dir} and nothing is configured: start with `pipeline up`")
