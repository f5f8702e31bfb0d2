"""`submit` and `results`: requests from a file, and answers as they pass by."""

import asyncio
import json
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal

import typer

if TYPE_CHECKING:
    from pipeline.cli.answers_file import AnswersFile
    from pipeline.cli.request_files import Ids, Records
    from pipeline.cli.submission import Tally
    from pipeline.cli.submission_view import SubmissionView
    from pipeline.client.interface import InferenceClient
    from pipeline.client.submitted import Submitted

Form = Literal["json", "npy", "csv", "text"]
_PICTURES = (".png", ".jpg", ".jpeg")


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


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the requests of a file have in common.

    Attributes:
        form: of the file.
        input_name: "" where a CSV file's columns are the inputs.
    """

    file: str
    form: Form
    model: str
    input_name: str
    version: str | None
    datatype: str
    enable_cache: bool
    callback: str | None

    @property
    def switches(self) -> bytes:
        """What makes another request of the same line of the same file."""
        path = self.file if self.file == "-" else str(Path(self.file).absolute())
        return repr((path, self.form, self.model, self.input_name, self.version, self.datatype, self.enable_cache,
                     self.callback)).encode("utf-8", "surrogateescape")  # fmt: skip


def submit(
    file: Annotated[str, typer.Argument(help="JSON lines of request records, .npy, .csv, or text; - reads stdin.")],
    model: Annotated[str | None, typer.Option(help="The model, for .npy, .csv and text.")] = None,
    input_name: Annotated[str | None, typer.Option("--input", help="The model's input that a row is for.")] = None,
    lines: Annotated[bool, typer.Option("--lines", help="Each line is a text for a BYTES input.")] = False,
    version: Annotated[str | None, typer.Option(help="A model version, for .npy, .csv and text.")] = None,
    datatype: Annotated[str, typer.Option(help="Of the numbers in a .csv.")] = "FP32",
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither read nor store answers.")] = False,
    callback: Annotated[str | None, typer.Option(help="A URL that each answer is delivered to, too.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="For the answers, or only for receipts.")] = True,
    output: Annotated[
        str | None, typer.Option(help="Where answers go; a run cut short goes on there. - stdout.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as JSON on stdout.")] = False,
    in_flight: Annotated[int, typer.Option(min=1, max=10_000, help="Unanswered requests at any time.")] = 256,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for each answer.")] = 60.0,
    url: Annotated[str | None, typer.Option(help="The HTTP gateway to ask, instead of Kafka.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="PIPELINE_API_KEY", help="For the gateway.")] = None,
) -> None:
    """Send requests; a bad one is told with its line number and does not stop the others (exit code 1 at the end)."""
    from pipeline.cli.context import quiet_libraries
    from pipeline.cli.request_files import open_input
    from pipeline.cli.submission_view import SubmissionView

    form = _form_of(file, lines=lines)
    _check_usage(form, model, input_name, version, datatype)
    asked = _Asked(file, form, model or "", input_name or "", version, datatype, not no_cache, callback)
    quiet_libraries()
    with ExitStack() as open_files:
        source = open_input(file)
        if file != "-":
            # Standard input stays open: closing it would wait for a thread that waits for the next line.
            open_files.callback(source.close)
        answers = _open_output(asked, output, open_files, wait=wait, is_http=url is not None)
        records = _records(source, asked, answers)
        view = SubmissionView(_answers_to(answers, output), is_stdin=file == "-")
        options: dict[str, Any] = {"wait": wait, "in_flight_max": in_flight, "timeout_s": timeout_s}
        if answers is not None:
            options["has_answer"] = answers.has_answer
        tally = asyncio.run(_submit(records, view, options, url, api_key))
    _print_summary(tally, wait=wait, as_json=as_json)
    raise typer.Exit(1 if tally.failed else 0)


def _form_of(file: str, *, lines: bool) -> Form:
    if lines:
        return "text"
    if file.lower().endswith(_PICTURES):
        raise typer.BadParameter(f"{file}: pictures are not read: make them rows of a .npy array")
    return "npy" if file.endswith(".npy") else "csv" if file.endswith(".csv") else "json"


def _check_usage(form: Form, model: str | None, input_name: str | None, version: str | None, datatype: str) -> None:
    from pipeline.cli.csv_file import CSV_DATATYPES

    if form in {"npy", "text"} and (model is None or input_name is None):
        raise typer.BadParameter(f"{'.npy rows' if form == 'npy' else '--lines'} need --model and --input")
    if form == "csv" and model is None:
        raise typer.BadParameter(".csv rows need --model, and --input where a row is one input")
    if form == "json" and (model or input_name or version):
        raise typer.BadParameter("JSON lines name their model and inputs; for texts add --lines")
    if datatype not in CSV_DATATYPES:
        raise typer.BadParameter(f"--datatype is {datatype!r}: one of {', '.join(CSV_DATATYPES)} is wanted")


def _records(source: BinaryIO, asked: _Asked, answers: "AnswersFile | None") -> "Records":
    from pipeline.cli.csv_file import from_csv
    from pipeline.cli.request_files import Target, from_json_lines, from_rows, from_text_lines
    from pipeline.client.client import fresh_id

    id_of: Ids = (lambda number, content: fresh_id()) if answers is None else answers.id_of
    if asked.form == "json":
        enable_cache = None if asked.enable_cache else False
        return from_json_lines(source, id_of, time.time, enable_cache=enable_cache, callback=asked.callback)
    target = Target(
        asked.model, asked.input_name, asked.version, enable_cache=asked.enable_cache, callback=asked.callback
    )
    if asked.form == "npy":
        return from_rows(source, asked.file, target, id_of, time.time)
    if asked.form == "csv":
        return from_csv(source, asked.file, target, asked.datatype, id_of, time.time)
    return from_text_lines(source, target, id_of, time.time)


def _open_output(
    asked: _Asked, output: str | None, open_files: ExitStack, *, wait: bool, is_http: bool
) -> "AnswersFile | None":
    """The file that answers go to. What is typed or piped in is no file to go on with: it is answered anew."""
    from uuid import uuid4

    from pipeline.cli.answers_file import AnswersFile

    if output is None or output == "-":
        return None
    answers = AnswersFile(
        Path(output), uuid4().hex[:12], asked.switches,
        with_results=wait, continues_ids=is_http, starts_over=asked.file == "-",
    )  # fmt: skip
    open_files.callback(answers.file.close)
    return answers


def _answers_to(answers: "AnswersFile | None", output: str | None) -> BinaryIO | None:
    if answers is not None:
        return answers.file
    return None if output is None else sys.stdout.buffer


async def _submit(
    records: "Records", view: "SubmissionView", options: dict[str, Any], url: str | None, api_key: str | None
) -> "Tally":
    from pipeline.cli.request_files import as_they_come
    from pipeline.cli.submission import Submission

    async with _client(url, api_key, options["in_flight_max"]) as client:
        with view:
            return await Submission(client, view, **options).run(as_they_come(records))


def _client(url: str | None, api_key: str | None, in_flight: int) -> "InferenceClient[Submitted]":
    from pipeline.cli.context import effective_settings
    from pipeline.client import Client, HttpClient

    if url is not None:
        return HttpClient(url, api_key=api_key, connections_max=in_flight)
    return Client.from_settings(effective_settings())


def _print_summary(tally: "Tally", *, wait: bool, as_json: bool) -> None:
    summary = tally.as_dict(waited=wait)
    if as_json:
        typer.echo(json.dumps(summary))
        return
    words = [f"{tally.sent} sent in {summary['seconds']:.2f} s"]
    if wait:
        words += [f"{summary['succeeded']} succeeded", f"{summary['failed']} failed"]
        words += [f"{count} {status}" for status, count in sorted(tally.cache.items())]
    if tally.skipped:
        words.append(f"{tally.skipped} skipped, answered before")
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
    wanted = Wanted(model, status.value if status else None, request_id)
    asyncio.run(follow(wanted, limit=1 if request_id else limit, from_beginning=from_beginning, as_json=as_json))
