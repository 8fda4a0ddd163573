"""What users hold as one of two plain things: the bytes of a file, or raw pixels.

    str, Path                         the file's bytes, as they are
    bytes, bytearray                  an encoded PNG or JPEG, as it is
    PIL image                         encoded as PNG, its EXIF orientation kept
    array (H, W) or (H, W, C)         raw pixels: uint8 in 0..255, or float32 / float64 in 0..1

    contents   a list of these, or an array of shape (N, H, W, C)  ->  bytes or pixels of each
    content    one of these                                        ->  bytes or pixels

Both ways to an answer begin here: to the server (``images``) and on the device (``local``). Pure
but for reading the files named. What is refused here is what has no honest encoding; it does not
know the limits on size and number, nor what a model expects.
"""

import io
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image as PILImage

from metanas_client.errors import InvalidRequestError, UnsupportedImageError

Array: TypeAlias = npt.NDArray[Any]
ImageLike: TypeAlias = Array | PILImage.Image | str | os.PathLike[str] | bytes | bytearray
Content: TypeAlias = bytes | Array
"""The bytes of a file; or pixels, uint8 or float32, ``(H, W)`` or ``(H, W, 1, 3 or 4)``."""

_ONE_IMAGE = (str, bytes, bytearray, PILImage.Image, os.PathLike)
_CHANNELS = (1, 3, 4)
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
_COLOUR_MODES = ("CMYK", "HSV", "LAB", "RGBX", "YCbCr")  # colours of 8 bits that PNG cannot hold
_EXIF_ORIENTATION = 0x0112


def contents(images: Iterable[ImageLike], *, where: str) -> Iterator[Content]:
    """The contents of a list of images, or of an array of shape ``(N, H, W, C)``, one at a time.

    Args:
        images: any iterable of images. Whether it is one is checked at once.
        where: what they are, for messages, for example ``class 'cat'``.

    Raises:
        UnsupportedImageError: one bare image, an ambiguous array, or something that is no image.
        InvalidRequestError: pixel values out of range.
        OSError: a file that cannot be read.
    """
    if isinstance(images, np.ndarray):
        if images.ndim == 3:
            raise UnsupportedImageError(
                f"{where}: an array of shape {images.shape} may be {images.shape[0]} grey images or one image; "
                "pass list(array) for several images, [array] for one"
            )
        if images.ndim != 4:
            raise UnsupportedImageError(f"{where}: one array of shape {images.shape}; pass a list of images")
    elif isinstance(images, _ONE_IMAGE):
        raise UnsupportedImageError(f"{where}: one bare {_kind(images)}; pass a list of images, also for a single one")
    elif not isinstance(images, list) and (isinstance(images, Mapping) or not isinstance(images, Iterable)):
        raise UnsupportedImageError(f"{where}: {_kind(images)} is not a list of images; pass a list of images")
    return (content(image, where=f"{where}, image {index}") for index, image in enumerate(images))


def content(image: ImageLike, *, where: str) -> Content:
    """The content of one image.

    Raises:
        UnsupportedImageError: no image, or one of a shape, type or mode that has no honest encoding.
        InvalidRequestError: pixel values out of range.
        OSError: a file that cannot be read.
    """
    if isinstance(image, np.ndarray):
        return _pixels(image, where=where)
    if isinstance(image, bytes | bytearray):
        return bytes(image)
    if isinstance(image, PILImage.Image):
        return _png(image, where=where)
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    raise UnsupportedImageError(
        f"{where}: {_kind(image)} is not an image; pass a path, PNG or JPEG bytes, a PIL image, or a numpy array "
        "(np.asarray may convert it)"
    )


def _png(image: PILImage.Image, *, where: str) -> bytes:
    if image.mode in _COLOUR_MODES:
        converted = image.convert("RGB")
    elif image.mode in _PNG_MODES:
        converted = image
    else:
        raise UnsupportedImageError(
            f"{where}: PIL mode {image.mode!r} has no fixed range of values; "
            "scale it to 0..255 and convert it to 'L' or 'RGB'"
        )
    # The orientation travels so that a photo means the same as its path does; the rest of the
    # EXIF data (place, owner, thumbnail) is nobody's business.
    exif = PILImage.Exif()
    if (orientation := image.getexif().get(_EXIF_ORIENTATION)) is not None:
        exif[_EXIF_ORIENTATION] = orientation
    file = io.BytesIO()
    converted.save(file, format="PNG", compress_level=1, exif=exif)
    return file.getvalue()


def _pixels(array: Array, *, where: str) -> Array:
    _refuse_shape(array.shape, where=where)
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f" or array.dtype.itemsize not in (4, 8):
        raise UnsupportedImageError(
            f"{where}: an array of {array.dtype}; convert it to uint8 (0 black to 255 white) "
            "or to float32 (0.0 black to 1.0 white)"
        )
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # written so that NaN is refused too
        raise InvalidRequestError(
            f"{where}: float pixels from {low:g} to {high:g}; they must be in 0..1: divide by 255, or pass uint8"
        )
    return array.astype(np.float32)


def _refuse_shape(shape: tuple[int, ...], *, where: str) -> None:
    if len(shape) not in (2, 3):
        raise UnsupportedImageError(f"{where}: an array of shape {shape}; pass (height, width) or (height, width, C)")
    if 0 in shape:
        raise UnsupportedImageError(f"{where}: an array of shape {shape} has no pixels; pass at least one pixel")
    if len(shape) == 3 and shape[2] not in _CHANNELS:
        hint = "channels come last: np.moveaxis(image, 0, -1)" if shape[0] in _CHANNELS else "pass 1, 3 or 4 channels"
        raise UnsupportedImageError(f"{where}: an array of shape {shape} has {shape[2]} channels; {hint}")


def _kind(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__name__}".removeprefix("builtins.")
