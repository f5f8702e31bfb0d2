"""Pictures named on the command line as requests: one for each file, and the reason where a file is none.

How one becomes a tensor: `pipeline/cli/pictures.py`; what the model wants: `pipeline/cli/picture_model.py`.
"""

import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

from pipeline.cli.pictures import Layout, PictureError, PictureForm, PictureOptions, Size
from pipeline.cli.request_files import BadLine, Ids, Now, Records, Target, build_for, record_or_bad_line

# What is read to its end before anything is known of it: four times the largest picture that cameras write.
FILE_BYTES_MAX = 256 << 20
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_FRACTION = re.compile(rf"({_NUMBER})(?:/({_NUMBER}))?")
_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")


def from_pictures(
    files: Iterable[str],
    form: PictureForm,
    target: Target,
    id_of: Ids,
    now: Now,
    named: Callable[[str, str], None],
) -> Records:
    """One request for each file.

    Args:
        files: their names.
        form: what a picture becomes.
        target: what is asked; its input's name is the form's.
        id_of: makes the ids, of a file's number, and its place, content and form.
        now: for the records' time.
        named: is told the id and the file of each request.
    """
    for number, file in enumerate(files, start=1):
        try:
            content = _content_of(Path(file))
            tensor = form.tensor_of(content)
        except (OSError, PictureError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            yield BadLine(number, reason or str(error), file)
            continue
        place = os.fsencode(Path(file).absolute())
        request_id = id_of(number, b"\0".join((place, repr(form).encode(), content)))
        named(request_id, file)
        made = record_or_bad_line(number, partial(build_for, target, tensor, request_id, now))
        yield replace(made, file=file) if isinstance(made, BadLine) else made


def _content_of(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        OSError: it cannot be read.
        PictureError: it is no file, or too large for a picture.
    """
    size = path.stat().st_size
    if not path.is_file():
        raise PictureError("it is no file: a picture was expected")
    if size > FILE_BYTES_MAX:
        raise PictureError(f"it has {size} bytes: a picture of {FILE_BYTES_MAX} at most was expected")
    return path.read_bytes()


def options_of(
    scale: str, mean: str, std: str, layout: str | None, size: str | None, *, invert: bool
) -> PictureOptions:
    """The options as they were typed.

    Raises:
        ValueError: one is none; the message has its name, its value and what was expected.
    """
    if layout is not None and layout.upper() not in {"NCHW", "NHWC"}:
        raise ValueError(f"--layout is {layout!r}: NCHW or NHWC was expected")
    factor, divisors = number_of("--scale", scale), numbers_of("--std", std)
    if not factor or not all(divisors):
        name, text = ("--std", std) if factor else ("--scale", scale)
        raise ValueError(f"{name} is {text!r}: 0 leaves nothing of a picture")
    return PictureOptions(
        factor,
        numbers_of("--mean", mean),
        divisors,
        invert,
        None if layout is None else cast("Layout", layout.upper()),
        None if size is None else size_of(size),
    )


def number_of(option: str, text: str) -> float:
    """A number, or a fraction such as 1/255.

    Raises:
        ValueError: it is none; the message names the option.
    """
    found = _FRACTION.fullmatch(text.strip())
    divisor = float(found[2]) if found is not None and found[2] is not None else 1.0
    value = float(found[1]) / divisor if found is not None and divisor else math.nan
    if not math.isfinite(value):
        raise ValueError(f"{option} is {text!r}: a number was expected, or a fraction such as 1/255")
    return value


def numbers_of(option: str, text: str) -> tuple[float, ...]:
    """One number, or one for each channel, with commas between them; raises what `number_of` raises."""
    return tuple(number_of(option, part) for part in text.split(","))


def size_of(text: str) -> Size:
    """Height and width.

    Raises:
        ValueError: it is none; the message names the option.
    """
    found = _SIZE.fullmatch(text.strip())
    size = (int(found[1]), int(found[2])) if found is not None else (0, 0)
    if not all(size):
        raise ValueError(f"--size is {text!r}: HEIGHTxWIDTH in pixels was expected, such as 224x224")
    return size
