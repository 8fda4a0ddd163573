"""miniImageNet: 100 classes of ImageNet, 600 colour images of 84 x 84 pixels each, split 64 : 16 : 20.

Read from ``miniimagenet_train_0.npz`` to ``_3``, ``miniimagenet_val.npz`` and
``miniimagenet_test.npz``: JPEG files end to end in ``blob``, with ``offsets``, ``labels`` and
``wnids`` (WordNet ids). Classes have English names where ``splits/miniimagenet_ravi.json`` gives
them, else their WordNet id.

All images of a split are decoded into memory: 38,400 training images are 0.8 GB of pixels.

Source: Vinyals et al., NIPS 2016; split: Ravi and Larochelle, ICLR 2017.
"""

import io
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from metanas.errors import InvalidImageError
from metanas.preprocessing import Preprocessing, prepare
from metanas_training.datasets.image_classes import ImageClasses
from metanas_training.datasets.splits import check_split, find_split_file, read_split_file, split_rows
from metanas_training.errors import DatasetError

SIDE = 84

MEAN = (0.471, 0.450, 0.405)
DEVIATION = (0.272, 0.265, 0.278)
"""Both of the pixels of all training images, channel by channel."""

ARCHIVES = {
    "train": tuple(f"miniimagenet_train_{number}.npz" for number in range(4)),
    "val": ("miniimagenet_val.npz",),
    "test": ("miniimagenet_test.npz",),
}
SPLIT_FILE = "miniimagenet_ravi.json"

MAX_DECODERS = 4
"""Threads; Pillow decodes outside of Python's lock, but a third of the time for an image is spent inside."""


def miniimagenet_preprocessing(image_size: int = SIDE) -> Preprocessing:
    """RGB, less the mean and divided by the deviation of each channel over the training images.

    Args:
        image_size: pixels a side; other than 84 the images are resized.
    """
    return Preprocessing(channels=3, height=image_size, width=image_size, mean=MEAN, deviation=DEVIATION)


def load_miniimagenet(
    root: Path,
    split: str,
    *,
    preprocessing: Preprocessing | None = None,
    limit_per_class: int | None = None,
) -> ImageClasses:
    """Read one split.

    Args:
        root: the folder that holds ``miniimagenet/`` and, if at hand, ``splits/``; or ``miniimagenet/`` itself.
        split: "train", "val" or "test".
        preprocessing: what is done to the original pictures; None: ``miniimagenet_preprocessing()``.
        limit_per_class: read the first so many images of each class only; None: all.

    Raises:
        DatasetError: files are not there, or contradict themselves or the list of the split.
    """
    check_split(split)
    preprocessing = preprocessing or miniimagenet_preprocessing()
    folder = root / "miniimagenet" if (root / "miniimagenet").is_dir() else root
    archives = [folder / name for name in ARCHIVES[split]]
    missing = [archive.name for archive in archives if not archive.is_file()]
    if missing:
        raise DatasetError(
            f"miniImageNet is not there: no {', '.join(missing)} in {folder}; put the files into that folder, or set "
            "METANAS_DATA or --data-root to the folder that holds miniimagenet/"
        )
    wnids: list[str] = []
    images: list[Tensor] = []
    with ThreadPoolExecutor(min(MAX_DECODERS, os.cpu_count() or 1)) as pool:
        for archive in archives:
            part = _read(archive)
            rows = [np.flatnonzero(part.labels == label)[:limit_per_class] for label in range(len(part.wnids))]
            wnids += part.wnids
            images += pool.map(lambda chosen, part=part: _decode(part, chosen, preprocessing), rows)
    return ImageClasses(
        name=f"miniimagenet/{split}",
        class_names=_names(wnids, split, find_split_file(root, SPLIT_FILE)),
        images=tuple(images),
        preprocessing=preprocessing,
    )


@dataclass(frozen=True)
class _Part:
    """The content of one file."""

    archive: Path
    blob: NDArray[np.uint8]
    """JPEG files end to end."""
    offsets: NDArray[np.int64]
    """Where each begins; and the end of the last."""
    labels: NDArray[np.integer]
    wnids: list[str]
    """The WordNet id of each label."""


