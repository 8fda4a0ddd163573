"""torchmeta's data sets: any of its ``CombinationMetaDataset`` objects, and the files it writes.

    import_torchmeta   the package, made to work on today's torch
    classes_from       a CombinationMetaDataset  ->  ImageClasses
    read_hdf5          torchmeta's HDF5 files    ->  ImageClasses, without torchmeta

``classes_from`` takes pictures as the data set gives them: a ``transform`` has been applied before the
preprocessing, and class augmentations are classes, in torchmeta's order: first all classes as they
are, then all of them under the first augmentation, and so on. They are named NAME@90 (a
rotation by 90 degrees) or NAME@HorizontalFlip(). ``read_hdf5`` gives classes of the same names in
the same order; Omniglot's rotations are ``ImageClasses.rotations`` there, made when an episode is
drawn. Where the two differ, and where ours differ from torchmeta:

- torchmeta turns the 105 x 105 original and then resizes, we resize and then turn: the unturned images are
  equal, a pixel of a turned one may differ by 1 in 255, by rounding.
- torchmeta stores Omniglot inverted (ink bright). Both functions turn it back into the original picture
  before the preprocessing, which says itself whether ink becomes bright.
- torchmeta writes the drawings of a character in the order in which the file system listed
  them, our reader of the zips sorts them: the same images, perhaps in another order.

Source: Deleu et al., Torchmeta: A Meta-Learning library for PyTorch, 2019.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from metanas.errors import InvalidImageError
from metanas.preprocessing import Preprocessing, picture_from_array, prepare
from metanas_training.datasets.image_classes import ImageClasses
from metanas_training.datasets.pixels import prepare_arrays
from metanas_training.datasets.splits import check_split
from metanas_training.datasets.torchmeta_import import import_torchmeta
from metanas_training.errors import DatasetError

__all__ = ["FORMATS", "classes_from", "import_torchmeta", "read_hdf5"]


def classes_from(
    meta_dataset: Any, *, preprocessing: Preprocessing, name: str | None = None, limit_per_class: int | None = None
) -> ImageClasses:
    """Read every class of a torchmeta data set into memory.

    Args:
        meta_dataset: a ``CombinationMetaDataset``, as torchmeta's classes and helpers make them, whose images are
            Pillow images, arrays ``(H, W[, 3])``, or tensors ``(channels, H, W)`` of uint8 or of floats in 0..1.
        preprocessing: what is done to those pictures; to those of torchmeta's Omniglot, turned back to dark ink on
            white.
        name: for messages and provenance; None: torchmeta's name of the data set, and the split.
        limit_per_class: read the first so many images of each class only; None: all.

    Raises:
        DatasetError: torchmeta is not installed, another kind of data set, or an item that is no image.
    """
    torchmeta = import_torchmeta()
    if not isinstance(meta_dataset, torchmeta.utils.data.CombinationMetaDataset):
        raise DatasetError(
            f"a {type(meta_dataset).__name__} has no classes to read; give a CombinationMetaDataset of torchmeta"
        )
    name = name or f"torchmeta:{type(meta_dataset).__name__}/{meta_dataset.meta_split}"
    of_classes = meta_dataset.dataset
    inverted = isinstance(of_classes, torchmeta.datasets.omniglot.OmniglotClassDataset)
    class_names, images = [], []
    for index in range(len(of_classes)):
        samples = of_classes[index]
        class_names.append(_class_name(samples, of_classes.get_class_augmentation(index), name))
        where = f"of class {class_names[-1]!r} of {name}"
        prepared = []
        for row in range(len(samples))[:limit_per_class]:
            try:
                picture = _picture(samples[row][0])
                original = ImageOps.invert(picture) if inverted else picture
                prepared.append(torch.from_numpy(prepare(original, preprocessing)))
            except (InvalidImageError, OSError) as error:
                raise DatasetError(
                    f"image {row} {where} cannot be used: {error}; leave scaling by mean and deviation to the "
                    "preprocessing"
                ) from error
        if not prepared:
            raise DatasetError(f"there is no image {where}")
        images.append(torch.stack(prepared))
    repeated = [class_name for class_name, count in Counter(class_names).items() if count > 1]
    if repeated:
        raise DatasetError(
            f"{name} has {len(repeated)} names that classes share, as {repeated[0]!r}; give each its own"
        )
    return ImageClasses(name=name, class_names=tuple(class_names), images=tuple(images), preprocessing=preprocessing)


def _class_name(samples: Any, augmentation: Any, where: str) -> str:
    item = samples[0]
    if not (isinstance(item, tuple) and len(item) == 2):
        raise DatasetError(f"{where} gives {_described(item)} where an image and its class are needed")
    label = item[1]
    # torchmeta's FixedCategory makes (label, augmentation) of the label; a label may be a tuple itself.
    if isinstance(label, tuple) and len(label) == 2 and label[1] is augmentation:
        label = label[0]
    class_name = "/".join(map(str, label)) if isinstance(label, tuple) else str(label)
    if augmentation is None:
        return class_name
    angle = getattr(augmentation, "angle", None)
    return f"{class_name}@{augmentation if angle is None else angle}"


def _described(item: Any) -> str:
    if isinstance(item, tuple):
        return f"({', '.join(type(part).__name__ for part in item)})"
    return f"a {type(item).__name__}"


def _picture(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, Tensor):
        image = (image.float() if image.is_floating_point() else image).numpy(force=True)
        if image.ndim == 3:
            image = image.transpose(1, 2, 0)
    if not isinstance(image, np.ndarray):
        raise InvalidImageError(f"a {type(image).__name__} is no picture, array or tensor")
    return picture_from_array(image)


@dataclass(frozen=True)
class Format:
    """Where torchmeta puts a data set under its root, and how."""

    images: str
    """The HDF5 file."""
    labels: str
    """The JSON list of the classes of a split."""
    group: str = ""
    """Of the HDF5 file, that holds one array for each class."""
    inverted: bool = False
    """255 - value is stored."""
    rotations: int = 1
    """As usual for this data set, and torchmeta's helper functions do it."""


