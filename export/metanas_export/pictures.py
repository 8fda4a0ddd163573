"""The pictures of ``--verify``: a folder for each class, as many as one check needs.

    Pictures        pixels as the network takes them and as they were, with their classes
    read_pictures   folder, task  ->  Pictures
    as_picture      prepared pixels  ->  a picture that is prepared to just these

A folder or a file that cannot be used is an error: a check that leaves pictures out silently says
less than it seems to.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from metanas.errors import InvalidImageError
from metanas.model import TaskModel
from metanas.preprocessing import Preprocessing, prepare
from metanas_export.errors import PictureError

MAX_PICTURES = 200
_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures with the classes that they should get."""

    images: Tensor
    """uint8 ``(pictures, channels, height, width)``, as ``preprocessing.prepare`` makes them."""
    labels: Tensor
    """int64 ``(pictures,)``, numbers in the task's class names."""
    originals: tuple[NDArray[np.uint8], ...]
    """Upright RGB ``(height, width, 3)``, each of its own size."""


def read_pictures(folder: Path, task: TaskModel) -> Pictures:
    """Read up to ``MAX_PICTURES``, evenly from the classes.

    Args:
        folder: holds a folder of pictures for each class, or some, called as the class.

    Raises:
        PictureError: there is no picture, one cannot be decoded, or a folder is of no class of the task.
        OSError: a folder or file cannot be read.
    """
    folders = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    strange = [entry.name for entry in folders if entry.name not in task.class_names]
    if strange:
        raise PictureError(
            f"{folder}: {strange[0]!r} is no class of the task, whose classes are "
            f"{', '.join(map(repr, task.class_names))}; name each folder after its class"
        )
    found = [
        (path, task.class_names.index(entry.name)) for entry in folders for path in _chosen(entry, classes=len(folders))
    ]
    if not found:
        raise PictureError(f"{folder} has no picture in a folder of a class; expected {folder}/CLASS/picture.png")
    pairs = [_read(path, task.preprocessing) for path, _ in found]
    return Pictures(
        images=torch.from_numpy(np.stack([prepared for prepared, _ in pairs])),
        labels=torch.tensor([label for _, label in found]),
        originals=tuple(original for _, original in pairs),
    )


def as_picture(pixels: Tensor, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Prepared pixels, uint8 ``(channels, height, width)``, as an RGB picture ``(height, width, 3)``."""
    picture: NDArray[np.uint8] = pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    return 255 - picture if preprocessing.invert else picture


def _chosen(folder: Path, *, classes: int) -> list[Path]:
    """Pictures of a class, spread over the names in order."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _ENDINGS)
    count = min(len(paths), max(1, MAX_PICTURES // classes))
    return [paths[index * len(paths) // count] for index in range(count)]


def _read(path: Path, preprocessing: Preprocessing) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    try:
        with Image.open(path) as picture:
            prepared = prepare(picture, preprocessing)
            upright = picture.getexif().get(0x0112, 1) >= 5
            width, height = picture.size[::-1] if upright else picture.size
            as_it_was = Preprocessing(3, height, width, mean=(0.0,) * 3, deviation=(1.0,) * 3)
            return prepared, np.ascontiguousarray(prepare(picture, as_it_was).transpose(1, 2, 0))
    except (InvalidImageError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise PictureError(f"{path} cannot be used: {error}; replace or remove it") from error
