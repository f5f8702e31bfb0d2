"""`dead-letter list` and `dead-letter retry`: what could not be taken in, why, and sending it again."""

import asyncio
import json
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipeline.client.dead_letters import DeadLetter, DeadLetterTopic, Place, Selection, Span
    from pipeline.client.request_ids import Headers
    from pipeline.client.retries import Retried, RetryRules, RetryTopics

# A line of a terminal, less its indent; what the whole value is, any consumer of the topic can read.
_VALUE_CHARS_MAX = 120
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

Reason = Annotated[str | None, typer.Option(help="Only letters with this reason, e.g. NOT_JSON or DUPLICATE_ID.")]
Since = Annotated[str | None, typer.Option(help="Only what came in the last 90s, 30m, 2h or 7d.")]
SourceTopic = Annotated[str | None, typer.Option(help="Only letters that came from this topic.")]
Partition = Annotated[int | None, typer.Option(min=0, help="Only from this partition of the source topic.")]
Offset = Annotated[int | None, typer.Option(min=0, help="Only from this offset of the source topic.")]
RequestId = Annotated[str | None, typer.Option("--id", help="Only the request with this id.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object per line.")]


def add_to(app: typer.Typer) -> None:
    """Adds this module's commands."""
    letters = typer.Typer(
        help="Records that could not be taken in.",
        epilog="Example: pipeline dead-letter list --since 2h",
        no_args_is_help=True,
    )
    letters.command("list", epilog="Example: pipeline dead-letter list --reason NOT_JSON --since 2h --limit 20")(show)
    letters.command(
        epilog="Example: pipeline dead-letter retry 0:5 0:6, or pipeline dead-letter retry --reason DUPLICATE_ID "
        "--since 2h --dry-run"
    )(retry)
    app.add_typer(letters, name="dead-letter")


