"""`models`: the repository, what the fleet serves, and which version answers."""

import asyncio
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli import promotion, publication

if TYPE_CHECKING:
    from pipeline.watcher.repository.model_folder import RepositoryScan
    from schemas.registry import ModelRecord

_AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]


def add_to(app: typer.Typer) -> None:
    """Adds this module's commands."""
    models = typer.Typer(
        help="Models: what owners put there, and what is served.",
        epilog="Example: pipeline models list",
        no_args_is_help=True,
    )
    models.command(epilog="Example: PIPELINE_MODEL_REPOSITORY=/srv/models pipeline models check")(check)
    models.command(epilog="Example: pipeline models register")(register)
    models.command("list", epilog="Example: pipeline models list --json")(list_models)
    publication.add_to(models)
    promotion.add_to(models)
    app.add_typer(models, name="models")


def check(as_json: _AsJson = False) -> None:
    """Look at the model repository as a server would; exit code 1 if it would not serve all of it."""
    from pipeline.config import load_settings
    from pipeline.watcher.repository.scan import scan

    found = scan(load_settings().model_repository)
    if as_json:
        typer.echo(json.dumps(_scan_as_json(found), indent=2))
    else:
        for model in found.models:
            versions = ", ".join(version.number for version in model.versions) or "none"
            typer.echo(f"{model.name}: versions {versions}; served: {', '.join(model.selected) or 'none'}")
        for fault in found.faults:
            typer.echo(str(fault), err=True)
        if not found.writable:
            typer.echo(f"{found.path}: this user may not write into it", err=True)
        typer.echo(f"{len(found.models)} models, {len(found.faults)} faults in {found.path}")
    raise typer.Exit(1 if found.faults else 0)


def _scan_as_json(found: "RepositoryScan") -> dict[str, Any]:
    return {
        "path": str(found.path),
        "writable": found.writable,
        "models": [
            {
                "name": model.name,
                "versions": [version.number for version in model.versions],
                "selected": list(model.selected),
            }
            for model in found.models
        ],
        "faults": [{"path": str(fault.path), "line": fault.line, "reason": fault.reason} for fault in found.faults],
    }


def register(as_json: _AsJson = False) -> None:
    """Bring the repository's models to every Triton and announce them: one pass, safe to repeat."""
    from pipeline.cli.context import effective_settings, quiet_libraries
    from pipeline.watcher.main import register_once

    quiet_libraries()
    report = asyncio.run(register_once(effective_settings()))
    if as_json:
        versions = [asdict(version) for version in report.versions]
        faults = [str(fault) for fault in report.faults]
        content = {"ok": report.ok, "versions": versions, "faults": faults, "unreachable": list(report.unreachable)}
        typer.echo(json.dumps(content, indent=2))
    else:
        for line, is_error in report.lines():
            typer.echo(line, err=is_error)
    raise typer.Exit(0 if report.ok else 1)


def list_models(as_json: _AsJson = False) -> None:
    """What the fleet serves, as announced on the models topic."""
    from pipeline.cli.console import plain_table, show

    records = asyncio.run(_read_records())
    if as_json:
        typer.echo(json.dumps([record.model_dump(mode="json") for record in records], indent=2))
        return
    rows = [
        (record.model_name, number, version.state, _role(record, number), version.fingerprint[:12],
         version.reason or "")
        for record in records
        for number, version in sorted(record.versions.items(), key=lambda item: int(item[0]))
    ]  # fmt: skip
    show(plain_table(("model", "version", "state", "", "fingerprint", "reason"), rows))


def _role(record: "ModelRecord", number: str) -> str:
    if number == record.default_version:
        return "default"
    if record.canary is not None and number == record.canary.version:
        return f"on trial: {record.canary.share:.1%}"
    words = ("previous" if number == record.previous_version else "", "held" if number in record.held else "")
    return ", ".join(word for word in words if word)


async def _read_records() -> "list[ModelRecord]":
    from pipeline.adapters.kafka import client_options
    from pipeline.adapters.models_topic import read_models
    from pipeline.cli.context import effective_settings, quiet_libraries

    quiet_libraries()
    settings = effective_settings()
    found = await read_models(client_options(settings.kafka), settings.topic("models"))
    return [found[name] for name in sorted(found)]
