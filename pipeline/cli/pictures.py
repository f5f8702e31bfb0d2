"""Picture files as tensors: what the model wants is in its metadata, what its pixels mean is said by options.

    [-1, 3, 224, 224]   NCHW, RGB            [-1, 28, 28]   height and width, grayscale
    [-1, 224, 224, 1]   NHWC, grayscale      [-1, 64]       8 x 8 in one row, grayscale

A picture is turned as its EXIF says, laid on white where it is transparent, made RGB or grayscale of 8 bits a channel,
and stretched to the model's height and width: averaged where it gets smaller, bilinear where it gets larger. An element
is then (pixel * scale - mean) / std.
"""

import math
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.errors import PipelineError
from schemas.tensor import Tensor, from_numpy

# Others that Pillow knows start programs (EPS), or are no pictures of a camera's or a browser's.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
# What phones write as .jpg: a picture, and others that are made of it. The first one is meant.
_PHONES = "MPO"
_FLOATS = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64}
_INTEGERS = {
    "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
    "INT16": np.int16, "INT32": np.int32, "INT64": np.int64,
}  # fmt: skip
_DATATYPES = _FLOATS | _INTEGERS
# What Pillow raises of files that are broken, besides its own; found by changing bytes of good ones.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, OverflowError, TypeError, struct.error,
           zlib.error, MemoryError)  # fmt: skip

Layout = Literal["NCHW", "NHWC"]
Size = tuple[int, int]


class PictureError(Exception):
    """A file that cannot be made a tensor; the message says what it is, and what was expected."""


class ModelInputError(PipelineError):
    """An input that no picture fits; the message has its datatype, its shape, and what was expected."""


@dataclass(frozen=True, slots=True)
class PictureOptions:
    """What the metadata does not say.

    Attributes:
        scale: each pixel of 0 to 255 is multiplied by it.
        mean: subtracted then: one number, or one for each channel.
        std: divided by then, likewise.
        invert: 255 minus the pixel, before all else: dark strokes on light ground for a model of light ones on dark.
        layout: where the shape does not tell it.
        size: height and width, where the model leaves them open; else the picture keeps its own.
    """

    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    invert: bool = False
    layout: Layout | None = None
    size: Size | None = None

    @property
    def changes_values(self) -> bool:
        """Whether elements are anything but pixels from 0 to 255."""
        return (self.scale, set(self.mean), set(self.std)) != (1.0, {0.0}, {1.0})


@dataclass(frozen=True, slots=True)
class ModelInput:
    """An input as metadata has it: `shape` with the batch axis, -1 for any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.datatype} {list(self.shape)}"


@dataclass(frozen=True, slots=True)
class PictureForm:
    """What pictures become for one input.

    Attributes:
        wanted: the input.
        options: as given.
        channels: 1 or 3.
        size: height and width; -1 for the picture's own.
        axes: how the elements lie, behind the batch axis: "CHW", "HWC", "HW" or "" for one row.
        is_batched: a batch axis of one stands in front.
    """

    wanted: ModelInput
    options: PictureOptions
    channels: int
    size: Size
    axes: str
    is_batched: bool

    def tensor_of(self, content: bytes) -> Tensor:
        """A picture's tensor.

        Raises:
            PictureError: it is none that can be used.
        """
        with _pillow_as_errors():
            pixels = _pixels(content, self.channels, self._size_for)
        array = self._arranged(self._valued(pixels))
        return from_numpy(self.wanted.name, array)

    def _size_for(self, own: Size) -> Size:
        height, width = (mine if wanted == -1 else wanted for mine, wanted in zip(own, self.size, strict=True))
        return height, width

    def _valued(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        options, datatype = self.options, self.wanted.datatype
        if options.invert:
            pixels = np.uint8(255) - pixels
        if not options.changes_values:
            return pixels.astype(_DATATYPES[datatype])
        values = pixels.astype(np.float64) * options.scale
        elements: npt.NDArray[Any] = (values - np.array(options.mean)) / np.array(options.std)
        return elements.astype(_FLOATS[datatype])

    def _arranged(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """From [height, width, channels] to what the model wants."""
        if self.axes == "CHW":
            values = values.transpose(2, 0, 1)
        elif self.axes != "HWC":
            values = values[:, :, 0]
        if not self.axes:
            values = values.reshape(-1)
        return np.ascontiguousarray(values[np.newaxis] if self.is_batched else values)


def form_for(wanted: ModelInput, options: PictureOptions) -> PictureForm:
    """How pictures are made for an input.

    Raises:
        ModelInputError: none fits, or options are missing or too many.
    """
    if wanted.datatype not in _DATATYPES:
        raise ModelInputError(f"the input {wanted} takes no pixels: one of {', '.join(_DATATYPES)} was expected")
    if options.changes_values and wanted.datatype not in _FLOATS:
        raise ModelInputError(
            f"the input {wanted} holds pixels from 0 to 255: --scale, --mean and --std are for floats"
        )
    dims, is_batched = _without_batch(list(wanted.shape), options.layout)
    axes, channels, size = _axes(wanted, dims, options)
    for name, numbers in (("--mean", options.mean), ("--std", options.std)):
        if len(numbers) not in {1, channels}:
            raise ModelInputError(f"{name} has {len(numbers)} numbers, the input {wanted} has {channels} channels")
    return PictureForm(wanted, options, channels, size, axes, is_batched)


def _without_batch(shape: list[int], layout: Layout | None) -> tuple[list[int], bool]:
    """The axes of one picture. -1 or 1 in front is the batch, but in three that are a picture's already."""
    if len(shape) == 3 and (layout is not None or 3 in (shape[0], shape[2])):
        return shape, False
    if len(shape) > 1 and shape[0] in {-1, 1}:
        return shape[1:], True
    return shape, False