FORMATS = {
    "omniglot": Format("omniglot/data.hdf5", "omniglot/vinyals_{split}_labels.json", inverted=True, rotations=4),
    "miniimagenet": Format("miniimagenet/{split}_data.hdf5", "miniimagenet/{split}_labels.json", group="datasets/"),
    "cifar_fs": Format("cifar100/data.hdf5", "cifar100/cifar-fs/{split}_labels.json"),
    "fc100": Format("cifar100/data.hdf5", "cifar100/fc100/{split}_labels.json"),
}
"""By the name on the command line, after ``torchmeta:``."""


def read_hdf5(
    root: Path, name: str, *, split: str, preprocessing: Preprocessing, limit_per_class: int | None = None
) -> ImageClasses:
    """Read one split from the HDF5 files that torchmeta has written; needs h5py, not torchmeta.

    Args:
        root: torchmeta's root: the folder that holds ``omniglot/``, ``miniimagenet/`` or ``cifar100/``.
        name: "omniglot" (Vinyals' split), "miniimagenet", "cifar_fs" or "fc100".
        split: "train", "val" or "test".
        preprocessing: what is done to the original pictures.
        limit_per_class: read the first so many images of each class only; None: all.

    Raises:
        DatasetError: an unknown name, files that are not there or not whole, or no h5py.
    """
    check_split(split)
    if name not in FORMATS:
        raise DatasetError(
            f"unknown data set 'torchmeta:{name}'; from torchmeta's files {', '.join(FORMATS)} can be read, any other "
            "through metanas_training.datasets.torchmeta.classes_from"
        )
    try:
        import h5py
    except ImportError as error:
        raise DatasetError(
            'torchmeta\'s files need the package h5py, which is not installed: pip install "metanas-edge[torchmeta]"'
        ) from error
    layout = FORMATS[name]
    file, label_file = (root / path.format(split=split) for path in (layout.images, layout.labels))
    missing = [str(path) for path in (file, label_file) if not path.is_file()]
    if missing:
        raise DatasetError(
            f"torchmeta's {name} is not there: no {' and no '.join(missing)}; let torchmeta write it once with "
            "download=True, or set METANAS_DATA or --data-root to torchmeta's root"
        )
    class_names = _read_labels(label_file)
    try:
        with h5py.File(file, "r") as content:
            images = [
                prepare_arrays(
                    _read_array(content, f"{layout.group}{label}", file, limit_per_class),
                    preprocessing,
                    stored_inverted=layout.inverted,
                )
                for label in class_names
            ]
    except OSError as error:
        raise DatasetError(f"{file} cannot be read: {error}; let torchmeta write it again") from error
    return ImageClasses(
        name=f"torchmeta:{name}/{split}",
        class_names=tuple(class_names),
        images=tuple(images),
        preprocessing=preprocessing,
        rotations=layout.rotations,
    )


def _read_labels(file: Path) -> list[str]:
    """Names of the classes, parts joined by slashes as in the HDF5 file."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file} cannot be read as JSON: {error}; let torchmeta write it again") from error
    if not isinstance(rows, list) or not rows:
        raise DatasetError(f"{file} is no list of classes; let torchmeta write it again")
    return ["/".join(map(str, row)) if isinstance(row, list) else str(row) for row in rows]


def _read_array(content: Any, path: str, file: Path, limit: int | None) -> NDArray[np.uint8]:
    # A group, which holds no pixels of its own, has no dtype.
    if path not in content or not hasattr(content[path], "dtype"):
        raise DatasetError(
            f"{file} has no array {path}, which its list of classes names; let torchmeta write both again"
        )
    array = np.asarray(content[path][:limit])
    if array.dtype != np.uint8 or not (array.ndim == 3 or (array.ndim == 4 and array.shape[3] == 3)) or not len(array):
        raise DatasetError(
            f"{path} in {file} is {array.dtype}{array.shape}, not uint8 (images, height, width) or (..., 3); let "
            "torchmeta write it again"
        )
    return array
