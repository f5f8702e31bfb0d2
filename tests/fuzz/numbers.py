"""The many ways to write one value in JSON: numbers, strings, booleans."""

import json
import math
import struct
from decimal import Decimal
from functools import lru_cache

from tests.fuzz.values import FLOAT_CODES, INTEGER_CODES, Value

# How many ways each of these has; a style is one of them. Style 0 is what Python's json writes.
NUMBER_STYLES = 9
TEXT_STYLES = 5


def _digits(number: float) -> tuple[str, str, int]:
    """Sign, digits and exponent of the shortest decimal: the number is digits times ten to the exponent."""
    sign, digits, exponent = Decimal(repr(number)).as_tuple()
    assert isinstance(exponent, int)
    return "-" * sign, "".join(map(str, digits)), exponent


def float_text(number: float, style: int, digits: int = 17) -> str:
    """A finite number with a fraction or an exponent, or as an integer where it is one.

    Args:
        number: the value, not rounded any more.
        style: one of `NUMBER_STYLES`.
        digits: how many are enough to tell it from its neighbours: 17 of FP64, 9 of FP32.
    """
    text = repr(number)
    if style == 1:
        text = f"{number:.17e}"
    elif style == 2:
        sign, shortest, exponent = _digits(number)
        text = f"{sign}{shortest}E{exponent:+03d}"  # 1.5 as 15E-01
    elif style == 3:
        sign, shortest, exponent = _digits(number)
        text = f"{sign}0.{shortest}e{exponent + len(shortest)}"  # 1.5 as 0.15e1
    elif style == 4:
        text = f"{number:.{digits}g}"
    elif style == 5 and number == math.floor(number) and abs(number) < 1e30:
        text = str(int(number))
    elif style == 6 and 1e-30 < abs(number) < 1e30:
        text = f"{Decimal(repr(number)):f}"
    elif style == 7:
        text = str(Decimal(number))  # all digits of the double, up to 767
    elif style == 8 and number:
        sign, shortest, exponent = _digits(number)
        text = f"{sign}{shortest}0000E{exponent - 4}"  # 1.5 as 150000E-5
    # "-0" is the integer 0; a zero with a sign has a fraction or an exponent.
    return text if is_float(text) or math.copysign(1.0, number) > 0 or number else repr(number)


def is_float(text: str) -> bool:
    """Whether JSON text is a number with a fraction or an exponent."""
    return "." in text or "e" in text or "E" in text


@lru_cache(maxsize=16384)
def element_text(datatype: str, element: bytes, style: int) -> str | None:
    """One element as JSON; None where JSON cannot carry it."""
    if datatype == "BOOL":
        return {b"\0": "false", b"\1": "true"}.get(element)
    if datatype == "BYTES":
        try:
            return text_json(element.decode(), style % TEXT_STYLES)
        except UnicodeDecodeError:
            return None
    if datatype in FLOAT_CODES:
        number: float = struct.unpack(FLOAT_CODES[datatype], element)[0]
        return float_text(number, style, 9 if datatype == "FP32" else 17) if math.isfinite(number) else None
    if datatype in INTEGER_CODES:
        return _integer_text(struct.unpack(INTEGER_CODES[datatype], element)[0], style)
    return None


def _integer_text(number: int, style: int) -> str:
    return "-0" if number == 0 and style % 4 == 3 else str(number)


def value_text(value: Value, style: int) -> str:
    """A parameter's value as JSON: an integer stays one, and so does a number with a fraction."""
    if isinstance(value, str):
        return text_json(value, style % TEXT_STYLES)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return _integer_text(value, style)
    text = float_text(value, style)
    return text if is_float(text) else repr(value)


@lru_cache(maxsize=16384)
def text_json(text: str, style: int) -> str:
    """A string as JSON: as it is, in ASCII, or with all or half of its UTF-16 units escaped."""
    if style < 2:
        return json.dumps(text, ensure_ascii=style == 1)
    if style < 4:
        return f'"{_escaped(text).upper().replace("U", "u") if style == 3 else _escaped(text)}"'
    # Every other character escaped; a slash may be by itself.
    parts = ["\\/" if one == "/" else json.dumps(one)[1:-1] if at % 2 else _escaped(one) for at, one in enumerate(text)]
    return f'"{"".join(parts)}"'


def _escaped(text: str) -> str:
    units = text.encode("utf-16-be")
    return "".join([f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2)])
