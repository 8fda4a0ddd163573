"""A tensor of the Open Inference Protocol to its elements, and back: raw bytes or typed contents.

    elements    an input tensor, with the raw bytes beside it if there are any  ->  bytes of each image
    raw_bytes   strings or files  ->  the raw form of a BYTES tensor

Shapes were checked before: what is checked here is that as many elements came as the shape says.
"""

import math
import struct
from collections.abc import Iterable, Sequence

import numpy as np

from metanas_proto.inference import open_inference_pb2 as oip
from metanas_serving.errors import InvalidRequestError

_LENGTH = struct.Struct("<I")


def elements(tensor: oip.ModelInferRequest.InferInputTensor, raw: bytes | None) -> list[bytes]:
    """Split a batch into its images.

    Args:
        tensor: of datatype UINT8, FP32 or BYTES and of shape ``(images, ...)``; one element an image if BYTES.
        raw: its entry of ``raw_input_contents``; None: its ``contents`` are used.

    Returns:
        One entry an image: the file's bytes if BYTES, else its pixels, row-major and little-endian.

    Raises:
        InvalidRequestError: bytes or elements are missing or left over, or a UINT8 is above 255.
    """
    if tensor.datatype == "BYTES":
        return _files(tensor, raw)
    pixels = _typed_pixels(tensor) if raw is None else raw
    per_image = math.prod(tensor.shape[1:]) * (1 if tensor.datatype == "UINT8" else 4)
    expected = tensor.shape[0] * per_image
    if len(pixels) != expected:
        raise InvalidRequestError(
            f"input {tensor.name!r} of shape {_shown(tensor.shape)} and datatype {tensor.datatype} needs {expected} "
            f"bytes, got {len(pixels)}; make shape, datatype and contents agree"
        )
    return [pixels[first : first + per_image] for first in range(0, expected, per_image)]


def raw_bytes(values: Iterable[bytes]) -> bytes:
    """Put each value's length in front of it, 4 bytes, little-endian."""
    return b"".join(_LENGTH.pack(len(value)) + value for value in values)


def _typed_pixels(tensor: oip.ModelInferRequest.InferInputTensor) -> bytes:
    expected = math.prod(tensor.shape)
    field = "uint_contents" if tensor.datatype == "UINT8" else "fp32_contents"
    values = getattr(tensor.contents, field)
    if len(values) != expected:
        raise InvalidRequestError(
            f"input {tensor.name!r} of shape {_shown(tensor.shape)} needs {expected} values in contents.{field}, got "
            f"{len(values)}; put them there, or their bytes into raw_input_contents"
        )
    if tensor.datatype == "FP32":
        return np.array(values, dtype="<f4").tobytes()
    numbers = np.array(values, dtype=np.uint32)
    if numbers.max() > 255:
        raise InvalidRequestError(
            f"input {tensor.name!r} is UINT8 but holds {numbers.max()} in contents.uint_contents; send 0..255"
        )
    return numbers.astype(np.uint8).tobytes()


def _files(tensor: oip.ModelInferRequest.InferInputTensor, raw: bytes | None) -> list[bytes]:
    count = tensor.shape[0]
    if raw is not None:
        return _split(raw, count, name=tensor.name)
    files = list(tensor.contents.bytes_contents)
    if len(files) != count:
        raise InvalidRequestError(
            f"input {tensor.name!r} of shape {_shown(tensor.shape)} needs {count} values in contents.bytes_contents, "
            f"got {len(files)}; put one file an image there"
        )
    return files


def _split(raw: bytes, count: int, *, name: str) -> list[bytes]:
    values, place = [], 0
    for index in range(count):
        begin = place + _LENGTH.size
        end = begin + _LENGTH.unpack_from(raw, place)[0] if begin <= len(raw) else begin
        if end > len(raw):
            raise InvalidRequestError(
                f"input {name!r}: element {index} of {count} ends at byte {end}, but raw_input_contents hold "
                f"{len(raw)}; send each element as its length (4 bytes, little-endian) and then its bytes"
            )
        values.append(raw[begin:end])
        place = end
    if place != len(raw):
        raise InvalidRequestError(
            f"input {name!r}: {len(raw) - place} bytes are left behind the {count} elements that the shape says; "
            "make shape and contents agree"
        )
    return values


def _shown(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"
