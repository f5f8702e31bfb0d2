"""What a person sees of a submission: one live line on standard error, problems above it, answers where they go."""

import sys
from types import TracebackType
from typing import BinaryIO, Self

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from pipeline.cli.console import err
from pipeline.cli.submission import Tally


class SubmissionView:
    """Shows progress on a terminal; into a pipe only problems are written.

    Args:
        answers: where answers go as lines of JSON; None for nowhere.
        is_stdin: whether requests come from standard input.
    """

    def __init__(self, answers: BinaryIO | None, *, is_stdin: bool = False) -> None:
        self._answers = answers
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[rate]:.0f}/s  hits {task.fields[hits]}  errors {task.fields[errors]}"),
            TextColumn("skipped {task.fields[skipped]}"),
            TimeElapsedColumn(),
            console=err(),
            transient=True,
            # Under a person's typing a moving line would be in the way.
            disable=not err().is_terminal or (is_stdin and sys.stdin.isatty()),
        )
        self._task = self._progress.add_task("requests", total=0, rate=0.0, hits=0, errors=0, skipped=0)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        if self._answers is not None:
            self._answers.flush()

    def problem(self, line: str) -> None:
        """One request's trouble."""
        err().print(Text(line, style="red"), soft_wrap=True)

    def answer(self, line: bytes) -> None:
        """One answer."""
        if self._answers is not None:
            self._answers.write(line + b"\n")
            # Somebody waits for this line, perhaps to type the next one; and what is in a file is not asked again by a
            # run that takes over from this one.
            self._answers.flush()

    def progress(self, tally: Tally) -> None:
        """The live line."""
        self._progress.update(
            self._task,
            total=tally.sent,
            completed=tally.done,
            rate=tally.done / max(tally.seconds, 1e-3),
            hits=tally.cache["hit"],
            errors=tally.failed,
            skipped=tally.skipped,
        )
