"""Images as the contract has them.

    encode_image    what a user holds for an image  ->  proto Image
    encode_images   a list of these, or an array of
                    shape (N, H, W, C)              ->  proto Images

What users may hold, and what is refused, is in ``content``.
"""

from collections.abc import Iterable

import numpy as np

from metanas_client.content import Content, ImageLike, content, contents
from metanas_proto.v1 import few_shot_pb2 as pb


def encode_images(images: Iterable[ImageLike], *, where: str) -> list[pb.Image]:
    """Encode a list of images, or an array of shape ``(N, H, W, C)``.

    Args:
        images: any iterable of images.
        where: what they are, for messages, for example ``class 'cat'``.

    Raises:
        UnsupportedImageError: one bare image, an ambiguous array, or something that is no image.
        InvalidRequestError: pixel values out of range.
        OSError: a file that cannot be read.
    """
    return [_message(one) for one in contents(images, where=where)]


def encode_image(image: ImageLike, *, where: str) -> pb.Image:
    """Encode one image.

    Raises:
        UnsupportedImageError: no image, or one of a shape, type or mode that has no honest encoding.
        InvalidRequestError: pixel values out of range.
        OSError: a file that cannot be read.
    """
    return _message(content(image, where=where))


def _message(given: Content) -> pb.Image:
    if isinstance(given, bytes):
        return pb.Image(encoded=given)
    if given.dtype == np.uint8:
        data_type, data = pb.Tensor.DATA_TYPE_UINT8, given.tobytes()
    else:
        data_type, data = pb.Tensor.DATA_TYPE_FLOAT32, given.astype("<f4").tobytes()
    return pb.Image(tensor=pb.Tensor(data_type=data_type, shape=given.shape, data=data))
