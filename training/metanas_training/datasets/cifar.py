"""Few-shot CIFAR-100: 100 classes, 600 colour images of 32 x 32 pixels each, as CIFAR-FS or as FC100.

    load_cifar_fs    64 : 16 : 20 classes, drawn from all superclasses
    load_fc100       60 : 20 : 20 classes, no superclass in two splits: harder

Read from the *binary* version of CIFAR-100 (``train.bin``, ``test.bin``, ``fine_label_names.txt``,
``coarse_label_names.txt``); its own division into training and test images plays no part here. The
Python version is a pickle, which would run code when it is opened, and is not read. The classes of
each split come from ``splits/cifar_fs.json`` or ``splits/fc100_superclasses.json``.

Sources: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; CIFAR-FS:
Bertinetto et al., ICLR 2019; FC100: Oreshkin et al., NeurIPS 2018.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metanas.preprocessing import Preprocessing
from metanas_training.datasets.image_classes import ImageClasses
from metanas_training.datasets.pixels import prepare_arrays
from metanas_training.datasets.splits import check_split, find_split_file, split_rows
from metanas_training.errors import DatasetError

SIDE = 32
RECORD_BYTES = 2 + 3 * SIDE * SIDE
"""Superclass, class, and three planes of pixels: red, green, blue."""

MEAN = (0.5071, 0.4865, 0.4409)
DEVIATION = (0.2673, 0.2564, 0.2762)

BINARY_FILES = ("train.bin", "test.bin")
NAME_FILES = ("coarse_label_names.txt", "fine_label_names.txt")
SPLIT_FILES = {"cifar_fs": "cifar_fs.json", "fc100": "fc100_superclasses.json"}
ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"

Chosen = list[tuple[str, str]]
"""(superclass, class) of each class of a split."""


def cifar_preprocessing(image_size: int = SIDE) -> Preprocessing:
    """RGB, less the mean and divided by the deviation of each channel over CIFAR-100's training images.

    Args:
        image_size: pixels a side; other than 32 the images are resized.
    """
    return Preprocessing(channels=3, height=image_size, width=image_size, mean=MEAN, deviation=DEVIATION)


def load_cifar_fs(
    root: Path, split: str, *, preprocessing: Preprocessing | None = None, limit_per_class: int | None = None
) -> ImageClasses:
    """Read one split of CIFAR-FS.

    Args:
        root: the folder that holds ``cifar100/`` or ``cifar-100-binary/``, and ``splits/``.
        split: "train", "val" or "test".
        preprocessing: what is done to the original pictures; None: ``cifar_preprocessing()``.
        limit_per_class: keep the first so many images of each class only; None: all.

    Raises:
        DatasetError: files are not there, are not whole, or the list of the split does not fit them.
    """

    return _load(root, split, name="cifar_fs", choose=_named, preprocessing=preprocessing, limit=limit_per_class)


def load_fc100(
    root: Path, split: str, *, preprocessing: Preprocessing | None = None, limit_per_class: int | None = None
) -> ImageClasses:
    """Read one split of FC100: all classes of some superclasses. Arguments and errors as of ``load_cifar_fs``."""

    return _load(root, split, name="fc100", choose=_of_superclasses, preprocessing=preprocessing, limit=limit_per_class)


def _named(rows: list[Any], _: Chosen) -> Chosen:
    """Rows of CIFAR-FS: superclass and class."""
    return [(str(superclass), str(name)) for superclass, name in rows]


def _of_superclasses(rows: list[Any], existing: Chosen) -> Chosen:
    """Rows of FC100: superclasses."""
    found = {superclass for superclass, _ in existing}
    lacking = [row for row in rows if row not in found]
    if lacking:
        raise ValueError(f"it names the superclass {lacking[0]!r}, and there are {', '.join(sorted(found))}")
    return [pair for row in rows for pair in existing if pair[0] == row]


def _load(
    root: Path,
    split: str,
    *,
    name: str,
    choose: Callable[[list[Any], Chosen], Chosen],
    preprocessing: Preprocessing | None,
    limit: int | None,
) -> ImageClasses:
    check_split(split)
    preprocessing = preprocessing or cifar_preprocessing()
    folder = _folder(root)
    coarse_names, fine_names = (_read_names(folder / file) for file in NAME_FILES)
    records = _read_records(folder, classes=(len(coarse_names), len(fine_names)))
    existing = _classes(records, coarse_names, fine_names)
    list_file = find_split_file(root, SPLIT_FILES[name]) or find_split_file(folder, SPLIT_FILES[name])
    if list_file is None:
        raise DatasetError(
            f"no splits/{SPLIT_FILES[name]} in {root} or beside it: it says which class is in which split"
        )
    try:
        chosen = choose(split_rows(list_file, split), list(existing))
        strangers = [pair for pair in chosen if pair not in existing]
        if strangers:
            raise ValueError(f"it names {'/'.join(strangers[0])}, which is not there")
    except (TypeError, ValueError) as error:  # rows of another shape, too
        raise DatasetError(
            f"the {split} classes of {list_file} do not fit CIFAR-100 in {folder}: {error}; copy both again"
        ) from error
    class_names, images = [], []
    for pair in chosen:
        rows = np.flatnonzero(records[:, 1] == existing[pair])[:limit]
        planes = records[rows, 2:].reshape(-1, 3, SIDE, SIDE)
        class_names.append(pair[1])
        images.append(prepare_arrays(planes.transpose(0, 2, 3, 1), preprocessing))
    return ImageClasses(
        name=f"{name}/{split}", class_names=tuple(class_names), images=tuple(images), preprocessing=preprocessing
    )


def _folder(root: Path) -> Path:
    """Where the binary version lies."""
    places = [root / "cifar100", root / "cifar-100-binary", root / "cifar100" / "cifar-100-binary", root]
    for place in places:
        if any((place / file).is_file() for file in BINARY_FILES):
            missing = [file for file in (*BINARY_FILES, *NAME_FILES) if not (place / file).is_file()]
            if missing:
                raise DatasetError(
                    f"CIFAR-100 in {place} is not whole: no {', '.join(missing)}; unpack {ADDRESS} again"
                )
            return place
    for place in (*places, root / "cifar-100-python", root / "cifar100" / "cifar-100-python"):
        if (place / "meta").is_file() and (place / "train").is_file():
            raise DatasetError(
                f"{place} holds the Python version of CIFAR-100, pickle files, which could run code when opened and "
                f"are not read; put the binary version, {ADDRESS}, into {root / 'cifar100'}"
            )
    raise DatasetError(
        f"CIFAR-100 is not there: {' and '.join(BINARY_FILES)} are neither in {places[0]} nor in {places[1]}; unpack "
        f"the binary version, {ADDRESS}, there, or set METANAS_DATA or --data-root to where it is"
    )


def _read_names(file: Path) -> list[str]:
    names = file.read_text(encoding="utf-8").split()
    if not names or len(set(names)) < len(names):
        raise DatasetError(f"{file} has {len(names)} names, {len(set(names))} of them different; copy it again")
    return names


def _read_records(folder: Path, *, classes: tuple[int, int]) -> NDArray[np.uint8]:
    """``(images, RECORD_BYTES)``: the training images, then the test images."""
    parts = []
    for file in (folder / name for name in BINARY_FILES):
        size = file.stat().st_size
        if size == 0 or size % RECORD_BYTES:
            raise DatasetError(
                f"{file} has {size} bytes, which is no whole number of records of {RECORD_BYTES}; copy it again"
            )
        records = np.fromfile(file, dtype=np.uint8).reshape(-1, RECORD_BYTES)
        for column, names in enumerate(classes):
            if records[:, column].max() >= names:
                raise DatasetError(
                    f"{file} has the label {records[:, column].max()} where {folder / NAME_FILES[column]} has "
                    f"{names} names; copy both again"
                )
        counts = np.bincount(records[:, 1], minlength=classes[1])
        if counts.min() != counts.max():
            raise DatasetError(
                f"{file} is not whole: it has {counts.min()} to {counts.max()} images of a class, and CIFAR-100 has "
                "as many of each; copy it again"
            )
        parts.append(records)
    return np.concatenate(parts)


def _classes(
    records: NDArray[np.uint8], coarse_names: Sequence[str], fine_names: Sequence[str]
) -> dict[tuple[str, str], int]:
    """The label of every (superclass, class)."""
    pairs = np.unique(records[:, :2], axis=0).tolist()
    if len(pairs) != len(fine_names):
        raise DatasetError(
            f"these CIFAR-100 files put {len(fine_names)} classes into {len(pairs)} pairs of superclass and class: "
            "a class has one superclass; copy them again"
        )
    return {(coarse_names[coarse], fine_names[fine]): fine for coarse, fine in pairs}
