"""From any picture to a network's input, without torch: on the device, the same as at the server.

    Recipe           what a model expects of a picture: channels, size, polarity, scaling
    read_pixels      the bytes of a file, or raw pixels  ->  uint8 pixels of the model's size
    network_input    those uint8 pixels                  ->  float32 network input
    read_picture     the bytes of a file, or raw pixels  ->  uint8 RGB, for a graph that does the rest

Steps: upright by EXIF; transparency onto white; grey or RGB; inverted if declared; stretched to the
size by an antialiased bilinear filter; divided by 255; mean and deviation. The server and the core do
the same in modules of their own, which a device does without; ``tests/clients/test_local_pixels.py``
holds both to the same bits.

Files are read by Pillow's PNG and JPEG classes themselves, so none of its other readers is reached.
Knows numpy and Pillow.
"""

import io
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from metanas_client.content import Content
from metanas_client.errors import InvalidRequestError

MAX_SIDE_PIXELS = 4096

_PNG_START = b"\x89PNG\r\n\x1a\n"
_JPEG_START = b"\xff\xd8\xff"
_WHITE = (255, 255, 255, 255)
_WIDE_GREY = 257.0
"""What one step of 8 bits is in 16 bits."""


@dataclass(frozen=True)
class Recipe:
    """What happens to a picture before the network sees it.

    Raises:
        ValueError: a value out of range; the message names it.
    """

    channels: int
    """1: grey (ITU-R 601 luma). 3: RGB."""
    height: int
    """Pixels after resizing."""
    width: int
    invert: bool
    """True: 255 - value, so that dark ink on white paper becomes bright on black."""
    mean: tuple[float, ...]
    """Per channel, of values in [0, 1]; subtracted."""
    deviation: tuple[float, ...]
    """Per channel; divided by."""

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {self.channels!r}")
        if not all(isinstance(side, int) and 1 <= side <= MAX_SIDE_PIXELS for side in (self.height, self.width)):
            raise ValueError(f"height and width must be 1..{MAX_SIDE_PIXELS}, got {self.height!r} x {self.width!r}")
        if not isinstance(self.invert, bool):
            raise ValueError(f"invert must be true or false, got {self.invert!r}")
        if len(self.mean) != self.channels or len(self.deviation) != self.channels:
            raise ValueError(f"mean and deviation need {self.channels} values, got {self.mean} and {self.deviation}")
        if not all(value > 0 for value in self.deviation):
            raise ValueError(f"deviation must be above 0, got {self.deviation}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Recipe":
        """From what an exported file says under ``preprocessing``.

        Raises:
            ValueError, TypeError: a key too many or too few, or a value out of range.
        """
        known = {field.name for field in fields(cls)}
        if set(values) != known:
            raise ValueError(f"its keys are {', '.join(sorted(values))}; they must be {', '.join(sorted(known))}")
        return cls(**{**values, "mean": tuple(values["mean"]), "deviation": tuple(values["deviation"])})


def read_pixels(given: Content, recipe: Recipe, *, where: str) -> NDArray[np.uint8]:
    """Decode one image and bring it to the model's channels, size and polarity.

    Args:
        given: the bytes of a PNG or JPEG file; or pixels, uint8 or floats in [0, 1],
            ``(H, W)`` or ``(H, W, 1, 3 or 4)``.
        where: what messages call the image.

    Returns:
        uint8 ``(channels, height, width)``.

    Raises:
        InvalidRequestError: it cannot be decoded, or is too large.
    """
    picture = _flat(given, "L" if recipe.channels == 1 else "RGB", where=where)
    if recipe.invert:
        picture = ImageOps.invert(picture)
    if picture.size != (recipe.width, recipe.height):
        picture = picture.resize((recipe.width, recipe.height), PILImage.Resampling.BILINEAR)
    pixels = np.array(picture, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def read_picture(given: Content, *, where: str) -> NDArray[np.uint8]:
    """Decode one image for a network that has the rest of the preprocessing in its graph.

    Args, errors: as for ``read_pixels``.

    Returns:
        uint8 ``(height, width, 3)``: RGB, of the image's own size.
    """
    return np.array(_flat(given, "RGB", where=where), dtype=np.uint8)


def network_input(pixels: NDArray[np.uint8], recipe: Recipe) -> NDArray[np.float32]:
    """What the network takes.

    Args:
        pixels: uint8 ``(batch, channels, height, width)``, as ``read_pixels`` makes them.

    Returns:
        float32 of the same shape: ``(value / 255 - mean) / deviation``.
    """
    mean = np.array(recipe.mean, dtype=np.float32).reshape(-1, 1, 1)
    deviation = np.array(recipe.deviation, dtype=np.float32).reshape(-1, 1, 1)
    scaled: NDArray[np.float32] = (pixels.astype(np.float32) / np.float32(255) - mean) / deviation
    return scaled


def _flat(given: Content, mode: str, *, where: str) -> PILImage.Image:
    """The decoded picture, upright, without transparency, in a mode of 8 bits a channel."""
    if not isinstance(given, bytes):
        height, width = given.shape[:2]
        _refuse_size((width, height), where=where)
        eight_bits = given if given.dtype == np.uint8 else np.rint(given * 255).astype(np.uint8)
        one_channel = eight_bits.ndim == 3 and eight_bits.shape[2] == 1
        planes = eight_bits[:, :, 0] if one_channel else eight_bits
        return _opaque(PILImage.fromarray(np.ascontiguousarray(planes))).convert(mode)
    with _open(given, where=where) as picture:
        _refuse_size(picture.size, where=where)
        try:
            picture.load()
            return _opaque(ImageOps.exif_transpose(picture)).convert(mode)
        except Exception as error:  # on damaged bytes the decoders raise whatever their parsers raise
            raise InvalidRequestError(
                f"{where}: its {len(given)} bytes cannot be decoded ({error}); pass a complete PNG or JPEG file"
            ) from error


def _open(data: bytes, *, where: str) -> PILImage.Image:
    """Read the header; decode nothing."""
    if not data:
        raise InvalidRequestError(f"{where}: the file is empty (0 bytes); pass a complete PNG or JPEG file")
    reader = PngImageFile if data.startswith(_PNG_START) else JpegImageFile if data.startswith(_JPEG_START) else None
    if reader is None:
        raise InvalidRequestError(
            f"{where}: its {len(data)} bytes are neither a PNG nor a JPEG file (they start with {data[:8].hex(' ')}); "
            "convert it to one of them"
        )
    try:
        return reader(io.BytesIO(data))
    except Exception as error:  # as above
        raise InvalidRequestError(
            f"{where}: the header in its {len(data)} bytes cannot be read ({error}); pass a complete PNG or JPEG file"
        ) from error


def _refuse_size(size: tuple[int, int], *, where: str) -> None:
    width, height = size
    if width > MAX_SIDE_PIXELS or height > MAX_SIDE_PIXELS:
        raise InvalidRequestError(
            f"{where}: an image has at most {MAX_SIDE_PIXELS} pixels a side, got {height} x {width} "
            "(height x width); make it smaller"
        )


def _opaque(picture: PILImage.Image) -> PILImage.Image:
    """Eight opaque bits a channel: 16-bit grey scaled down, transparency onto white."""
    if picture.mode == "F" or picture.mode.startswith("I"):
        eight_bits = np.clip(np.asarray(picture, dtype=np.float64) / _WIDE_GREY, 0, 255).round()
        return PILImage.fromarray(eight_bits.astype(np.uint8))
    if "transparency" in picture.info or "A" in picture.getbands():
        layer = picture.convert("RGBA")
        return PILImage.alpha_composite(PILImage.new("RGBA", layer.size, _WHITE), layer).convert("RGB")
    return picture
