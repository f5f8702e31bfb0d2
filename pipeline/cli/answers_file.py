"""The file that answers go to, and which requests have theirs in it already: a run that was cut short goes on there.

Ids are made from the run, the line's number and its content, `<run>.<line>.<digest>`. So the same line of the same run
is the same request, whoever sends it again, and a changed line, or another switch, is another one.
"""

import re
from pathlib import Path
from typing import BinaryIO

import orjson
from blake3 import blake3

from pipeline.errors import PipelineError

_RUN_CHARS = 12
_DIGEST_BYTES = 12
_ID = re.compile(rf"([0-9a-f]{{{_RUN_CHARS}}})\.([0-9]+\.[0-9a-f]{{{2 * _DIGEST_BYTES}}})")


class OutputFileError(PipelineError):
    """A file that answers cannot be added to."""


class AnswersFile:
    """Answers as JSON lines, behind those of an earlier run.

    Args:
        path: of the file; made where it is not there. What was cut in the middle of its last line is cut off.
        run: a fresh run's name, 12 hexadecimal characters.
        switches: what is asked of every request besides its line: with other switches it is another request.
        with_results: only a result is an answer; else a receipt is one, too.
        continues_ids: requests without an answer keep the ids of the earlier run, for a gateway that knows them. Over
            Kafka a repetition has no second result, so that what was under way is asked again under fresh ids.
        starts_over: what is in the file is replaced.

    Raises:
        OutputFileError: it cannot be opened, or what is in it are no answers.
    """

    def __init__(
        self,
        path: Path,
        run: str,
        switches: bytes,
        *,
        with_results: bool,
        continues_ids: bool,
        starts_over: bool = False,
    ) -> None:
        self._switches = len(switches).to_bytes(4, "little") + switches
        self._run = run
        self._answered: set[str] = set()
        try:
            # A pipe or a device has no length, and nothing to go on from.
            goes_on = path.is_file() and not starts_over
            length = self._read(path, with_results=with_results, continues_ids=continues_ids) if goes_on else 0
            self.file: BinaryIO = path.open("ab" if goes_on else "wb")
            if goes_on:
                self.file.truncate(length)
        except OSError as error:
            raise OutputFileError(f"{path}: {error.strerror}") from error

    def __len__(self) -> int:
        return len(self._answered)

    def id_of(self, number: int, content: bytes) -> str:
        """The id of a line of this run."""
        digest = blake3(self._switches + content).hexdigest(_DIGEST_BYTES)
        return f"{self._run}.{number}.{digest}"

    def has_answer(self, request_id: str) -> bool:
        """Whether a request has its answer from an earlier run: by its own id, or by its line's number and content."""
        return _line_of(request_id) in self._answered

    def _read(self, path: Path, *, with_results: bool, continues_ids: bool) -> int:
        """Takes note of every answer; returns the length of the whole lines."""
        length = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                length += len(line)
                request_id, is_result = _answer_in(line, path, number)
                if is_result or not with_results:
                    self._answered.add(_line_of(request_id))
                found = _ID.fullmatch(request_id)
                if found is not None and continues_ids:
                    self._run = found[1]
        return length


def _line_of(request_id: str) -> str:
    found = _ID.fullmatch(request_id)
    return request_id if found is None else found[2]


def _answer_in(line: bytes, path: Path, number: int) -> tuple[str, bool]:
    try:
        document = orjson.loads(line)
    except ValueError:
        document = None
    request_id = document.get("id") if isinstance(document, dict) else None
    if not isinstance(request_id, str):
        raise OutputFileError(f"{path}: line {number} is no answer of `submit`: name another --output, or remove it")
    return request_id, "status" in document
