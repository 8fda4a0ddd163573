"""The contract's images to prepared pixels: nothing that a caller sends is trusted.

    read_image   proto Image  ->  uint8 pixels as the meta-model takes them
    Pixels       how many the pictures of one request may have, all together

The size of a file is read from its header and checked before anything is decoded. Files are read
by Pillow's PNG and JPEG classes themselves: by that no other of its readers can be reached, and
its warning and error for decompression bombs, which are state of the whole process and name no
remedy, do not come into play. Small JPEG files, of which a camera sends one a call, are read by
simplejpeg, which has the same library decode them and less around it; what it does not read,
Pillow does, or says why not.
"""

import io
import math
import os
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from metanas.errors import InvalidImageError
from metanas.preprocessing import MAX_SIDE_PIXELS, Preprocessing, picture_from_array, prepare
from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_serving.errors import InvalidRequestError
from metanas_serving.processors import untied

# A picture of 4096 x 4096 takes some 200 MB while it is decoded: as many at once as there are cores.
_DECODING = threading.BoundedSemaphore(os.cpu_count() or 1)

# A JPEG of no more than both does not wait for others: unlike a PNG, in which texts and profiles are packed too, it
# takes little memory, and less time than to go to another processor.
_SMALL_BYTES = 32 * 1024
_SMALL_PIXELS = 128 * 128

_PNG_START = b"\x89PNG\r\n\x1a\n"
_JPEG_START = b"\xff\xd8\xff"
_JPEG_SCAN = b"\xff\xda"
# Of the segment in which a file says which side is up.
_JPEG_EXIF = b"\xff\xe1"
# Each goes over the whole picture, however few its bytes: 200 scans in 60 KB took 2.6 s. Encoders write about ten.
_MAX_JPEG_SCANS = 32

_DTYPES: Mapping[int, np.dtype[Any]] = {
    pb.Tensor.DATA_TYPE_UINT8: np.dtype("u1"),
    pb.Tensor.DATA_TYPE_FLOAT32: np.dtype("<f4"),
}


MAX_REQUEST_PIXELS = 2**31
"""Of all pictures of a request: some 170 photographs of 12 megapixels. To decode so many takes a core some 20 s."""


class Pixels:
    """Counts the pixels of one request before they are decoded: small files may hold large pictures."""

    def __init__(self, most: int = MAX_REQUEST_PIXELS) -> None:
        self._most = most
        self._count = 0

    def take(self, width: int, height: int) -> None:
        """Count a picture in.

        Raises:
            InvalidImageError: it is one too many.
        """
        self._count += width * height
        if self._count > self._most:
            raise InvalidImageError(
                f"with it the images of this request have {self._count} pixels, at most {self._most} are decoded for "
                "one; make them smaller or send fewer at a time"
            )


def read_image(
    image: pb.Image, preprocessing: Preprocessing, *, where: str, pixels: Pixels | None = None
) -> NDArray[np.uint8]:
    """Decode one image and prepare it.

    Args:
        pixels: counts those of its request; None: it is the only image.
        where: what messages call the image, for example ``image 3 of class "cat"``.

    Returns:
        uint8 ``(channels, height, width)``.

    Raises:
        InvalidRequestError: it is no image, cannot be decoded, or is too large.
    """
    try:
        match image.WhichOneof("content"):
            case "encoded":
                return _prepared_file(image.encoded, preprocessing, pixels=pixels or Pixels())
            case "tensor":
                array = _array(image.tensor)
                if _fits(array, preprocessing):
                    return _as_it_is(array, preprocessing)
                with _DECODING, untied():
                    return prepare(picture_from_array(array), preprocessing)
            case _:
                raise InvalidImageError("it holds neither a file nor a tensor; set encoded or tensor")
    except InvalidImageError as error:
        raise InvalidRequestError(f"{where}: {error}") from error


