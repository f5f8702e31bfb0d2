"""`submit` and `results`: requests from a file, and answers as they pass by."""

import asyncio
import json
import sys
import time
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

if TYPE_CHECKING:
    from pipeline.cli.request_files import Records
    from pipeline.cli.submission import Tally
    from pipeline.cli.submission_view import SubmissionView


def add_to(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.command(epilog="Example: pipeline submit digits.npy --model digits --input image --output answers.jsonl")(
        submit
    )
    app.command(epilog="Example: pipeline results --model digits --from-beginning --limit 20 --json")(results)


class StatusName(StrEnum):
    """The states of a result."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    EXPIRED = "expired"


def submit(
    file: Annotated[str, typer.Argument(help="JSON lines of request records, a .npy array, or text; - reads stdin.")],
    model: Annotated[str | None, typer.Option(help="The model, for .npy and text.")] = None,
    input_name: Annotated[str | None, typer.Option("--input", help="The model's input, for .npy and text.")] = None,
    lines: Annotated[bool, typer.Option("--lines", help="Each line is a text for a BYTES input.")] = False,
    version: Annotated[str | None, typer.Option(help="A model version, for .npy and text.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither read nor store answers.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="For the answers, or only for receipts.")] = True,
    output: Annotated[str | None, typer.Option(help="Where answers go, as JSON lines; - for stdout.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as JSON on stdout.")] = False,
    in_flight: Annotated[int, typer.Option(min=1, max=10_000, help="Unanswered requests at any time.")] = 256,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for each answer.")] = 60.0,
) -> None:
    """Send requests; a bad one is told with its line number and does not stop the others (exit code 1 at the end)."""
    from pipeline.cli.context import quiet_libraries
    from pipeline.cli.request_files import open_input
    from pipeline.cli.submission_view import SubmissionView

    is_array = file.endswith(".npy")
    if (lines or is_array) and (model is None or input_name is None):
        raise typer.BadParameter(f"{'.npy rows' if is_array else '--lines'} need --model and --input")
    if not (lines or is_array) and (model or input_name or version):
        raise typer.BadParameter("JSON lines name their model and inputs; for texts add --lines")
    quiet_libraries()
    with ExitStack() as open_files:
        source = open_input(file)
        if file != "-":
            # Standard input stays open: closing it would wait for a thread that waits for the next line.
            open_files.callback(source.close)
        records = _records(source, file, model, input_name, version, no_cache=no_cache)
        answers = _open_output(output, open_files)
        tally = asyncio.run(
            _submit(
                records,
                SubmissionView(answers, is_stdin=file == "-"),
                wait=wait,
                in_flight=in_flight,
                timeout_s=timeout_s,
            )
        )
    _print_summary(tally, wait=wait, as_json=as_json)
    raise typer.Exit(1 if tally.failed else 0)


def _records(
    source: BinaryIO, file: str, model: str | None, input_name: str | None, version: str | None, *, no_cache: bool
) -> "Records":
    from pipeline.cli.request_files import Target, from_json_lines, from_rows, from_text_lines
    from pipeline.client.client import fresh_id

    if model is None or input_name is None:
        return from_json_lines(source, fresh_id, time.time, enable_cache=False if no_cache else None)
    target = Target(model, input_name, version, enable_cache=not no_cache)
    if file.endswith(".npy"):
        return from_rows(source, file, target, fresh_id, time.time)
    return from_text_lines(source, target, fresh_id, time.time)


def _open_output(output: str | None, open_files: ExitStack) -> BinaryIO | None:
    from pipeline.errors import PipelineError

    if output is None or output == "-":
        return None if output is None else sys.stdout.buffer
    try:
        return open_files.enter_context(Path(output).open("wb"))
    except OSError as error:
        raise PipelineError(f"{output}: {error.strerror}") from error


async def _submit(
    records: "Records", view: "SubmissionView", *, wait: bool, in_flight: int, timeout_s: float
) -> "Tally":
    from pipeline.cli.context import effective_settings
    from pipeline.cli.request_files import as_they_come
    from pipeline.cli.submission import Submission
    from pipeline.client.client import Client

    async with Client.from_settings(effective_settings()) as client:
        with view:
            submission = Submission(client, view, wait=wait, in_flight_max=in_flight, timeout_s=timeout_s)
            return await submission.run(as_they_come(records))


def _print_summary(tally: "Tally", *, wait: bool, as_json: bool) -> None:
    summary = tally.as_dict(waited=wait)
    if as_json:
        typer.echo(json.dumps(summary))
        return
    words = [f"{tally.sent} sent in {summary['seconds']:.2f} s"]
    if wait:
        words += [f"{summary['succeeded']} succeeded", f"{summary['failed']} failed"]
        words += [f"{count} {status}" for status, count in sorted(tally.cache.items())]
    if tally.lost:
        words.append(f"{tally.lost} without an answer")
    if tally.bad_lines:
        words.append(f"{tally.bad_lines} bad lines")
    typer.echo(", ".join(words), err=True)


def results(
    model: Annotated[str | None, typer.Option(help="Only this model's.")] = None,
    status: Annotated[StatusName | None, typer.Option(help="Only results in this state.")] = None,
    request_id: Annotated[str | None, typer.Option("--id", help="Only this request's; ends with it.")] = None,
    from_beginning: Annotated[bool, typer.Option("--from-beginning", help="Start at the oldest result.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="End after so many.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """Follow the results topic, as any consumer may: without a group, so nothing is taken from anybody."""
    from pipeline.cli.context import quiet_libraries
    from pipeline.cli.results_view import Wanted, follow

    quiet_libraries()
    wanted = Wanted(model, status.value if status else None, request_id, 1 if request_id else limit)
    asyncio.run(follow(wanted, from_beginning=from_beginning, as_json=as_json))
