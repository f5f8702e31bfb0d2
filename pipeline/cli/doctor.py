"""`doctor`: what this machine lacks, and which configured servers do not answer."""

import asyncio
import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.config import Settings
    from pipeline.stack.doctor import Check


def add_to(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.command(epilog="Example: pipeline doctor --json")(doctor)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="The checks as JSON.")] = False) -> None:
    """Check the machine, the model repository and the configured servers; exit code 1 if anything is missing."""
    from pipeline.cli.context import quiet_libraries
    from pipeline.config import load_settings

    quiet_libraries()
    checks = _checks(load_settings())
    if as_json:
        found = [{"name": one.name, "ok": one.ok, "detail": one.detail, "mend": one.mend} for one in checks]
        typer.echo(json.dumps(found, indent=2))
    else:
        _print_checks(checks)
    raise typer.Exit(0 if all(one.ok for one in checks) else 1)


def _checks(settings: "Settings") -> "list[Check]":
    """What is needed with these settings: the local stack's needs only where a server is local."""
    from pipeline.stack.doctor import check_machine

    addresses = (settings.kafka.bootstrap_servers, settings.clickhouse.url, settings.redis.url, settings.triton.urls)
    checks = check_machine(settings.data_dir) if None in addresses else []
    servers = _check_servers(settings)
    return [*checks, _check_repository(settings), *servers, *_check_log(settings, servers)]


def _check_repository(settings: "Settings") -> "Check":
    from pipeline.errors import ModelRepositoryError
    from pipeline.stack.doctor import make_check
    from pipeline.watcher.repository.scan import scan

    try:
        found = scan(settings.model_repository)
    except ModelRepositoryError as error:
        return make_check("model repository", False, str(error), "set PIPELINE_MODEL_REPOSITORY to a folder of models")
    detail = f"{len(found.models)} models in {found.path}"
    if found.faults:
        detail += f", {len(found.faults)} faults; the first: {found.faults[0]}"
    return make_check("model repository", not found.faults, detail, "mend what `pipeline models check` names")


def _check_servers(settings: "Settings") -> "list[Check]":
    """Whether what is configured, or runs in the data folder, answers."""
    from pipeline.cli.context import with_endpoints
    from pipeline.cli.probes import probe_all
    from pipeline.stack.doctor import make_check
    from pipeline.stack.state import read_running

    running = read_running(settings.data_dir)
    full = settings if running is None else with_endpoints(settings, running.endpoints)
    mend = "start it, or correct its address"
    return [
        make_check(part.name, not part.problem, f"{part.address}: {part.problem or 'answers'}", mend)
        for part in asyncio.run(probe_all(full, running))
    ]


def _check_log(settings: "Settings", servers: "list[Check]") -> "list[Check]":
    """The log's rows, where both Kafka and ClickHouse answer."""
    from pipeline.cli.context import with_endpoints
    from pipeline.cli.doctor_log import check_log
    from pipeline.stack.state import read_running

    answering = {one.name for one in servers if one.ok}
    if not {"kafka", "clickhouse"} <= answering:
        return []
    running = read_running(settings.data_dir)
    return check_log(settings if running is None else with_endpoints(settings, running.endpoints))


def _print_checks(checks: "list[Check]") -> None:
    from pipeline.cli.console import show

    for one in checks:
        show(f"{'ok     ' if one.ok else 'MISSING'}  {one.name}: {one.detail}", style=None if one.ok else "red")
        if one.mend:
            show(f"         {one.mend}")
    missing = sum(not one.ok for one in checks)
    show(f"{missing} of {len(checks)} checks failed" if missing else f"all {len(checks)} checks passed", style="bold")