def show(
    reason: Reason = None,
    since: Since = None,
    source_topic: SourceTopic = None,
    partition: Partition = None,
    offset: Offset = None,
    request_id: RequestId = None,
    limit: Annotated[int | None, typer.Option(min=1, help="End after so many, the oldest first.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the dead letters that there are now, the oldest first; nothing is taken from the topic."""
    from pipeline.cli.context import quiet_libraries
    from pipeline.client.dead_letters import Selection

    quiet_libraries()
    selection = Selection(reason, _since_ms(since), source_topic, partition, offset, request_id)
    asyncio.run(_show(selection, limit, as_json=as_json))


async def _show(selection: "Selection", limit: int | None, *, as_json: bool) -> None:
    shown = 0
    async with _topic() as topic:
        async for letter in topic.read(await topic.span(selection.since_ms)):
            if not selection.has(letter):
                continue
            typer.echo(json.dumps(letter_fields(letter)) if as_json else letter_text(letter))
            shown += 1
            if shown == limit:
                break
    if not as_json:
        typer.echo(_letters(shown), err=True)


def retry(
    places: Annotated[
        list[str] | None, typer.Argument(metavar="[PLACE]...", help="Places that `list` shows: partition:offset.")
    ] = None,
    reason: Reason = None,
    since: Since = None,
    source_topic: SourceTopic = None,
    partition: Partition = None,
    offset: Offset = None,
    request_id: RequestId = None,
    everything: Annotated[bool, typer.Option("--all", help="Every dead letter there is now.")] = False,
    header: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A header for each record, in place of the original one; repeatable."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Send also what will be a dead letter again.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; places are never asked about.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send dead letters to the partitions they came from again: requests under a new id, event lines as they are.

    A letter stays in the topic, and may be sent as often as you like. Exit code 1 if one of those meant was not sent.
    """
    from pipeline.cli.context import quiet_libraries
    from pipeline.client.dead_letters import Selection

    selection = Selection(reason, _since_ms(since), source_topic, partition, offset, request_id)
    if not (places or everything or selection != Selection()):
        raise typer.BadParameter("say which: places, filters, or --all")
    if places and everything:
        raise typer.BadParameter("places and --all: say one of them")
    wanted, headers = _places(places or []), _headers(header or [])
    quiet_libraries()
    source: Sequence[Place] | Span = wanted
    if not wanted:
        # What fails again comes back as a new letter: only what is there now is counted, and then sent.
        source = asyncio.run(_span(selection))
        if not (yes or dry_run) and (count := asyncio.run(_count(source, selection))):
            typer.confirm(f"Send {_letters(count)} again?", abort=True, err=True)
    rules = _rules(headers, force=force)
    failed = asyncio.run(_retry(source, selection, rules, dry_run=dry_run, as_json=as_json))
    raise typer.Exit(1 if failed else 0)


async def _span(selection: "Selection") -> "Span":
    async with _topic() as topic:
        return await topic.span(selection.since_ms)


async def _count(span: "Span", selection: "Selection") -> int:
    count = 0
    async with _topic() as topic:
        async for letter in topic.read(span):
            count += selection.has(letter)
    return count


def _rules(headers: "Headers", *, force: bool) -> "RetryRules":
    from pipeline.cli.context import effective_settings
    from pipeline.client.retries import RetryRules

    settings = effective_settings()
    return RetryRules(settings.topic("requests"), settings.topic("events"), settings.topic("webhooks"), headers, force)


async def _retry(
    source: "Sequence[Place] | Span", selection: "Selection", rules: "RetryRules", *, dry_run: bool, as_json: bool
) -> int:
    """Sends what is meant; returns how many letters could not be sent."""
    from pipeline.client.client import fresh_id
    from pipeline.client.retries import retry as send_again

    sent = failed = 0
    async with AsyncExitStack() as connections:
        topic = await connections.enter_async_context(_topic())
        send = None if dry_run else (await connections.enter_async_context(_retry_topics(rules))).send
        letters = topic.read(source) if isinstance(source, Mapping) else topic.at(source)
        meant = (letter async for letter in letters if selection.has(letter))
        async for outcome in send_again(meant, rules, send, fresh_id):
            sent, failed = sent + (outcome.refusal is None), failed + (outcome.refusal is not None)
            if as_json:
                typer.echo(json.dumps(outcome_fields(outcome, sent=not dry_run)))
            else:
                typer.echo(outcome_text(outcome), err=outcome.refusal is not None)
    if not as_json:
        rest = f", {failed} not" if failed else ""
        typer.echo(f"{_letters(sent)} {'would be sent' if dry_run else 'sent'} again{rest}", err=True)
    return failed


def _topic() -> "DeadLetterTopic":
    from pipeline.adapters.kafka import client_options
    from pipeline.cli.context import effective_settings
    from pipeline.client.dead_letters import DeadLetterTopic

    settings = effective_settings()
    return DeadLetterTopic(client_options(settings.kafka), settings.topic("dead-letter"))


def _retry_topics(rules: "RetryRules") -> "RetryTopics":
    from pipeline.adapters.kafka import client_options
    from pipeline.cli.context import effective_settings
    from pipeline.client.retries import RetryTopics

    settings = effective_settings()
    return RetryTopics(
        client_options(settings.kafka),
        (rules.requests_topic, rules.events_topic, rules.webhooks_topic),
        record_bytes_max=settings.limits.event_record_bytes,
    )


def _letters(count: int) -> str:
    return f"{count} dead letter{'' if count == 1 else 's'}"


def _since_ms(text: str | None) -> int | None:
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if found is None:
        raise typer.BadParameter(f"--since {text}: expected a number and s, m, h or d, e.g. 90s, 30m, 2h, 7d")
    return max(0, round((time.time() - int(found[1]) * _SECONDS[found[2]]) * 1000))


def _places(texts: Sequence[str]) -> "list[Place]":
    from pipeline.client.dead_letters import Place

    places = []
    for text in texts:
        if re.fullmatch(r"[0-9]{1,9}:[0-9]{1,18}", text) is None:
            raise typer.BadParameter(f"{text}: expected a place as `dead-letter list` shows it: partition:offset")
        partition, _, offset = text.partition(":")
        places.append(Place(int(partition), int(offset)))
    return places


def _headers(texts: Sequence[str]) -> "Headers":
    headers = []
    for text in texts:
        name, is_there, value = text.partition("=")
        if not (name and is_there):
            raise typer.BadParameter(f"--header {text}: expected NAME=VALUE")
        headers.append((name, value.encode()))
    return headers


def letter_text(letter: "DeadLetter") -> str:
    """A letter for a person, in three lines. What producers wrote is escaped: it may hold a terminal's commands."""
    source = letter.source
    words = [
        _time(letter.timestamp_ms),
        f"{letter.place}",
        _escaped(letter.reason) or "no reason",
        "from " + (_escaped(f"{source.topic}-{source.partition}@{source.offset}") if source else "an unknown place"),
        "no key" if letter.key is None else f"key {_start(letter.key)}",
        "no value" if letter.value is None else f"{len(letter.value)} bytes",
    ]
    lines = ["  ".join(words), f"    {_escaped(letter.error)}"]
    return "\n".join([*lines, f"    {_start(letter.value)}"] if letter.value else lines)


def letter_fields(letter: "DeadLetter") -> dict[str, Any]:
    """A letter for a program: `value` and `key` are their starts, as text with escapes."""
    return {
        "place": str(letter.place),
        "time": _time(letter.timestamp_ms),
        "reason": letter.reason,
        "error": letter.error,
        "source": letter.source._asdict() if letter.source else None,
        "id": letter.request_id,
        "key": None if letter.key is None else _start(letter.key),
        "size": len(letter.value or b""),
        "value": None if letter.value is None else _start(letter.value),
    }


def outcome_text(outcome: "Retried") -> str:
    """What became of a letter, for a person."""
    record, refusal = outcome.record, outcome.refusal
    if record is None:
        hint = "; --force sends it all the same, --header adds what its producer left out"
        return f"{outcome.place}: not sent: {_escaped(str(refusal))}{hint if refusal and refusal.can_be_forced else ''}"
    became = f" -> {record.request_id}" if record.request_id else ""
    at = "" if outcome.offset is None else f"@{outcome.offset}"
    return f"{outcome.place}: {_escaped(record.retry_of)}{became} ({record.topic}-{record.partition}{at})"


def outcome_fields(outcome: "Retried", *, sent: bool) -> dict[str, Any]:
    """What became of a letter, for a program; `id` is null for an event, and where nothing is sent."""
    record = outcome.record
    if record is None:
        return {"place": str(outcome.place), "refusal": str(outcome.refusal)}
    return {
        "place": str(outcome.place),
        "retry_of": record.retry_of,
        "id": record.request_id if sent else None,
        "topic": record.topic,
        "partition": record.partition,
        "offset": outcome.offset,
    }


def _time(timestamp_ms: int) -> str:
    return f"{datetime.fromtimestamp(timestamp_ms / 1e3, UTC):%Y-%m-%dT%H:%M:%S}.{timestamp_ms % 1000:03d}Z"


def _start(value: bytes) -> str:
    text = _escaped(value[: 4 * _VALUE_CHARS_MAX].decode("utf-8", "backslashreplace"))
    return text if len(text) <= _VALUE_CHARS_MAX else f"{text[:_VALUE_CHARS_MAX]}..."


def _escaped(text: str) -> str:
    """The text with everything escaped that is not to be seen: control characters, line ends, other directions."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
