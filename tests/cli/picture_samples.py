"""Picture files for tests, written by Pillow."""

from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image


def encoded(pixels: npt.NDArray[Any] | Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """A picture's file."""
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def ink_on_paper(row: npt.NDArray[Any], enlarged: int = 4) -> npt.NDArray[np.uint8]:
    """One of scikit-learn's digits, 64 counts of ink from 0 to 16, as a scan of dark strokes on white paper."""
    small: npt.NDArray[np.uint8] = (255 - np.round(row.reshape(8, 8) * 255 / 16)).astype(np.uint8)
    return small.repeat(enlarged, 0).repeat(enlarged, 1)


COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
GREYS = np.arange(0, 240, 15, dtype=np.uint8).reshape(4, 4)
