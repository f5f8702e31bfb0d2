"""Files of requests: JSON lines, rows of an array, lines of text. Each becomes a record, or the reason why not.

Rows of CSV: `pipeline/cli/csv_file.py`; pictures: `pipeline/cli/picture_files.py`.
"""

import asyncio
import glob
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeline.client.records import Inputs, RequestRecord, build_record, record_from_json
from pipeline.errors import PipelineError
from schemas.errors import WireError
from schemas.tensor import Tensor


class InputFileError(PipelineError):
    """A file of requests that cannot be read at all."""


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no request: its number, from 1, and why; of one of many files, the file."""

    number: int
    reason: str
    file: str | None = None

    def __str__(self) -> str:
        return f"{self.file or f'line {self.number}'}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Target:
    """What requests made of rows or of text ask for.

    Attributes:
        model_name: the model.
        model_version: None for the one served by default.
        input_name: the model's input that a row or a line is for.
        enable_cache: False: neither read, nor stored, nor coalesced.
        timeout_ms: past it a request is not executed any more.
        callback: where answers are delivered to, too.
    """

    model_name: str
    input_name: str
    model_version: str | None = None
    enable_cache: bool = True
    timeout_ms: int | None = None
    callback: str | None = None


# By these a file is taken for a picture; what it is, its first bytes say.
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
Records = Iterator[RequestRecord | BadLine]
# What a thread reads ahead of the sender.
_READ_AHEAD = 64

# The id of a line: its number, from 1, and its content.
Ids = Callable[[int, bytes], str]
Now = Callable[[], float]


def expanded(arguments: Sequence[str]) -> list[str]:
    """The files that are meant: patterns in quotes become what they match, in the order of names.

    What is there under its own name is no pattern; a pattern that matches nothing stays, to be told as a missing file.
    """
    files: list[str] = []
    for argument in arguments:
        is_pattern = any(mark in argument for mark in "*?[") and not os.path.lexists(argument)
        # Not Path.glob, which takes no pattern that begins with a slash.
        found = sorted(glob.glob(argument, recursive=True)) if is_pattern else []  # noqa: PTH207
        files += found or [argument]
    return files


def open_input(file: str) -> BinaryIO:
    """A file's bytes, or standard input for `-`.

    Raises:
        InputFileError: it cannot be opened.
    """
    try:
        # Standard input gets a reader of its own: the interpreter waits for its own at the end.
        return open(0, "rb", closefd=False) if file == "-" else Path(file).open("rb")
    except OSError as error:
        raise InputFileError(f"{file}: {error.strerror}") from error


async def as_they_come(records: Records) -> AsyncIterator[RequestRecord | BadLine]:
    """Records whose source may block, such as a person typing: read in a thread, a few ahead.

    The thread is a daemon: whoever stops reading does not wait for the next line.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[RequestRecord | BadLine | Exception | None] = asyncio.Queue()
    room = threading.BoundedSemaphore(_READ_AHEAD)

    def put(item: RequestRecord | BadLine | Exception | None) -> None:
        room.acquire()
        # Once the loop is closed nobody reads any more; this thread then waits for room until the process ends.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(queue.put_nowait, item)

    def read() -> None:
        try:
            for record in records:
                put(record)
        except Exception as error:  # noqa: BLE001 - raised again where it is waited for
            put(error)
        else:
            put(None)

    threading.Thread(target=read, name="read requests", daemon=True).start()
    while (item := await queue.get()) is not None:
        room.release()
        if isinstance(item, Exception):
            raise item
        yield item


def from_json_lines(
    lines: BinaryIO, id_of: Ids, now: Now, *, enable_cache: bool | None, callback: str | None = None
) -> Records:
    """One request record per line; empty lines are skipped. None leaves each line's own switch, and its callback."""
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text:
            continue
        request_id = id_of(number, text)
        build = partial(record_from_json, text, request_id, now=now(), enable_cache=enable_cache, callback=callback)
        yield record_or_bad_line(number, build)


def from_text_lines(lines: BinaryIO, target: Target, id_of: Ids, now: Now) -> Records:
    """One text per line, as a BYTES input of shape [1, 1]; empty lines are skipped."""
    for number, line in enumerate(lines, start=1):
        text = line.rstrip(b"\r\n")
        if not text:
            continue
        tensor = Tensor(target.input_name, "BYTES", (1, 1), len(text).to_bytes(4, "little") + text)
        yield record_or_bad_line(number, partial(build_for, target, tensor, id_of(number, text), now))


def from_rows(file: BinaryIO, name: str, target: Target, id_of: Ids, now: Now) -> Records:
    """One request per row of a `.npy` array's first axis, which becomes a batch of one.

    Raises:
        InputFileError: the file is no array of numbers.
    """
    try:
        array = np.load(file, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputFileError(f"{name}: not a .npy file that can be read: {error}") from error
    if not isinstance(array, np.ndarray) or array.ndim == 0:
        raise InputFileError(f"{name}: an array with at least one axis is needed: its rows become requests")
    for number in range(1, len(array) + 1):
        row = array[number - 1 : number]
        request_id = id_of(number, row.tobytes())
        yield record_or_bad_line(number, partial(build_for, target, {target.input_name: row}, request_id, now))


def build_for(target: Target, inputs: "Inputs | Tensor", request_id: str, now: Now) -> RequestRecord:
    """A record that asks the target for these inputs.

    Raises:
        WireError: it is no valid request.
    """
    return build_record(
        request_id,
        target.model_name,
        [inputs] if isinstance(inputs, Tensor) else inputs,
        now=now(),
        model_version=target.model_version,
        enable_cache=target.enable_cache,
        timeout_ms=target.timeout_ms,
        callback=target.callback,
    )


def record_or_bad_line(number: int, build: Callable[[], RequestRecord]) -> RequestRecord | BadLine:
    """A line's record, or its number and what is wrong with it."""
    try:
        return build()
    except WireError as error:
        return BadLine(number, f"{error.code}: {error.message}")
