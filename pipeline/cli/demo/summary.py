"""What the demo shows at the end: digits, sentences, the cache's work, the same figures asked of ClickHouse."""

from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table
from rich.text import Text

from pipeline.cli.console import plain_table, program, show
from pipeline.cli.demo.requests import SENTENCES
from pipeline.cli.demo.sending import Answered
from pipeline.cli.demo.verification import LogFigures
from pipeline.client.arrays import outputs_as_numpy

_SHADES = " ░▒▓█"
_PIXEL_MAX = 16
_DIGITS_SHOWN = 5
_PAIRS_SHOWN = 4
_PROBLEMS_SHOWN = 5
# Answers that needed no inference of their own.
_SAVED = ("hit", "coalesced")


def print_summary(answered: Sequence[Answered], mismatches: Sequence[str], log: LogFigures) -> int:
    """Shows everything; returns the exit code: 0 only if every check holds."""
    good = [one for one in answered if one.answer is not None and one.answer.status == "succeeded"]
    _print_digits([one for one in good if one.request.model_name == "digits"])
    _print_pairs([one for one in good if one.request.model_name == "sentences"])
    _print_cache(good)
    _print_log(log)
    ok = not mismatches and log.complete and len(good) == len(answered)
    _print_verdict(len(good), len(answered), mismatches, log)
    if ok:
        _print_next()
    return 0 if ok else 1


def draw_digit(pixels: npt.NDArray[Any]) -> list[str]:
    """An 8 x 8 image as eight lines of text, two characters to a pixel."""
    levels = np.rint(pixels.reshape(8, 8) * (len(_SHADES) - 1) / _PIXEL_MAX).astype(int)
    return ["".join(_SHADES[level] * 2 for level in row) for row in levels.tolist()]


def _heading(text: str) -> None:
    show()
    show(text, style="bold cyan")


def _label(one: Answered) -> int:
    assert one.answer is not None, "only answered ones are shown"
    return int(outputs_as_numpy(one.answer)["label"].reshape(-1)[0])


def _print_digits(digits: Sequence[Answered]) -> None:
    if not digits:
        return
    _heading("Handwritten digits")
    wrong = [one for one in digits if _label(one) != one.request.label]
    right = [one for one in digits if _label(one) == one.request.label and not one.request.repeated]
    # A mistake is worth seeing: one of them at the end, if there is any.
    shown = [*right[: _DIGITS_SHOWN - min(1, len(wrong))], *wrong[:1]]
    grid = Table.grid(padding=(0, 3))
    grid.add_row(*(Text("\n".join(draw_digit(one.request.inputs["image"]))) for one in shown))
    grid.add_row(*(_verdict(one) for one in shown))
    show(grid)
    distinct = [one for one in digits if not one.request.repeated]
    correct = sum(_label(one) == one.request.label for one in distinct)
    show(f"{correct} of {len(distinct)} different digits read correctly: {correct / len(distinct):.1%}")


def _verdict(one: Answered) -> Text:
    label = _label(one)
    right = label == one.request.label
    return Text(f"read {label}, is {one.request.label}", style="green" if right else "red")


def _print_pairs(sentences: Sequence[Answered]) -> None:
    if len(sentences) < 2:
        return
    _heading("Sentences nearest in meaning")
    for similarity, first, second in nearest_pairs(sentences)[:_PAIRS_SHOWN]:
        show(f"  {similarity:.2f}  {SENTENCES[first]}  ~  {SENTENCES[second]}")


def nearest_pairs(sentences: Sequence[Answered]) -> list[tuple[float, int, int]]:
    """Each sentence with its nearest other one, the most alike first; every pair once."""
    by_subject = {
        one.request.subject: outputs_as_numpy(one.answer)["embedding"].reshape(-1) for one in sentences if one.answer
    }
    subjects = sorted(by_subject)
    vectors = np.stack([by_subject[subject] for subject in subjects])
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -1.0)
    pairs = {
        (min(row, column), max(row, column)): float(similarity[row, column])
        for row, column in enumerate(similarity.argmax(axis=1).tolist())
    }
    return sorted(((value, subjects[a], subjects[b]) for (a, b), value in pairs.items()), reverse=True)


def _print_cache(good: Sequence[Answered]) -> None:
    _heading("The cache's work")
    rows = []
    for name in dict.fromkeys(one.request.model_name for one in good):
        answers = [one.answer.parameters for one in good if one.answer and one.request.model_name == name]
        counts = {status: sum(one.cache_status == status for one in answers) for status in ("hit", "coalesced", "miss")}
        p50 = {status: _p50([one.total_ms for one in answers if one.cache_status == status]) for status in counts}
        rows.append((name, len(answers), *counts.values(), p50["hit"], p50["miss"]))
    show(plain_table(("model", "requests", "hits", "coalesced", "misses", "p50 hit ms", "p50 miss ms"), rows))
    saved = sum(one.answer.parameters.cache_status in _SAVED for one in good if one.answer)
    show(f"{saved} of {len(good)} answers needed no inference of their own")


def _p50(times_ms: Sequence[float | None]) -> str:
    known = [time_ms for time_ms in times_ms if time_ms is not None]
    return f"{median(known):.2f}" if known else "-"


def _print_log(log: LogFigures) -> None:
    _heading("The same, asked of ClickHouse")
    show(log.by_status_sql, style="dim")
    if log.problem:
        show(log.problem, style="red")
        return
    show(plain_table(log.column_names, log.by_status))


def _print_verdict(good: int, sent: int, mismatches: Sequence[str], log: LogFigures) -> None:
    _heading("Checked")
    different = len(mismatches)
    _check(good == sent, f"{good} of {sent} requests answered")
    _check(not mismatches, "every answer equals onnxruntime's in this process" if not mismatches else
           f"{different} answers differ from onnxruntime's in this process, or are missing")  # fmt: skip
    for problem in mismatches[:_PROBLEMS_SHOWN]:
        show(f"      {problem}")
    _check(log.complete, f"{log.rows} rows with {log.ids} different ids in ClickHouse for {sent} requests")


def _check(ok: bool, text: str) -> None:
    show(f"  {'ok' if ok else 'NO'}  {text}", style="green" if ok else "bold red")


def _print_next() -> None:
    _heading("What to try next")
    name = program()
    rows = (
        ("up", "start it and leave it running; in another terminal:"),
        ("status", "what runs, and where"),
        ("submit - --model sentences --input text --lines", "type sentences, end with Ctrl-D"),
        ("results --from-beginning", "see every answer pass by"),
        ('sql "SELECT * FROM requests_per_minute"', "ask the log"),
        ("--help", "everything else"),
    )
    width = max(len(command) for command, _ in rows)
    for command, what in rows:
        show(f"  {name} {command:<{width}}  {what}")
