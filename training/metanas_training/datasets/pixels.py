"""Arrays of pictures to prepared images: the bytes that ``prepare`` makes of each, quickly where nothing changes.

prepare_arrays    uint8 pictures of one size  ->  uint8 images of the model's size
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metanas.preprocessing import Preprocessing, picture_from_array, prepare


def prepare_arrays(
    pictures: NDArray[np.uint8], preprocessing: Preprocessing, *, stored_inverted: bool = False
) -> Tensor:
    """Bring pictures to the model's channels, size and polarity.

    Args:
        pictures: ``(n, H, W)`` or ``(n, H, W, 3)``.
        preprocessing: what is done to the original pictures.
        stored_inverted: the arrays hold 255 - value of the originals, as torchmeta's Omniglot does.

    Returns:
        uint8 ``(n, channels, height, width)``, what ``prepare`` makes of each original.
    """
    if stored_inverted:
        # Twice inverted is not inverted at all: both come before any other change of a value.
        preprocessing = replace(preprocessing, invert=not preprocessing.invert)
    channels = 1 if pictures.ndim == 3 else pictures.shape[3]
    shape = (preprocessing.channels, preprocessing.height, preprocessing.width)
    if (channels, *pictures.shape[1:3]) == shape:
        if pictures.ndim == 3:
            pictures = pictures[..., None]
        planes = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
        # Subtraction makes a new array: what the caller holds stays as it was.
        return torch.from_numpy(255 - planes if preprocessing.invert else planes.copy())
    images = torch.empty((len(pictures), *shape), dtype=torch.uint8)
    for image, picture in zip(images, pictures, strict=True):
        image.copy_(torch.from_numpy(prepare(picture_from_array(picture), preprocessing)))
    return images
