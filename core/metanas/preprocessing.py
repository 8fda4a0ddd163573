"""From any picture to the network's input, the same way in training, serving and on the device.

    Preprocessing   what a meta-model expects: channels, size, polarity, scaling
    prepare         a picture            ->  uint8 pixels of the model's size
    scale           those uint8 pixels   ->  float32 network input

Every picture passes through 8-bit pixels of the model's size, so that a PNG, its uint8 array
and its float array get the same answer to the bit, and a support set is small on disk.
Steps: upright by EXIF; transparency onto white; grey or RGB; inverted if declared; stretched
to the size by an antialiased bilinear filter; divided by 255; mean and deviation.

Knows numpy and Pillow; torch only in ``scale``.
"""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from metanas.errors import InvalidConfigError, InvalidImageError
from metanas.plain import from_plain, to_plain

MAX_SIDE_PIXELS = 4096

_UPRIGHT = 1


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What happens to a picture before the network sees it."""

    channels: int = 1
    """1: grey (ITU-R 601 luma). 3: RGB."""
    height: int = 28
    """Pixels after resizing."""
    width: int = 28
    invert: bool = False
    """True: 255 - value, so that dark ink on white paper becomes bright on black."""
    mean: tuple[float, ...] = (0.0,)
    """Per channel, of values in [0, 1]; subtracted."""
    deviation: tuple[float, ...] = (1.0,)
    """Per channel; divided by."""

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise InvalidConfigError(f"channels must be 1 (grey) or 3 (RGB), got {self.channels}")
        if not (1 <= self.height <= MAX_SIDE_PIXELS and 1 <= self.width <= MAX_SIDE_PIXELS):
            raise InvalidConfigError(f"size must be 1..{MAX_SIDE_PIXELS} pixels, got {self.height} x {self.width}")
        if len(self.mean) != self.channels or len(self.deviation) != self.channels:
            raise InvalidConfigError(
                f"mean and deviation need {self.channels} values each, got {self.mean} and {self.deviation}"
            )
        if not all(value > 0 for value in self.deviation):
            raise InvalidConfigError(f"deviation must be above 0, got {self.deviation}")

    def steps(self) -> list[str]:
        """What ``prepare`` and ``scale`` do, in order and in words: for whoever has only an exported file."""
        grey = self.channels == 1
        return [
            "turn upright by EXIF orientation; put transparent pixels onto white",
            "convert to 8-bit grey by ITU-R 601-2 luma" if grey else "convert to 8-bit RGB",
            *(["replace each value by 255 - value"] if self.invert else []),
            f"stretch to height {self.height}, width {self.width}: bilinear, antialiased, rounded to 8 bits "
            "(Pillow's Image.resize with Resampling.BILINEAR)",
            "divide by 255 as float32",
            f"subtract {list(self.mean)}, divide by {list(self.deviation)}, channel by channel",
            f"arrange as (batch, {self.channels}, {self.height}, {self.width})",
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for files."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """The inverse of ``to_dict``.

        Raises:
            InvalidConfigError: an unknown key or a value out of range.
        """
        return from_plain(cls, values)


def picture_from_array(pixels: NDArray[Any]) -> Image.Image:
    """Wrap raw pixels as a picture.

    Args:
        pixels: ``(H, W)`` or ``(H, W, channels)`` with 1, 3 or 4 channels; uint8, or floats in [0, 1].

    Raises:
        InvalidImageError: another shape, type or range, NaN, or more than 4096 pixels a side.
    """
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
        raise InvalidImageError(
            f"an image has shape (height, width) or (height, width, 1, 3 or 4), got {tuple(pixels.shape)}"
        )
    height, width = pixels.shape[:2]
    if not (1 <= height <= MAX_SIDE_PIXELS and 1 <= width <= MAX_SIDE_PIXELS):
        raise InvalidImageError(f"an image has 1..{MAX_SIDE_PIXELS} pixels a side, got {height} x {width}")
    if pixels.dtype.kind == "f":
        if not np.isfinite(pixels).all():
            raise InvalidImageError("the image holds NaN or infinity; float pixels must be in [0, 1]")
        if pixels.min() < 0 or pixels.max() > 1:
            raise InvalidImageError(
                f"float pixels must be in [0, 1], got {pixels.min():g} to {pixels.max():g}; divide by 255 or send uint8"
            )
        pixels = np.rint(pixels * 255).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        raise InvalidImageError(f"pixels must be uint8, or floats in [0, 1], got {pixels.dtype}")
    return Image.fromarray(np.ascontiguousarray(pixels))


def prepare(picture: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Bring a picture to the model's channels, size and polarity.

    Returns:
        uint8 ``(channels, height, width)``.

    Raises:
        InvalidImageError: more than 4096 pixels a side, or pixels that cannot be decoded.
    """
    width, height = picture.size
    if width > MAX_SIDE_PIXELS or height > MAX_SIDE_PIXELS:
        raise InvalidImageError(
            f"an image has at most {MAX_SIDE_PIXELS} pixels a side, got {height} x {width}; make it smaller"
        )
    try:
        picture = _plain(picture, mode="L" if preprocessing.channels == 1 else "RGB")
    except (OSError, SyntaxError, ValueError, TypeError, EOFError, struct.error) as error:  # Pillow's, EXIF included
        raise InvalidImageError(f"the image cannot be decoded: {error}") from error
    if preprocessing.invert:
        picture = ImageOps.invert(picture)
    size = (preprocessing.width, preprocessing.height)
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    values = np.frombuffer(picture.tobytes(), dtype=np.uint8).reshape(*picture.size[::-1], -1)
    pixels = np.empty((preprocessing.channels, *values.shape[:2]), dtype=np.uint8)
    pixels[...] = values.transpose(2, 0, 1)
    return pixels


def _plain(picture: Image.Image, *, mode: str) -> Image.Image:
    """Upright, eight opaque bits a channel; the picture itself if it is so already."""
    picture.load()  # what a PNG holds behind its pixels is known only then
    if picture.getexif().get(ExifTags.Base.Orientation, _UPRIGHT) != _UPRIGHT:  # or it would be copied for nothing
        picture = ImageOps.exif_transpose(picture)
    if picture.mode == mode and "transparency" not in picture.info:
        return picture
    return _flat(picture).convert(mode)


def _flat(picture: Image.Image) -> Image.Image:
    """Eight opaque bits a channel: transparency onto white, 16-bit grey scaled down."""
    if picture.mode.startswith("I") or picture.mode == "F":
        wide = np.asarray(picture, dtype=np.float64)
        # PNG stores 16-bit grey as mode "I" or "I;16"; plain conversion would clip at 255.
        return Image.fromarray(np.clip(wide / 257.0, 0, 255).round().astype(np.uint8))
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture


def scale(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Turn prepared pixels into network input.

    Args:
        images: uint8 ``(batch, channels, height, width)``, as ``prepare`` makes them.

    Returns:
        float32 of the same shape: ``(value / 255 - mean) / deviation``.
    """
    mean = torch.tensor(preprocessing.mean, device=images.device).view(1, -1, 1, 1)
    deviation = torch.tensor(preprocessing.deviation, device=images.device).view(1, -1, 1, 1)
    return (images.to(torch.float32) / 255.0 - mean) / deviation
