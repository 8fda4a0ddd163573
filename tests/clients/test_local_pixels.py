"""A device prepares a picture to the bits that the server and the core make of it."""

from __future__ import annotations

import io
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metanas.preprocessing import Preprocessing, scale
from metanas_client import InvalidRequestError
from metanas_client.content import content
from metanas_client.images import encode_image
from metanas_client.local_pixels import Recipe, network_input, read_pixels
from metanas_serving import errors as serving_errors
from metanas_serving.images import read_image

SIZES = {"same": (28, 20), "smaller": (9, 13), "larger": (61, 47)}


def preprocessing_of(channels: int, *, invert: bool = True) -> Preprocessing:
    return Preprocessing(
        channels=channels,
        height=28,
        width=20,
        invert=invert,
        mean=(0.4, 0.5, 0.123)[:channels],
        deviation=(0.3, 0.25, 0.77)[:channels],
    )


def noise(height: int, width: int, channels: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(height).integers(0, 256, shape, dtype=np.uint8)


def file_of(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return file_of(Image.fromarray(noise(31, 22, 3)), "JPEG", exif=exif)


def pictures() -> dict[str, Any]:
    """Whatever a user may hold, by what is peculiar to it."""
    found: dict[str, Any] = {}
    for name, (height, width) in SIZES.items():
        colour = Image.fromarray(noise(height, width, 3))
        found |= {
            f"grey array, {name}": noise(height, width),
            f"array with one channel, {name}": noise(height, width, 1),
            f"colour array, {name}": noise(height, width, 3),
            f"array with alpha, {name}": noise(height, width, 4),
            f"float32 array, {name}": noise(height, width, 3).astype(np.float32) / 255,
            f"float64 array, {name}": np.random.default_rng(0).random((height, width)),
            f"colour PNG, {name}": file_of(colour, "PNG"),
            f"JPEG, {name}": file_of(colour, "JPEG"),
            f"PIL, {name}": colour,
        }
    alpha = Image.fromarray(noise(40, 33, 4))
    grey = Image.fromarray(noise(40, 33))
    palette = alpha.convert("RGB").quantize(16)
    palette.info["transparency"] = 3
    wide = Image.fromarray(np.random.default_rng(1).integers(0, 65536, (40, 33), dtype=np.uint16))
    return found | {
        "PNG with alpha": file_of(alpha, "PNG"),
        "grey PNG with alpha": file_of(alpha.convert("LA"), "PNG"),
        "palette with a transparent colour": file_of(palette, "PNG", transparency=3),
        "grey PNG with a transparent value": file_of(grey, "PNG", transparency=7),
        "black and white PNG": file_of(grey.convert("1"), "PNG"),
        "16-bit PNG": file_of(wide, "PNG"),
        "grey JPEG": file_of(grey, "JPEG"),
        "CMYK JPEG": file_of(alpha.convert("CMYK"), "JPEG"),
        "PIL with a palette": palette,
        "PIL with alpha": alpha,
        "PIL in CMYK": alpha.convert("CMYK"),
        "PIL in black and white": grey.convert("1"),
        **{f"JPEG turned by EXIF {value}": turned(value) for value in range(1, 9)},
        "PIL turned by EXIF": Image.open(io.BytesIO(turned(6))),
    }


PICTURES = pictures()


@pytest.mark.parametrize(("channels", "invert"), itertools.product((1, 3), (False, True)))
@pytest.mark.parametrize("name", PICTURES)
def test_pixels_are_those_of_the_server(name: str, channels: int, invert: bool) -> None:
    preprocessing = preprocessing_of(channels, invert=invert)
    given = PICTURES[name]

    ours = read_pixels(content(given, where="it"), Recipe.from_dict(preprocessing.to_dict()), where="it")

    servers = read_image(encode_image(given, where="it"), preprocessing, where="it")
    assert ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, servers)


@pytest.mark.parametrize("channels", [1, 3])
def test_network_input_is_that_of_the_core_to_the_bit(channels: int) -> None:
    preprocessing = preprocessing_of(channels)
    every_value = np.tile(np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16), (2, channels, 1, 1))

    ours = network_input(every_value, Recipe.from_dict(preprocessing.to_dict()))

    cores = scale(torch.from_numpy(every_value), preprocessing).numpy()
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours.view(np.uint32), cores.view(np.uint32))


GOOD = file_of(Image.fromarray(noise(40, 33, 3)), "PNG")
BAD = {
    "empty": (b"", r"the file is empty \(0 bytes\); pass"),
    "of another kind": (b"GIF89a" + b"\0" * 40, "neither a PNG nor a JPEG file .*; convert it"),
    "cut after its header": (GOOD[:60], "cannot be decoded .*; pass a complete PNG or JPEG"),
    "cut in its header": (GOOD[:12], "cannot be read .*; pass a complete PNG or JPEG"),
    "a JPEG of three bytes": (b"\xff\xd8\xff", "cannot be read .*; pass a complete PNG or JPEG"),
    "too wide": (file_of(Image.new("1", (4097, 1)), "PNG"), r"at most 4096 pixels a side, got 1 x 4097 .*smaller"),
    "an array too high": (np.zeros((4097, 1), np.uint8), r"at most 4096 pixels a side, got 4097 x 1 .*smaller"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_the_server_refuses_is_refused_here(name: str) -> None:
    given, message = BAD[name]
    preprocessing = preprocessing_of(3)

    with pytest.raises(InvalidRequestError, match=f"image 4: .*{message}"):
        read_pixels(content(given, where="it"), Recipe.from_dict(preprocessing.to_dict()), where="image 4")

    with pytest.raises(serving_errors.InvalidRequestError):
        read_image(encode_image(given, where="it"), preprocessing, where="image 4")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 2}, "channels must be 1 or 3, got 2"),
        ({"height": 0}, r"height and width must be 1\.\.4096, got 0 x 20"),
        ({"invert": "yes"}, "invert must be true or false, got 'yes'"),
        ({"mean": [0.1]}, "mean and deviation need 3 values"),
        ({"deviation": [1.0, 0.0, 1.0]}, "deviation must be above 0"),
        ({"flip": True}, "its keys are .*flip"),
    ],
)
def test_a_recipe_that_cannot_be_done_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe.from_dict({**preprocessing_of(3).to_dict(), **change})