def _axes(wanted: ModelInput, dims: list[int], options: PictureOptions) -> tuple[str, int, Size]:
    if len(dims) == 3:
        axes = _order(wanted, dims, options.layout)
        channels = dims[axes.index("C")]
        if channels not in {1, 3}:
            raise ModelInputError(f"the input {wanted} has {channels} channels, read as N{axes}: 1 or 3 were expected")
        height, width = (size for size, axis in zip(dims, axes, strict=True) if axis != "C")
        return axes, channels, _sized(wanted, (height, width), options.size)
    if options.layout is not None:
        raise ModelInputError(f"--layout is {options.layout}: the input {wanted} has no axis of channels")
    if len(dims) == 2:
        return "HW", 1, _sized(wanted, (dims[0], dims[1]), options.size)
    if len(dims) == 1 and dims[0] > 0:
        return "", 1, _row_size(wanted, dims[0], options.size)
    raise ModelInputError(
        f"the input {wanted} is no picture's: [batch, 3, height, width], [batch, height, width, 3], the same with 1 "
        "for grayscale, [batch, height, width] or [batch, pixels] was expected"
    )


def _order(wanted: ModelInput, dims: list[int], layout: Layout | None) -> str:
    if layout is not None:
        return layout[1:]
    first, last = dims[0] in {1, 3}, dims[2] in {1, 3}
    if first == last:
        told = "may be either NCHW or NHWC: --layout says which" if first else "has 3 or 1 nowhere: --layout says where"
        raise ModelInputError(f"the input {wanted} {told}")
    return "CHW" if first else "HWC"


def _sized(wanted: ModelInput, size: Size, given: Size | None) -> Size:
    if given is None:
        return size
    if any(mine not in {-1, theirs} for mine, theirs in zip(size, given, strict=True)):
        raise ModelInputError(f"--size is {given[0]}x{given[1]}: the input {wanted} has its own height and width")
    return given


def _row_size(wanted: ModelInput, pixels: int, given: Size | None) -> Size:
    """Height and width of a picture in one row: a square unless it is said otherwise."""
    side = math.isqrt(pixels)
    size = (side, side) if given is None else given
    if size[0] * size[1] != pixels:
        found = f"--size is {size[0]}x{size[1]}" if given else f"{pixels} is no square"
        raise ModelInputError(
            f"the input {wanted} is a row of {pixels} pixels, and {found}: --size HEIGHTxWIDTH of so many was expected"
        )
    return size


@contextmanager
def _pillow_as_errors() -> Iterator[None]:
    """Pillow's warnings that a picture is huge are errors; those of odd metadata say nothing of the pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise PictureError(
                f"it says that it has over {Image.MAX_IMAGE_PIXELS} pixels: so many at most were expected"
            ) from None
        except _BROKEN as error:
            raise PictureError(f"it is broken or cut short, a whole picture was expected: {error}") from None


def _pixels(content: bytes, channels: int, size_for: Callable[[Size], Size]) -> npt.NDArray[np.uint8]:
    """A picture as [height, width, channels] of 0 to 255."""
    try:
        picture = Image.open(BytesIO(content), formats=_FORMATS)
    except UnidentifiedImageError:
        raise PictureError(f"it is none of {', '.join(_FORMATS)}; it begins with {content[:8]!r}") from None
    with picture:
        frames = getattr(picture, "n_frames", 1)
        if frames > 1 and picture.format != _PHONES:
            raise PictureError(f"it is {picture.format} with {frames} frames or pages: one was expected")
        picture.load()
        upright = ImageOps.exif_transpose(picture)
        plain = _eight_bits(upright, "L" if channels == 1 else "RGB")
    own = plain.height, plain.width
    height, width = size_for(own)
    if (height, width) != own:
        is_smaller = height <= own[0] and width <= own[1]
        plain = plain.resize((width, height), Image.Resampling.BOX if is_smaller else Image.Resampling.BILINEAR)
    return np.asarray(plain, dtype=np.uint8).reshape(height, width, channels)


def _eight_bits(picture: Image.Image, mode: Literal["L", "RGB"]) -> Image.Image:
    """The picture in the mode, without transparency. Pillow itself cuts 16 bits off at 255, and leaves black behind."""
    if picture.mode.startswith("I;16"):
        values = np.asarray(picture).astype(np.float64)
        picture = Image.fromarray(np.round(values / 257).astype(np.uint8))
    elif picture.mode in {"I", "F"}:
        kind = "32-bit integers" if picture.mode == "I" else "32-bit floats"
        raise PictureError(f"its pixels are {kind}: 8 or 16 bits a channel were expected")
    if picture.has_transparency_data:
        seen = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    # Grayscale of colours as in every program: ITU-R 601, by way of RGB for what has other channels.
    return picture.convert("RGB").convert(mode) if picture.mode != mode else picture
