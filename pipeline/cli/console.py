"""What commands print: on a terminal with colours and to its width, into a pipe as plain text."""

import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


@cache
def out() -> Console:
    """Standard output. In a pipe nothing is cut to a terminal's width."""
    console = Console(highlight=False, soft_wrap=False)
    return console if console.is_terminal else Console(highlight=False, width=10_000, color_system=None)


@cache
def err() -> Console:
    """Standard error: progress, and what a program reading standard output must not see."""
    return Console(stderr=True, highlight=False)


def program() -> str:
    """How the reader calls this program: by its name where the shell finds it, else by its path from here."""
    found = shutil.which("pipeline")
    own = Path(sys.executable).with_name("pipeline")
    if found is not None and Path(found) == own:
        return "pipeline"
    return os.path.relpath(own) if own.is_relative_to(Path.cwd()) else str(own)


def show(content: Any = "", *, style: str | None = None) -> None:
    """Prints text (never read as markup) or anything rich can draw."""
    out().print(Text(content) if isinstance(content, str) else content, style=style)


def plain_table(names: Iterable[str], rows: Iterable[Sequence[Any]], *, numbers_right: bool = True) -> Table:
    """A table of any values; columns of numbers are right-aligned."""
    rows = list(rows)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(names):
        numeric = bool(rows) and all(isinstance(row[index], (int, float)) for row in rows)
        table.add_column(Text(name), justify="right" if numeric and numbers_right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell_text(value)) for value in row))
    return table


def cell_text(value: Any) -> str:
    """One value as a person reads it."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, datetime):
        return value.isoformat(sep=" ")
    return "" if value is None else str(value)