def _read(archive: Path) -> _Part:
    try:
        with np.load(archive, allow_pickle=False) as arrays:
            blob, offsets, labels, wnids = (arrays[name] for name in ("blob", "offsets", "labels", "wnids"))
    except (KeyError, ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise DatasetError(f"{archive} cannot be read: {error}; copy it again") from error
    if blob.dtype != np.uint8 or any(
        array.dtype.kind not in "iu" or array.ndim != 1 or not len(array) for array in (blob, offsets, labels)
    ):
        raise DatasetError(
            f"{archive} holds blob {blob.dtype}{blob.shape}, offsets {offsets.dtype}{offsets.shape} and labels "
            f"{labels.dtype}{labels.shape}, not rows of uint8 and of integers; copy it again"
        )
    if len(offsets) != len(labels) + 1:
        raise DatasetError(
            f"{archive} contradicts itself: {len(labels)} labels need {len(labels) + 1} offsets, not {len(offsets)}"
        )
    if offsets[0] != 0 or (np.diff(offsets) <= 0).any() or offsets[-1] != len(blob):
        raise DatasetError(
            f"{archive} contradicts itself: its offsets run from {offsets[0]} to {offsets[-1]} and must rise from 0 "
            f"to {len(blob)}, the bytes of the blob; copy it again"
        )
    if labels.min() < 0 or labels.max() >= len(wnids):
        raise DatasetError(
            f"{archive} contradicts itself: labels {labels.min()}..{labels.max()} for {len(wnids)} classes"
        )
    return _Part(archive, blob, offsets, labels, [str(wnid) for wnid in wnids])


def _decode(part: _Part, rows: Sequence[int] | NDArray[np.intp], preprocessing: Preprocessing) -> Tensor:
    """The images of one class: uint8 ``(rows, channels, height, width)``."""
    shape = (preprocessing.channels, preprocessing.height, preprocessing.width)
    images = np.empty((len(rows), *shape), dtype=np.uint8)
    for image, row in zip(images, rows, strict=True):
        file = io.BytesIO(part.blob[part.offsets[row] : part.offsets[row + 1]].tobytes())
        try:
            # One format to try instead of all. No Image.draft for small sizes: it saves a fifth of
            # the time, but then the pixels are not those that the server makes of the same file.
            with Image.open(file, formats=("JPEG",)) as picture:
                image[...] = _pixels(picture, preprocessing)
        except (OSError, SyntaxError, ValueError, InvalidImageError, Image.DecompressionBombError) as error:
            raise DatasetError(f"image {row} of {part.archive} cannot be decoded: {error}; copy it again") from error
    return torch.from_numpy(images)


def _pixels(picture: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """What ``prepare`` gives; straight from the decoder where it would change nothing."""
    if (
        picture.mode == "RGB"
        and preprocessing.channels == 3
        and picture.size == (preprocessing.width, preprocessing.height)
        and not preprocessing.invert
        and "exif" not in picture.info
    ):
        return np.asarray(picture).transpose(2, 0, 1)
    return prepare(picture, preprocessing)


def _names(wnids: Sequence[str], split: str, file: Path | None) -> tuple[str, ...]:
    """A name of its own for each class."""
    twice = [wnid for wnid, count in Counter(wnids).items() if count > 1]
    if twice:
        raise DatasetError(f"miniImageNet's {split} files have the class {twice[0]} twice; copy the files again")
    if file is None:
        return tuple(wnids)
    strangers = sorted(set(wnids) ^ set(split_rows(file, split)))
    if strangers:
        raise DatasetError(
            f"miniImageNet's {split} files and {file} do not name the same classes: {strangers[0]} is in one of them "
            "only; copy both again"
        )
    english = read_split_file(file).get("names", {})
    names = [str(english.get(wnid, wnid)) for wnid in wnids]
    uses = Counter(names)
    return tuple(name if uses[name] == 1 else f"{name} ({wnid})" for name, wnid in zip(names, wnids, strict=True))
