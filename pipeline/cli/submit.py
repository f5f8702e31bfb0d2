"""`submit` and `results`: requests from a file or of pictures, and answers as they pass by."""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal

import typer

if TYPE_CHECKING:
    from pipeline.cli.answers_file import AnswersFile
    from pipeline.cli.pictures import PictureOptions
    from pipeline.cli.request_files import Ids, Records, Target
    from pipeline.cli.submission import Tally
    from pipeline.cli.submission_view import SubmissionView
    from pipeline.client.interface import InferenceClient
    from pipeline.client.submitted import Submitted

Form = Literal["json", "npy", "csv", "text", "picture"]


def add_to(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.command(
        epilog="Example: pipeline submit digits.npy --model digits --input image --output answers.jsonl; "
        "pipeline submit --model digits --invert --scale 16/255 seven.png 'scans/*.jpg' --output -"
    )(submit)
    app.command(epilog="Example: pipeline results --model digits --from-beginning --limit 20 --json")(results)


class StatusName(StrEnum):
    """The states of a result."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the requests of a file, or of pictures, have in common.

    Attributes:
        files: one, or any number of pictures.
        form: of the file.
        input_name: "" where a CSV file's columns are the inputs, or a model's only input is meant.
    """

    files: tuple[str, ...]
    form: Form
    model: str
    input_name: str
    version: str | None
    datatype: str
    enable_cache: bool
    callback: str | None

    def target(self, input_name: str) -> "Target":
        """What rows, texts and pictures are asked of, for this input."""
        from pipeline.cli.request_files import Target

        return Target(self.model, input_name, self.version, enable_cache=self.enable_cache, callback=self.callback)

    @property
    def switches(self) -> bytes:
        """What makes another request of the same line of the same file; a picture's own place is in its content."""
        file = self.files[0]
        path = "" if self.form == "picture" else file if file == "-" else str(Path(file).absolute())
        return repr((path, self.form, self.model, self.input_name, self.version, self.datatype, self.enable_cache,
                     self.callback)).encode("utf-8", "surrogateescape")  # fmt: skip


_PICTURES = "Pictures: an element is (pixel * scale - mean) / std, of pixels from 0 to 255"
_Scale = Annotated[str, typer.Option(rich_help_panel=_PICTURES, help="A number or a fraction, such as 1/255.")]
_Mean = Annotated[str, typer.Option(rich_help_panel=_PICTURES, help="A number, or one a channel: 0.5,0.5,0.5.")]
_Std = Annotated[str, typer.Option(rich_help_panel=_PICTURES, help="Likewise.")]
_Invert = Annotated[bool, typer.Option("--invert", rich_help_panel=_PICTURES, help="255 minus the pixel, before that.")]
_Layout = Annotated[
    str | None, typer.Option(rich_help_panel=_PICTURES, help="NCHW or NHWC, where the model's shape may be both.")
]
_Size = Annotated[
    str | None, typer.Option(rich_help_panel=_PICTURES, help="HEIGHTxWIDTH, where the model takes pictures of any.")
]


def submit(
    files: Annotated[
        list[str],
        typer.Argument(help="JSON lines, .npy, .csv, text, or - for stdin; or pictures and 'patterns/*.png'."),
    ],
    model: Annotated[str | None, typer.Option(help="The model, for all but JSON lines.")] = None,
    input_name: Annotated[str | None, typer.Option("--input", help="The model's input that a row is for.")] = None,
    lines: Annotated[bool, typer.Option("--lines", help="Each line is a text for a BYTES input.")] = False,
    version: Annotated[str | None, typer.Option(help="A model version, for all but JSON lines.")] = None,
    datatype: Annotated[str, typer.Option(help="Of the numbers in a .csv.")] = "FP32",
    scale: _Scale = "1",
    mean: _Mean = "0",
    std: _Std = "1",
    invert: _Invert = False,
    layout: _Layout = None,
    size: _Size = None,
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
    """Send requests; a bad one is told with its line number, or file, and stops no other (exit code 1 at the end)."""
    from pipeline.cli.context import quiet_libraries
    from pipeline.cli.request_files import expanded
    from pipeline.cli.submission_view import SubmissionView

    form, names = _form_of(expanded(files), lines=lines)
    _check_usage(form, model, input_name, version, datatype)
    asked = _Asked(names, form, model or "", input_name or "", version, datatype, not no_cache, callback)
    pictures = _picture_options(form, scale, mean, std, layout, size, invert=invert)
    quiet_libraries()
    with ExitStack() as open_files:
        source = None if pictures else _open_source(names[0], open_files)
        answers = _open_output(asked, output, open_files, wait=wait, is_http=url is not None)
        file_of: dict[str, str] = {}

        async def records() -> "Records":
            if source is not None:
                return _records(source, asked, answers)
            assert pictures is not None, "what is no picture has a source"
            return await _of_pictures(asked, pictures, answers, file_of, url, api_key)

        view = SubmissionView(_answers_to(answers, output), is_stdin=names[0] == "-")
        options: dict[str, Any] = {"wait": wait, "in_flight_max": in_flight, "timeout_s": timeout_s}
        options["file_of"] = file_of.get
        if answers is not None:
            options["has_answer"] = answers.has_answer
        tally = asyncio.run(_submit(records, view, options, url, api_key))
    _print_summary(tally, wait=wait, as_json=as_json)
    raise typer.Exit(1 if tally.failed else 0)


def _form_of(files: list[str], *, lines: bool) -> tuple[Form, tuple[str, ...]]:
    from pipeline.cli.request_files import PICTURE_SUFFIXES

    names = tuple(files)
    if not lines and any(file.lower().endswith(PICTURE_SUFFIXES) for file in names):
        return "picture", names
    if len(names) > 1:
        raise typer.BadParameter(
            f"{len(names)} files were given, and none is a picture ({', '.join(PICTURE_SUFFIXES)}): one was expected"
        )
    file = names[0]
    form: Form = "text" if lines else "npy" if file.endswith(".npy") else "csv" if file.endswith(".csv") else "json"
    return form, names


def _picture_options(
    form: Form, scale: str, mean: str, std: str, layout: str | None, size: str | None, *, invert: bool
) -> "PictureOptions | None":
    """The options of pictures; None for other files, which have none."""
    if form != "picture":
        if (scale, mean, std, layout, size, invert) != ("1", "0", "1", None, None, False):
            raise typer.BadParameter("--scale, --mean, --std, --invert, --layout and --size are for pictures")
        return None
    from pipeline.cli.picture_files import options_of

    try:
        return options_of(scale, mean, std, layout, size, invert=invert)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _open_source(file: str, open_files: ExitStack) -> BinaryIO:
    from pipeline.cli.request_files import open_input

    source = open_input(file)
    if file != "-":
        # Standard input stays open: closing it would wait for a thread that waits for the next line.
        open_files.callback(source.close)
    return source


def _check_usage(form: Form, model: str | None, input_name: str | None, version: str | None, datatype: str) -> None:
    from pipeline.cli.csv_file import CSV_DATATYPES

    if form in {"npy", "text"} and (model is None or input_name is None):
        raise typer.BadParameter(f"{'.npy rows' if form == 'npy' else '--lines'} need --model and --input")
    if form == "picture" and model is None:
        raise typer.BadParameter("pictures need --model, and --input where the model has several")
    if form == "csv" and model is None:
        raise typer.BadParameter(".csv rows need --model, and --input where a row is one input")
    if form == "json" and (model or input_name or version):
        raise typer.BadParameter("JSON lines name their model and inputs; for texts add --lines")
    if datatype not in CSV_DATATYPES:
        raise typer.BadParameter(f"--datatype is {datatype!r}: one of {', '.join(CSV_DATATYPES)} is wanted")


def _records(source: BinaryIO, asked: _Asked, answers: "AnswersFile | None") -> "Records":
    from pipeline.cli.csv_file import from_csv
    from pipeline.cli.request_files import from_json_lines, from_rows, from_text_lines

    id_of = _ids(answers)
    if asked.form == "json":
        enable_cache = None if asked.enable_cache else False
        return from_json_lines(source, id_of, time.time, enable_cache=enable_cache, callback=asked.callback)
    target = asked.target(asked.input_name)
    if asked.form == "npy":
        return from_rows(source, asked.files[0], target, id_of, time.time)
    if asked.form == "csv":
        return from_csv(source, asked.files[0], target, asked.datatype, id_of, time.time)
    return from_text_lines(source, target, id_of, time.time)


async def _of_pictures(
    asked: _Asked,
    options: "PictureOptions",
    answers: "AnswersFile | None",
    file_of: dict[str, str],
    url: str | None,
    api_key: str | None,
) -> "Records":
    """The pictures' requests, once the model has said what it wants; `file_of` is told whose each id is."""
    from pipeline.cli.picture_files import from_pictures
    from pipeline.cli.picture_model import model_input
    from pipeline.cli.pictures import form_for

    wanted = await model_input(asked.model, asked.version, asked.input_name or None, url, api_key)
    form = form_for(wanted, options)
    target = asked.target(wanted.name)
    return from_pictures(asked.files, form, target, _ids(answers), time.time, file_of.__setitem__)


def _ids(answers: "AnswersFile | None") -> "Ids":
    """What makes the requests' ids: fresh ones, but where a file of answers goes on with those of an earlier run."""
    from pipeline.client.client import fresh_id

    return (lambda number, content: fresh_id()) if answers is None else answers.id_of


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
        with_results=wait, continues_ids=is_http, starts_over=asked.files[0] == "-",
    )  # fmt: skip
    open_files.callback(answers.file.close)
    return answers


def _answers_to(answers: "AnswersFile | None", output: str | None) -> BinaryIO | None:
    if answers is not None:
        return answers.file
    return None if output is None else sys.stdout.buffer


async def _submit(
    records: "Callable[[], Awaitable[Records]]",
    view: "SubmissionView",
    options: dict[str, Any],
    url: str | None,
    api_key: str | None,
) -> "Tally":
    from pipeline.cli.request_files import as_they_come
    from pipeline.cli.submission import Submission

    async with _client(url, api_key, options["in_flight_max"]) as client:
        found = await records()
        with view:
            return await Submission(client, view, **options).run(as_they_come(found))


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
