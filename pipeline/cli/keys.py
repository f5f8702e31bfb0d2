"""`keys`: who may call the gateway, for which tenant, and how often."""

import asyncio
import json
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from schemas.api_key import ApiKeyRecord


def add_to(app: typer.Typer) -> None:
    """Adds this module's commands."""
    keys = typer.Typer(help="API keys of the gateway.", epilog="Example: pipeline keys list", no_args_is_help=True)
    keys.command(epilog="Example: pipeline keys add --tenant acme --rate 100")(add)
    keys.command("list", epilog="Example: pipeline keys list --json")(list_keys)
    keys.command(epilog="Example: pipeline keys revoke 3f9a1c2b7d5e8f01")(revoke)
    app.add_typer(keys, name="keys")


def add(
    tenant: Annotated[str, typer.Option(help="Whose requests they are; empty: requests without a tenant.")] = "",
    label: Annotated[str, typer.Option(help="What the key is for.")] = "",
    rate: Annotated[float | None, typer.Option(help="Requests per second on average; none: no limit.")] = None,
    burst: Annotated[int | None, typer.Option(help="So many at once; none: two seconds of the rate.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The key and what is kept of it, as JSON.")] = False,
) -> None:
    """Make a key. It is shown once: only a digest of it is kept."""
    from pydantic import ValidationError

    from pipeline.adapters.keys_topic import write_key
    from pipeline.core.api_keys import ID_BYTES, SECRET_BYTES, make_key, record_of

    if burst is not None and rate is None:
        raise typer.BadParameter("--burst needs --rate")
    key = make_key(secrets.token_bytes(ID_BYTES + SECRET_BYTES))
    try:
        record = record_of(key, tenant=tenant, label=label, rate=rate, burst=burst, now=datetime.now(UTC))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise typer.BadParameter(f"--{first['loc'][0]}: {first['msg']}, got {first['input']!r:.80}") from None
    options, topic = _topic()
    asyncio.run(write_key(options, topic, key.id, record))
    if as_json:
        typer.echo(json.dumps({"key": str(key), **_shown(record)}, indent=2))
        return
    typer.echo(str(key))
    typer.echo(f"shown once; it is known by {key.id} from now on", err=True)


def list_keys(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """The keys there are; no command shows a key itself."""
    from pipeline.adapters.keys_topic import read_keys

    options, topic = _topic()
    found = sorted(asyncio.run(read_keys(options, topic)).values(), key=lambda record: record.created_at)
    if as_json:
        typer.echo(json.dumps([_shown(record) for record in found], indent=2))
        return
    from pipeline.cli.console import plain_table, show

    rows = [
        (record.id, record.tenant, record.label, record.rate, record.burst, f"{record.created_at:%Y-%m-%d %H:%M}")
        for record in found
    ]
    show(plain_table(("key", "tenant", "label", "rate/s", "burst", "made"), rows))


def revoke(key_id: Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.")]) -> None:
    """Take a key back: gateways refuse it within a second."""
    from pipeline.adapters.keys_topic import read_keys, write_key

    options, topic = _topic()

    async def run() -> bool:
        if key_id not in await read_keys(options, topic):
            return False
        await write_key(options, topic, key_id, None)
        return True

    if not asyncio.run(run()):
        typer.echo(f"there is no key {key_id!r:.40}", err=True)
        raise typer.Exit(1)
    typer.echo(f"{key_id} is revoked")


def _topic() -> tuple[dict[str, object], str]:
    from pipeline.adapters.kafka import client_options
    from pipeline.cli.context import effective_settings, quiet_libraries

    quiet_libraries()
    settings = effective_settings()
    return client_options(settings.kafka), settings.topic("keys")


def _shown(record: "ApiKeyRecord") -> dict[str, object]:
    return record.model_dump(mode="json", exclude={"digest"}, exclude_none=True)
