"""`models promote | rollback`: which version answers requests that name none. The watcher does it; these ask it."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer
import uuid_utils

if TYPE_CHECKING:
    from schemas.control import ModelPromoteReply
    from schemas.registry import ModelRecord

_Model = Annotated[str, typer.Argument(help="The model's name.")]
_AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]
_Timeout = Annotated[float, typer.Option("--timeout", min=1.0, help="Seconds to wait for the watcher.")]


def add_to(models: typer.Typer) -> None:
    """Adds this module's commands to the `models` group."""
    models.command(epilog="Example: pipeline models promote digits 2 --share 0.05")(promote)
    models.command(epilog="Example: pipeline models rollback digits")(rollback)


def promote(
    model: _Model,
    version: Annotated[str, typer.Argument(help="The version's number.")],
    share: Annotated[
        float | None,
        typer.Option(min=0.0, max=0.999, help="Try it with this share of the requests that name no version; 0 ends."),
    ] = None,
    timeout_s: _Timeout = 30.0,
    as_json: _AsJson = False,
) -> None:
    """Make a version the default, two seconds from now; higher ones do not take over by themselves any more."""
    _ask(model, version, share, None, timeout_s, as_json=as_json)


def rollback(model: _Model, timeout_s: _Timeout = 30.0, as_json: _AsJson = False) -> None:
    """Make the version that was the default before the default again."""
    from pipeline.errors import PromotionError

    record = asyncio.run(_read(model))
    if record is None:
        raise PromotionError(f"model {model!r} is not announced")
    if record.previous_version is None:
        raise PromotionError(f"{model} has had no other version than {record.default_version} for its default")
    _ask(model, record.previous_version, None, record.default_version, timeout_s, as_json=as_json)


def _ask(
    model: str, version: str, share: float | None, expected: str | None, timeout_s: float, *, as_json: bool
) -> None:
    reply = asyncio.run(_asked(model, version, share, expected, timeout_s))
    if as_json:
        typer.echo(reply.model_dump_json(exclude={"command", "id"}, indent=2))
    elif reply.error is not None:
        typer.echo(reply.error, err=True)
    else:
        typer.echo(_words(model, version, share, reply))
    raise typer.Exit(0 if reply.error is None else 1)


def _words(model: str, version: str, share: float | None, reply: "ModelPromoteReply") -> str:
    if not reply.changed:
        return f"{model}: nothing to change, version {reply.default_version} is the default"
    if share:
        return f"{model}: version {version} answers {share:.1%} of the requests that name none"
    if share is not None:
        return f"{model}: version {version} is not tried any more; the default is {reply.default_version}"
    return f"{model}: version {version} is the default from {reply.effective_at}; before: {reply.previous_version}"


async def _read(model: str) -> "ModelRecord | None":
    from pipeline.adapters.kafka import client_options
    from pipeline.adapters.models_topic import read_models
    from pipeline.cli.context import effective_settings, quiet_libraries

    quiet_libraries()
    settings = effective_settings()
    return (await read_models(client_options(settings.kafka), settings.topic("models"))).get(model)


async def _asked(
    model: str, version: str, share: float | None, expected: str | None, timeout_s: float
) -> "ModelPromoteReply":
    from pipeline.adapters.control_topic import ask_watcher
    from pipeline.adapters.kafka import client_options
    from pipeline.cli.context import effective_settings, quiet_libraries
    from schemas.control import ModelPromoteCommand

    quiet_libraries()
    settings = effective_settings()
    command = ModelPromoteCommand(
        id=str(uuid_utils.uuid7()), model_name=model, version=version, share=share, expected_default=expected
    )
    return await ask_watcher(client_options(settings.kafka), settings.topic("control"), command, timeout_s)
