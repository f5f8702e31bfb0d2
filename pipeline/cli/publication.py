"""`models publish`: a version into the model repository, whole or not at all."""

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.watcher.repository.publishing import Published

# How often the models topic is read while the fleet takes a version: a load takes a second at least.
_LOOK_S = 0.5


def add_to(models: typer.Typer) -> None:
    """Adds this module's command to the `models` group."""
    models.command(epilog="Example: pipeline models publish build/model.onnx --model resnet --wait")(publish)


def publish(
    path: Annotated[
        Path, typer.Argument(exists=True, help="A model file, a folder of a version's files, or a model folder.")
    ],
    model: Annotated[str, typer.Option("--model", help="The model's name.")],
    version: Annotated[
        str | None, typer.Option("--version", help="Its number, or next; by default PATH's own number, else next.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the fleet serves it, or has rejected it.")] = False,
    timeout_s: Annotated[float, typer.Option("--timeout", min=1.0, help="Seconds to wait.")] = 120.0,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Copy a version into the model repository by one rename; what `models check` would refuse is refused."""
    from pipeline.config import load_settings
    from pipeline.errors import ModelRepositoryError
    from pipeline.watcher.repository.names import is_version, model_name_fault
    from pipeline.watcher.repository.publishing import PublishRefused
    from pipeline.watcher.repository.publishing import publish as put

    if (reason := model_name_fault(model)) is not None:
        raise typer.BadParameter(reason, param_hint="--model")
    if version not in (None, "next") and not is_version(version or ""):
        raise typer.BadParameter(
            f"{version!r} is given, a positive integer or next is expected", param_hint="--version"
        )
    repository = load_settings().model_repository
    try:
        published = put(repository, path, model, version)
    except PublishRefused as error:
        if as_json:
            faults = [{"path": str(each.path), "line": each.line, "reason": each.reason} for each in error.faults]
            typer.echo(json.dumps({"published": False, "model": model, "faults": faults}, indent=2))
        for fault in error.faults:
            typer.echo(str(fault), err=True)
        raise typer.Exit(1) from None
    except OSError as error:
        raise ModelRepositoryError(error.filename or repository, f"cannot be written: {error.strerror}") from None
    if not as_json:
        typer.echo(_words(published))
    outcome = asyncio.run(_outcome(published, timeout_s)) if wait else None
    if as_json:
        typer.echo(json.dumps(_as_json(published, outcome), indent=2))
    elif outcome is not None:
        typer.echo(f"{model} version {published.version}: {outcome}", err=outcome != "served")
    raise typer.Exit(0 if outcome in (None, "served") else 1)


def _words(published: "Published") -> str:
    name = f"{published.model_name} version {published.version}"
    if not published.is_new:
        text = f"{name}: there already with this content, {published.path}"
    else:
        text = f"{name}: published, {published.files} files, {published.size_bytes} bytes, {published.path}"
    return text if published.is_selected else f"{text}\n{name}: version_policy in config.pbtxt does not select it"


def _as_json(published: "Published", outcome: str | None) -> dict[str, object]:
    return {
        "published": published.is_new,
        "model": published.model_name,
        "version": published.version,
        "path": str(published.path),
        "files": published.files,
        "size_bytes": published.size_bytes,
        "selected": published.is_selected,
        "outcome": outcome,
    }


async def _outcome(published: "Published", timeout_s: float) -> str:
    """`served`, or why not: rejected, not selected, or not in time."""
    from pipeline.adapters.kafka import client_options
    from pipeline.adapters.models_topic import read_models
    from pipeline.cli.context import effective_settings, quiet_libraries

    if not published.is_selected:
        return "not served: version_policy does not select it"
    quiet_libraries()
    settings = effective_settings()
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                record = (await read_models(client_options(settings.kafka), settings.topic("models"))).get(
                    published.model_name
                )
                found = record.versions.get(published.version) if record is not None else None
                if found is not None and found.state == "rejected":
                    return f"rejected: {found.reason or 'the fleet refused it'}"
                if found is not None and found.state == "ready":
                    return "served"
                await asyncio.sleep(_LOOK_S)
    except TimeoutError:
        return f"not served within {timeout_s:g} s: does a watcher run? (pipeline status)"