def _prepared_file(data: bytes, preprocessing: Preprocessing, *, pixels: Pixels) -> NDArray[np.uint8]:
    try:
        if len(data) <= _SMALL_BYTES and data.startswith(_JPEG_START):
            _check_scans(data)
            array = _small_colour(data) if preprocessing.channels == 3 else None
            if array is not None:
                pixels.take(array.shape[1], array.shape[0])
                if _fits(array, preprocessing):
                    return _as_it_is(array, preprocessing)
                return prepare(picture_from_array(array), preprocessing)
            with _open(data) as picture:
                if picture.width * picture.height <= _SMALL_PIXELS:
                    return _prepared(picture, preprocessing, pixels=pixels)
        with _DECODING, untied(), _open(data) as picture:
            return _prepared(picture, preprocessing, pixels=pixels)
    except InvalidImageError:
        raise
    except Exception as error:  # on hostile bytes the decoders raise whatever their parsers raise
        raise InvalidImageError(
            f"its {len(data)} bytes cannot be decoded ({error}); send a complete PNG or JPEG file"
        ) from error


def _small_colour(data: bytes) -> NDArray[np.uint8] | None:
    """The pixels ``(height, width, 3)`` of a small, upright JPEG file in colour; None: leave it to Pillow."""
    if _JPEG_EXIF in data:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if height * width > _SMALL_PIXELS or max(height, width) > MAX_SIDE_PIXELS or colours != "YCbCr":
            return None
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data)
    except Exception:  # ValueError, KeyError; Pillow's message is the one that callers get
        return None
    return pixels


def _prepared(picture: PILImage.Image, preprocessing: Preprocessing, *, pixels: Pixels) -> NDArray[np.uint8]:
    width, height = picture.size
    if width > MAX_SIDE_PIXELS or height > MAX_SIDE_PIXELS:
        raise InvalidImageError(
            f"an image has at most {MAX_SIDE_PIXELS} pixels a side, got {height} x {width} (height x width); "
            "make it smaller"
        )
    pixels.take(width, height)
    picture.load()  # here, so that the error of what cannot be decoded says what to send
    return prepare(picture, preprocessing)


def _open(data: bytes) -> PILImage.Image:
    """Read the header; decode nothing."""
    if data.startswith(_PNG_START):
        return PngImageFile(io.BytesIO(data))
    if data.startswith(_JPEG_START):
        _check_scans(data)
        return JpegImageFile(io.BytesIO(data))
    if not data:
        raise InvalidImageError("the file is empty (0 bytes); send a complete PNG or JPEG file")
    raise InvalidImageError(
        f"its {len(data)} bytes are neither a PNG nor a JPEG file (they start with {data[:8].hex(' ')}); "
        "convert it to one of them"
    )


def _check_scans(data: bytes) -> None:
    if (scans := data.count(_JPEG_SCAN)) > _MAX_JPEG_SCANS:
        raise InvalidImageError(
            f"its JPEG file has {scans} scans, at most {_MAX_JPEG_SCANS} are decoded; save it without so many"
        )


def _fits(pixels: NDArray[Any], preprocessing: Preprocessing) -> bool:
    """Whether nothing is left to do but to invert."""
    size = (preprocessing.height, preprocessing.width)
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    return pixels.dtype == np.uint8 and pixels.shape[:2] == size and channels == preprocessing.channels


def _as_it_is(pixels: NDArray[Any], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """What ``prepare`` makes of such pixels, without the detour over a picture."""
    planes = pixels.reshape(*pixels.shape[:2], preprocessing.channels).transpose(2, 0, 1)
    return np.invert(planes) if preprocessing.invert else planes


def _array(tensor: pb.Tensor) -> NDArray[Any]:
    shape = tuple(tensor.shape)
    dtype = _DTYPES.get(tensor.data_type)
    if dtype is None:
        raise InvalidImageError(
            f"the tensor's data_type is {tensor.data_type}; set DATA_TYPE_UINT8 (1) or DATA_TYPE_FLOAT32 (2)"
        )
    if len(shape) not in (2, 3):
        raise InvalidImageError(
            f"the tensor's shape {shape} has {len(shape)} sizes; send (height, width) or (height, width, channels)"
        )
    expected = math.prod(shape) * dtype.itemsize
    if expected != len(tensor.data):
        raise InvalidImageError(
            f"a tensor of shape {shape} and {dtype.itemsize} bytes a value needs {expected} bytes, "
            f"got {len(tensor.data)}; make shape, data_type and data agree"
        )
    return np.frombuffer(tensor.data, dtype=dtype).reshape(shape)
