"""CIFAR-10: 60,000 colour images of 32 x 32 pixels in 10 classes.

Read from ``cifar10_train.npz`` and ``cifar10_test.npz`` (JPEG files end to end in ``blob``, with
``offsets``, ``labels`` and ``classes``) or from the official *binary* version (``data_batch_1.bin``
to ``data_batch_5.bin`` and ``test_batch.bin``, lossless). The official Python version is a pickle,
which would run code when it is opened, and is not read. Which one it was is in the name of
the data set.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from metanas.errors import InvalidImageError
from metanas.preprocessing import Preprocessing, picture_from_array, prepare
from metanas_training.datasets.image_classes import ImageClasses
from metanas_training.errors import DatasetError

MEAN = (0.4914, 0.4822, 0.4465)
DEVIATION = (0.2470, 0.2435, 0.2616)

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

SIDE = 32
RECORD_BYTES = 1 + 3 * SIDE * SIDE

BINARY_FILES = {"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)}

Labelled = Iterator[tuple[int, Image.Image]]
"""Label and picture."""


def cifar10_preprocessing(image_size: int = SIDE) -> Preprocessing:
    """RGB, less the mean and divided by the deviation of each channel over the training images.

    Args:
        image_size: pixels a side; other than 32 the images are resized.
    """
    return Preprocessing(channels=3, height=image_size, width=image_size, mean=MEAN, deviation=DEVIATION)


def load_cifar10(root: Path, split: str, *, preprocessing: Preprocessing, source: str = "auto") -> ImageClasses:
    """Read one split.

    Args:
        root: the folder that holds ``cifar10/``, or that folder itself.
        split: "train" or "test"; CIFAR-10 has no validation split of its own.
        preprocessing: what is done to the original pictures.
        source: "npz", "binary", or "auto" for whichever is there, the lossless binary one first.

    Raises:
        DatasetError: the files are not there, or hold something else.
    """
    if split not in BINARY_FILES:
        raise DatasetError(f"unknown split {split!r}; CIFAR-10 has train and test")
    folder = root / "cifar10" if (root / "cifar10").is_dir() else root
    if source == "binary" or (source == "auto" and _binary_folder(folder, split) is not None):
        name, pictures = "cifar10-binary", _read_binary(folder, split)
    else:
        name, pictures = "cifar10-npz", _read_npz(folder, split)
    by_class: list[list[torch.Tensor]] = [[] for _ in CLASS_NAMES]
    for label, picture in pictures:
        by_class[label].append(torch.from_numpy(prepare(picture, preprocessing)))
    empty = [CLASS_NAMES[label] for label, images in enumerate(by_class) if not images]
    if empty:
        raise DatasetError(f"{name}/{split} in {folder} has no image of {', '.join(empty)}; get the files again")
    return ImageClasses(
        name=f"{name}/{split}",
        class_names=CLASS_NAMES,
        images=tuple(torch.stack(images) for images in by_class),
        preprocessing=preprocessing,
    )


def _read_npz(folder: Path, split: str) -> Labelled:
    archive = folder / f"cifar10_{split}.npz"
    if not archive.is_file():
        raise DatasetError(
            f"CIFAR-10 is not there: neither {archive} nor {folder / BINARY_FILES[split][0]}; put the official "
            "binary version into that folder, or set METANAS_DATA or --data-root to where it is"
        )
    try:
        with np.load(archive, allow_pickle=False) as arrays:
            blob, offsets, labels = arrays["blob"], arrays["offsets"], arrays["labels"]
    except (KeyError, ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{archive} cannot be read: {error}; copy it again") from error
    if (
        any(array.dtype.kind not in "iu" or array.ndim != 1 for array in (offsets, labels))
        or blob.dtype != np.uint8
        or len(offsets) != len(labels) + 1
        or offsets[0] < 0
        or offsets[-1] > len(blob)
        or (np.diff(offsets) <= 0).any()
    ):
        raise DatasetError(f"{archive} contradicts itself: its offsets, labels and blob do not fit; copy it again")
    _check_labels(labels, archive)
    for index, label in enumerate(labels.tolist()):
        data = blob[offsets[index] : offsets[index + 1]].tobytes()
        try:
            with Image.open(io.BytesIO(data)) as picture:
                picture.load()
        except (OSError, SyntaxError, InvalidImageError) as error:
            raise DatasetError(f"image {index} of {archive} cannot be decoded: {error}; copy it again") from error
        yield label, picture


def _binary_folder(folder: Path, split: str) -> Path | None:
    """Where the first file of the split lies: in ``folder`` or in the folder that the official archive unpacks to."""
    for place in (folder, folder / "cifar-10-batches-bin"):
        if (place / BINARY_FILES[split][0]).is_file():
            return place
    return None


def _read_binary(folder: Path, split: str) -> Labelled:
    place = _binary_folder(folder, split) or folder
    files = [place / name for name in BINARY_FILES[split]]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise DatasetError(f"the binary CIFAR-10 in {place} is not whole: no {', '.join(missing)}; unpack it again")
    for file in files:
        size = file.stat().st_size
        if size == 0 or size % RECORD_BYTES:
            raise DatasetError(
                f"{file} has {size} bytes, which is no whole number of records of {RECORD_BYTES}; copy it again"
            )
        records = np.fromfile(file, dtype=np.uint8).reshape(-1, RECORD_BYTES)
        _check_labels(records[:, 0], file)
        for record in records:
            # Three planes of 32 x 32: all red values, all green, all blue.
            yield int(record[0]), picture_from_array(record[1:].reshape(3, SIDE, SIDE).transpose(1, 2, 0))


def _check_labels(labels: np.ndarray, file: Path) -> None:
    wrong = labels[(labels < 0) | (labels >= len(CLASS_NAMES))]
    if len(wrong):
        raise DatasetError(f"{file} has the label {wrong[0]}; CIFAR-10 has 0..{len(CLASS_NAMES) - 1}; is it CIFAR-100?")
