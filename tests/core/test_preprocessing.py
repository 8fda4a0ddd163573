"""One path from any picture to the network's input."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from metanas.errors import InvalidConfigError, InvalidImageError
from metanas.preprocessing import MAX_SIDE_PIXELS, Preprocessing, picture_from_array, prepare, scale

GREY = Preprocessing(height=10, width=9)
COLOUR = Preprocessing(channels=3, height=10, width=9, mean=(0.5,) * 3, deviation=(0.25,) * 3)
SAME = Preprocessing(height=2, width=3)
"""Of the size of the small pictures here: nothing is resized."""


def _random(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _through(picture: Image.Image, kind: str = "PNG", **options: Any) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return Image.open(io.BytesIO(file.getvalue()))


@pytest.mark.parametrize("preprocessing", [GREY, COLOUR, Preprocessing(height=10, width=9, invert=True)])
@pytest.mark.parametrize("shape", [(31, 17), (31, 17, 1), (31, 17, 3), (31, 17, 4), (10, 9)])
def test_a_png_its_uint8_array_and_its_float_array_become_the_same_pixels(
    shape: tuple[int, ...], preprocessing: Preprocessing
) -> None:
    pixels = _random(*shape)
    expected = prepare(picture_from_array(pixels), preprocessing)
    assert expected.dtype == np.uint8
    assert expected.shape == (preprocessing.channels, 10, 9)
    for floats in (np.float32, np.float64):
        np.testing.assert_array_equal(prepare(picture_from_array(pixels.astype(floats) / 255), preprocessing), expected)
    np.testing.assert_array_equal(prepare(_through(picture_from_array(pixels)), preprocessing), expected)


def test_grey_is_the_luma_of_itu_r_601_by_hand() -> None:
    pixels = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]] * 2, dtype=np.uint8)
    assert prepare(picture_from_array(pixels), SAME)[0, 0].tolist() == [76, 150, 29]  # 0.299, 0.587, 0.114 of 255


def test_inverting_turns_every_value_into_255_less_it() -> None:
    pixels = _random(2, 3)
    inverted = prepare(picture_from_array(pixels), Preprocessing(height=2, width=3, invert=True))
    np.testing.assert_array_equal(inverted[0], 255 - pixels)


def test_transparency_is_laid_onto_white() -> None:
    pixels = np.array([[[0, 0, 0, 0], [0, 0, 0, 255], [0, 0, 0, 51]]] * 2, dtype=np.uint8)
    assert prepare(picture_from_array(pixels), SAME)[0, 0].tolist() == [255, 0, 204]
    palette = Image.fromarray(np.array([[0, 1, 1]] * 2, dtype=np.uint8), mode="P")
    palette.putpalette([0, 0, 0, 9, 9, 9])
    assert prepare(_through(palette, transparency=0), SAME)[0, 0].tolist() == [255, 9, 9]


def test_sixteen_bit_grey_is_scaled_down_and_not_clipped() -> None:
    wide = np.array([[0, 257 * 100, 65535]] * 2, dtype=np.uint16)
    assert prepare(_through(Image.fromarray(wide)), SAME)[0, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize(("orientation", "expected"), [(1, [[1, 2, 3], [4, 5, 6]]), (3, [[6, 5, 4], [3, 2, 1]])])
def test_the_exif_orientation_is_applied(orientation: int, expected: list[list[int]]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8)
    assert prepare(_through(Image.fromarray(pixels), exif=exif.tobytes()), SAME)[0].tolist() == expected


def test_an_exif_orientation_on_its_side_swaps_height_and_width_before_resizing() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    pixels = np.array([[1, 2], [3, 4], [5, 6]], dtype=np.uint8)
    found = prepare(_through(Image.fromarray(pixels), exif=exif.tobytes()), SAME)[0].tolist()
    assert found == [[5, 3, 1], [6, 4, 2]]


def test_an_orientation_behind_the_pixels_or_in_xmp_is_applied_too() -> None:
    pixels = np.array([[1, 2], [3, 4], [5, 6]], dtype=np.uint8)
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(file, "PNG", exif=exif.tobytes())
    data = file.getvalue()
    begin = data.index(b"eXIf") - 4
    chunk = data[begin : begin + 12 + int.from_bytes(data[begin : begin + 4], "big")]
    end = data.index(b"IEND") - 4
    behind = data[:begin] + data[begin + len(chunk) : end] + chunk + data[end:]
    assert prepare(Image.open(io.BytesIO(behind)), SAME)[0].tolist() == [[5, 3, 1], [6, 4, 2]]

    told = PngInfo()
    told.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    assert prepare(_through(Image.fromarray(pixels), pnginfo=told), SAME)[0].tolist() == [[5, 3, 1], [6, 4, 2]]

    picture = Image.fromarray(pixels)
    picture.getexif()[0x0112] = 6
    assert prepare(picture, SAME)[0].tolist() == [[5, 3, 1], [6, 4, 2]]


def test_xmp_that_pillow_cannot_read_is_refused() -> None:
    told = PngInfo()
    told.add_text("xmp", "text where bytes belong")
    with pytest.raises(InvalidImageError, match="the image cannot be decoded: "):
        prepare(_through(Image.fromarray(_random(2, 3)), pnginfo=told), SAME)


def test_a_picture_that_needs_nothing_is_taken_as_it_is_and_stays_so() -> None:
    preprocessing = Preprocessing(channels=3, height=16, width=16, mean=(0.5,) * 3, deviation=(0.25,) * 3)
    picture = _through(Image.fromarray(_random(16, 16, 3)), "JPEG")
    whole = np.array(picture.convert("RGB"))
    found = prepare(picture, preprocessing)
    np.testing.assert_array_equal(found, whole.transpose(2, 0, 1))
    found[:] = 0
    np.testing.assert_array_equal(np.array(picture), whole)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_jpeg_is_prepared_or_refused_and_nothing_else() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    file = io.BytesIO()
    Image.fromarray(_random(12, 12, 3)).save(file, "JPEG", exif=exif)
    data = file.getvalue()
    refused = 0
    for place in range(len(data)):
        for value in (0, 1, 2, 3, 7, 9, 255):
            damaged = data[:place] + bytes([value]) + data[place + 1 :]
            try:
                prepare(Image.open(io.BytesIO(damaged)), GREY)
            except (InvalidImageError, UnidentifiedImageError, OSError):
                refused += 1
    assert refused > 100


def test_a_truncated_png_is_refused() -> None:
    file = io.BytesIO()
    Image.fromarray(_random(40, 40)).save(file, "PNG")
    with pytest.raises(InvalidImageError, match="the image cannot be decoded: "):
        prepare(Image.open(io.BytesIO(file.getvalue()[:900])), GREY)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((4, 4, 2), np.uint8), r"shape \(height, width\) or \(height, width, 1, 3 or 4\), got \(4, 4, 2\)"),
        (np.zeros(4, np.uint8), r"an image has shape .*, got \(4,\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"an image has shape .*, got \(1, 4, 4, 3\)"),
        (np.zeros((0, 4), np.uint8), "an image has 1..4096 pixels a side, got 0 x 4"),
        (np.zeros((4097, 1), np.uint8), "an image has 1..4096 pixels a side, got 4097 x 1"),
        (np.full((2, 2), np.nan, np.float32), r"NaN or infinity; float pixels must be in \[0, 1\]"),
        (np.full((2, 2), np.inf), "the image holds NaN or infinity"),
        (np.array([[-0.5, 1.0]]), r"float pixels must be in \[0, 1\], got -0.5 to 1; divide by 255 or send uint8"),
        (np.array([[0.0, 255.0]], np.float32), r"float pixels must be in \[0, 1\], got 0 to 255; divide by 255"),
        (np.zeros((2, 2), np.int64), r"pixels must be uint8, or floats in \[0, 1\], got int64"),
        (np.zeros((2, 2), bool), r"pixels must be uint8, or floats in \[0, 1\], got bool"),
    ],
)
def test_pixels_that_cannot_be_used_are_refused(pixels: NDArray[Any], message: str) -> None:
    with pytest.raises(InvalidImageError, match=message):
        picture_from_array(pixels)


def test_a_picture_over_the_limit_is_refused_before_it_is_decoded() -> None:
    picture = Image.new("1", (MAX_SIDE_PIXELS + 1, 3))
    with pytest.raises(InvalidImageError, match="at most 4096 pixels a side, got 3 x 4097; make it smaller"):
        prepare(picture, GREY)


def test_a_picture_at_the_limit_is_taken() -> None:
    assert prepare(picture_from_array(np.zeros((1, MAX_SIDE_PIXELS), np.uint8)), GREY).shape == (1, 10, 9)


def test_scaling_by_hand() -> None:
    images = torch.tensor([255, 0, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    preprocessing = Preprocessing(channels=3, height=1, width=1, mean=(0.5, 0.5, 0.0), deviation=(0.25, 0.5, 1.0))
    scaled = scale(images, preprocessing)
    assert scaled.dtype == torch.float32
    torch.testing.assert_close(scaled.flatten(), torch.tensor([2.0, -1.0, 0.2]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"channels": 2}, r"channels must be 1 \(grey\) or 3 \(RGB\), got 2"),
        ({"height": 0}, r"size must be 1\.\.4096 pixels, got 0 x 28"),
        ({"width": 5000}, r"size must be 1\.\.4096 pixels, got 28 x 5000"),
        ({"mean": (0.1, 0.2)}, r"mean and deviation need 1 values each, got \(0\.1, 0\.2\) and \(1\.0,\)"),
        ({"deviation": (0.0,)}, r"deviation must be above 0, got \(0\.0,\)"),
        ({"deviation": (float("nan"),)}, r"deviation must be above 0, got \(nan,\)"),
    ],
)
def test_preprocessing_that_makes_no_sense_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfigError, match=message):
        Preprocessing(**values)


def test_preprocessing_survives_plain_values() -> None:
    assert Preprocessing.from_dict(COLOUR.to_dict()) == COLOUR
    with pytest.raises(InvalidConfigError, match="Preprocessing has no setting crop"):
        Preprocessing.from_dict({"crop": True})
