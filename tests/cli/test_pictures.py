"""Pictures as tensors: every layout, every kind of file that is met, and what is said of those that are none."""

import struct
import warnings
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.cli.pictures import ModelInput, ModelInputError, PictureError, PictureOptions, form_for
from tests.cli.picture_samples import COLOURS, GREYS, encoded, ink_on_paper

NUMPY: dict[str, Any] = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64, "UINT8": np.uint8,
                         "INT32": np.int32, "INT64": np.int64, "UINT16": np.uint16}  # fmt: skip


def made(content: bytes, shape: tuple[int, ...], datatype: str = "UINT8", **options: Any) -> npt.NDArray[Any]:
    """The tensor of a picture for an input of this shape."""
    tensor = form_for(ModelInput("x", datatype, shape), PictureOptions(**options)).tensor_of(content)
    assert (tensor.name, tensor.datatype) == ("x", datatype)
    return np.frombuffer(tensor.raw, NUMPY[datatype]).reshape(tensor.shape)


def refusal(content: bytes, shape: tuple[int, ...] = (-1, 4, 4), **options: Any) -> str:
    """What is said of a file."""
    with pytest.raises(PictureError) as caught:
        made(content, shape, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((-1, 3, 2, 2), COLOURS.transpose(2, 0, 1)[None]),
        ((1, 3, 2, 2), COLOURS.transpose(2, 0, 1)[None]),
        ((3, 2, 2), COLOURS.transpose(2, 0, 1)),
        ((-1, 2, 2, 3), COLOURS[None]),
        ((2, 2, 3), COLOURS),
        ((-1, -1, -1, 3), COLOURS[None]),
        ((-1, 3, -1, -1), COLOURS.transpose(2, 0, 1)[None]),
    ],
)
def test_layouts_of_colour(shape: tuple[int, ...], expected: npt.NDArray[np.uint8]) -> None:
    """NCHW and NHWC are told apart by where the 3 is, with a batch axis or without; open sizes are the picture's."""
    found = made(encoded(COLOURS), shape)
    assert found.shape == expected.shape
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((-1, 1, 4, 4), (1, 1, 4, 4)),
        ((-1, 4, 4, 1), (1, 4, 4, 1)),
        ((-1, 4, 4), (1, 4, 4)),
        ((4, 4), (4, 4)),
        ((-1, 16), (1, 16)),
        ((16,), (16,)),
        ((-1, -1, -1), (1, 4, 4)),
    ],
)
def test_layouts_of_grayscale(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """One channel, none, or all pixels in one row: the same pixels, row by row."""
    for content in (encoded(GREYS), encoded(np.stack([GREYS] * 3, axis=2))):
        found = made(content, shape)
        assert found.shape == expected
        assert found.reshape(-1).tolist() == GREYS.reshape(-1).tolist()


@pytest.mark.parametrize("datatype", sorted(NUMPY))
def test_pixels_stay_from_0_to_255(datatype: str) -> None:
    """Integers and floats alike have the pixels' own values where no option says otherwise."""
    assert made(encoded(GREYS), (4, 4), datatype).tolist() == GREYS.tolist()


def test_values_follow_the_options() -> None:
    """(pixel * scale - mean) / std, by channel, inverted before all: the scalings of Triton's own client are such."""
    content, shape = encoded(COLOURS), (-1, 2, 2, 3)
    pixels = COLOURS[None].astype(np.float64)
    cases: list[tuple[dict[str, Any], npt.NDArray[np.float64]]] = [
        ({"scale": 1 / 127.5, "mean": (1.0,)}, pixels / 127.5 - 1),  # INCEPTION
        ({"mean": (123.0, 117.0, 104.0)}, pixels - [123, 117, 104]),  # VGG
        ({"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
         (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]),
        ({"scale": 16 / 255, "invert": True}, (255 - pixels) * 16 / 255),
    ]  # fmt: skip
    for options, expected in cases:
        np.testing.assert_allclose(made(content, shape, "FP32", **options), expected, rtol=1e-6, atol=1e-6)
    by_channel = made(content, (-1, 3, 2, 2), "FP32", mean=(123.0, 117.0, 104.0))
    np.testing.assert_allclose(by_channel, (pixels - [123, 117, 104]).transpose(0, 3, 1, 2))


def test_picture_is_stretched_to_the_models_size() -> None:
    """Smaller by averages, to the pixel; larger between the pixels; height before width."""
    row = np.arange(64) % 17
    assert made(encoded(ink_on_paper(row)), (-1, 64)).tolist() == [ink_on_paper(row, 1).reshape(-1).tolist()]
    assert made(encoded(np.array([[0, 200]], np.uint8)), (4, 4)).tolist()[3] == [0, 50, 150, 200]
    checks = np.array([[0, 100], [100, 200]], np.uint8)
    assert made(encoded(checks), (1, 1)).tolist() == [[100]]
    assert made(encoded(GREYS), (-1, 3, 5, 7)).shape == (1, 3, 5, 7)
    assert made(encoded(GREYS), (-1, -1, -1), size=(2, 3)).shape == (1, 2, 3)
    assert made(encoded(GREYS), (-1, 6), size=(2, 3)).shape == (1, 6)


@pytest.mark.parametrize("form", ["PNG", "BMP", "GIF", "TIFF", "WEBP", "JPEG"])
def test_formats_give_the_same_pixels(form: str) -> None:
    """What is exact stays exact; JPEG is close."""
    options = {"lossless": True} if form == "WEBP" else {"quality": 100} if form == "JPEG" else {}
    found = made(encoded(np.kron(GREYS, np.ones((8, 8), np.uint8)), form, **options), (-1, 32, 32))
    expected = np.kron(GREYS, np.ones((8, 8), np.uint8))
    assert np.abs(found[0].astype(int) - expected).max() <= (3 if form == "JPEG" else 0)


def test_transparent_pictures_lie_on_white() -> None:
    """An alpha channel, a palette's transparent colour, a colour key: never the black that is stored beneath."""
    alpha = np.zeros((2, 2, 4), np.uint8)
    alpha[0, 0, 3], alpha[0, 1, 3] = 255, 51
    expected = [[0, 204], [255, 255]]
    assert made(encoded(alpha), (2, 2)).tolist() == expected
    assert made(encoded(alpha[:, :, [0, 3]]), (2, 2)).tolist() == expected
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.putdata([0, 1])
    assert made(encoded(palette, transparency=0), (-1, 1, 2, 3), layout="NHWC").tolist() == [[[[255] * 3, [255, 0, 0]]]]
    assert made(encoded(np.zeros((1, 1, 3), np.uint8), transparency=(0, 0, 0)), (1, 1)).tolist() == [[255]]


def test_phones_pictures_stand_upright() -> None:
    """The camera's turn, which EXIF keeps beside the pixels, is done."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it by 90 degrees to the right
    wide = np.zeros((8, 16), np.uint8)
    wide[:, :8] = 255
    found = made(encoded(wide, exif=exif), (-1, -1, -1))
    assert found.shape == (1, 16, 8)
    assert (found[0, :8] == 255).all()
    assert (found[0, 8:] == 0).all()


def test_sixteen_bits_become_eight() -> None:
    """By their share of the largest, not cut off at 255; other depths are refused, as nobody knows what white is."""
    deep = np.array([[0, 257, 32896], [65535, 1000, 65278]], np.uint16)
    for form in ("PNG", "TIFF"):
        assert made(encoded(deep, form), (2, 3), layout=None).tolist() == [[0, 1, 128], [255, 4, 254]]
    for kind, words in ((np.int32, "32-bit integers"), (np.float32, "32-bit floats")):
        assert f"{words}: 8 or 16 bits a channel were expected" in refusal(encoded(GREYS.astype(kind), "TIFF"))


def test_printers_colours_become_rgb() -> None:
    """CMYK, for colour and grayscale models; one bit and palettes likewise."""
    cmyk = Image.new("CMYK", (1, 1), (0, 255, 255, 0))
    assert made(encoded(cmyk, "TIFF"), (-1, 1, 1, 3), layout="NHWC").tolist() == [[[[255, 0, 0]]]]
    assert made(encoded(cmyk, "TIFF"), (1, 1)).tolist() == [[76]]
    assert made(encoded(cmyk, "JPEG", quality=100), (-1, 1, 1, 3), layout="NHWC").reshape(-1)[0] > 250
    assert made(encoded(Image.new("1", (2, 2), 1)), (2, 2)).tolist() == [[255, 255], [255, 255]]


def test_moving_pictures_are_refused() -> None:
    """Several frames or pages are several pictures, and nobody said which."""
    frames = [Image.fromarray(GREYS), Image.fromarray(GREYS[::-1])]
    for form in ("GIF", "PNG", "TIFF", "WEBP"):
        content = encoded(frames[0], form, save_all=True, append_images=frames[1:])
        assert f"it is {form} with 2 frames or pages: one was expected" in refusal(content)


def test_huge_pictures_are_refused_before_they_are_read() -> None:
    """A few bytes that claim billions of pixels, or too many by half, cost nothing, and warn nobody."""
    for side in (10_000, 60_000):
        head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        chunk = b"IHDR" + head
        bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
        bomb += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert "89478485 pixels: so many at most were expected" in refusal(bomb)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is none of PNG, JPEG, BMP, GIF, TIFF, WEBP; it begins with b''"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "it begins with b'%!PS-Ado'"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is none of"),
        (b'{"model_name": "digits"}', "it is none of"),
    ],
)
def test_other_files_are_named_by_how_they_begin(content: bytes, words: str) -> None:
    """What is no picture, or one of a kind that is not read, is told by its first bytes."""
    assert words in refusal(content)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_files_cut_short_are_refused(form: str) -> None:
    """Half of a picture is no picture, wherever it was cut."""
    noise = np.random.default_rng(7).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    content = encoded(noise, form)
    for share in (0.1, 0.5, 0.9):
        told = refusal(content[: int(len(content) * share)], (-1, 32, 32, 3))
        assert "broken or cut short" in told or "it is none of" in told


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_broken_files_never_end_the_others(form: str) -> None:
    """Whatever byte of a file is another one: a tensor, or a reason; no other error, and no warning."""
    content = encoded(np.kron(COLOURS, np.ones((8, 8, 1), np.uint8)), form)

    @settings(max_examples=150, deadline=None, database=None, derandomize=True)
    @given(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), min_size=1, max_size=6))
    def change(places: list[tuple[int, int]]) -> None:
        broken = bytearray(content)
        for place, value in places:
            broken[place] = value
        with suppress(PictureError):
            assert made(bytes(broken), (-1, 4, 4, 3)).shape == (1, 4, 4, 3)

    change()


@pytest.mark.parametrize(
    ("shape", "datatype", "options", "words"),
    [
        ((-1, 1), "BYTES", {}, "x BYTES [-1, 1] takes no pixels: one of FP16"),
        ((-1, 3, 4, 4), "INT8", {}, "takes no pixels"),
        ((-1, 3, 4, 4), "UINT8", {"scale": 1 / 255}, "pixels from 0 to 255: --scale, --mean and --std are for floats"),
        ((-1, 3, 4, 4), "FP32", {"mean": (1.0, 2.0)}, "--mean has 2 numbers"),
        ((-1, 63), "FP32", {}, "a row of 63 pixels, and 63 is no square"),
        ((-1, 64), "FP32", {"size": (9, 9)}, "--size is 9x9"),
        ((-1, 3, 4, 4), "FP32", {"size": (9, 9)}, "--size is 9x9"),
        ((-1, -1), "FP32", {}, "is no picture's"),
        ((-1,), "FP32", {}, "is no picture's"),
        ((), "FP32", {}, "is no picture's"),
        ((-1, 4, 4, 4, 3), "FP32", {}, "is no picture's"),
        ((8, 3, 4, 4), "FP32", {}, "is no picture's"),
        ((-1, 3, 9, 3), "FP32", {}, "may be either NCHW or NHWC: --layout"),
        ((-1, 4, 9, 9), "FP32", {}, "has 3 or 1 nowhere: --layout"),
        ((-1, 4, 9, 9), "FP32", {"layout": "NCHW"}, "has 4 channels, read as NCHW"),
        ((-1, 64), "FP32", {"layout": "NCHW"}, "--layout is NCHW: the input x FP32 [-1, 64] has no axis of channels"),
    ],
)
def test_inputs_that_no_picture_fits_are_told(
    shape: tuple[int, ...], datatype: str, options: dict[str, Any], words: str
) -> None:
    """What the model's input is, and what was expected, before a single file is read."""
    with pytest.raises(ModelInputError) as caught:
        form_for(ModelInput("x", datatype, shape), PictureOptions(**options))
    assert words in str(caught.value)


def test_ambiguous_shape_is_settled_by_the_layout() -> None:
    """A 3 at both ends is what --layout says."""
    assert made(encoded(COLOURS), (-1, 3, 2, 3), layout="NCHW").shape == (1, 3, 2, 3)
    stripes = np.zeros((3, 2, 3), np.uint8)
    stripes[0] = 255
    assert made(encoded(stripes), (-1, 3, 2, 3), layout="NHWC")[0].tolist() == stripes.tolist()
