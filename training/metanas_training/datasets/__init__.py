"""Data sets for meta-training, by the name that the command line gives them.

glyphs           the embedded default: drawn from stroke fonts, no download
omniglot         from METANAS_DATA (default ``../shared/data`` beside the repository), as are the next four
miniimagenet     100 classes of ImageNet, 84 x 84 pixels
cifar_fs         CIFAR-100 split at random, 32 x 32 pixels
fc100            CIFAR-100 split by superclass
torchmeta:NAME   omniglot, miniimagenet, cifar_fs or fc100 from the HDF5 files that torchmeta has written
folder:PATH      a directory of class folders of images

Any other data set of torchmeta comes in through ``datasets.torchmeta.classes_from``.
"""

import os
from pathlib import Path

import torch

from metanas.preprocessing import Preprocessing, picture_from_array, prepare
from metanas_training.datasets import cifar, miniimagenet, omniglot
from metanas_training.datasets.folder import load_folder
from metanas_training.datasets.image_classes import ROTATIONS, ImageClasses
from metanas_training.errors import DatasetError

GLYPH_DRAWINGS = 20
"""Drawings of each glyph class, as many as Omniglot has."""

FOLDER_IMAGE_SIZE = 84

TORCHMETA = "torchmeta:"

__all__ = ["ROTATIONS", "ImageClasses", "data_root", "default_preprocessing", "load_classes"]


def data_root() -> Path:
    """Where real data lie: METANAS_DATA, or ``../shared/data`` beside the repository."""
    named = os.environ.get("METANAS_DATA")
    return Path(named) if named else Path(__file__).resolve().parents[4] / "shared" / "data"


def default_preprocessing(data: str, *, image_size: int | None = None, grey: bool = False) -> Preprocessing:
    """What is usual for a data set.

    Args:
        data: a name as of ``load_classes``; one of torchmeta's is prepared as ours of that name is.
        image_size: pixels a side; where not given 28 for drawings, 32 for CIFAR-100, 84 for miniImageNet and folders.
        grey: folders only: one channel instead of RGB.
    """
    usual = data.removeprefix(TORCHMETA)
    if usual == "miniimagenet":
        return miniimagenet.miniimagenet_preprocessing(image_size or miniimagenet.SIDE)
    if usual in ("cifar_fs", "fc100"):
        return cifar.cifar_preprocessing(image_size or cifar.SIDE)
    if not data.startswith("folder:"):
        size = image_size or omniglot.PREPROCESSING.height
        return Preprocessing(channels=1, height=size, width=size, invert=True)
    size = image_size or FOLDER_IMAGE_SIZE
    channels = 1 if grey else 3
    return Preprocessing(
        channels=channels, height=size, width=size, mean=(0.5,) * channels, deviation=(0.25,) * channels
    )


def load_classes(data: str, split: str, *, preprocessing: Preprocessing, root: Path) -> ImageClasses:
    """Read one split of a data set into memory.

    Raises:
        DatasetError: an unknown name, or data that are missing or too few.
    """
    if data == "glyphs":
        return _load_glyphs(split, preprocessing)
    if data == "omniglot":
        return omniglot.load_omniglot(root, split, preprocessing=preprocessing)
    if data == "miniimagenet":
        return miniimagenet.load_miniimagenet(root, split, preprocessing=preprocessing)
    if data == "cifar_fs":
        return cifar.load_cifar_fs(root, split, preprocessing=preprocessing)
    if data == "fc100":
        return cifar.load_fc100(root, split, preprocessing=preprocessing)
    if data.startswith(TORCHMETA):
        # Here, not above: a run on other data does without torchmeta's adapter.
        from metanas_training.datasets.torchmeta import read_hdf5

        return read_hdf5(root, data.removeprefix(TORCHMETA), split=split, preprocessing=preprocessing)
    if data.startswith("folder:"):
        return load_folder(Path(data.removeprefix("folder:")).expanduser(), split, preprocessing=preprocessing)
    raise DatasetError(
        f"unknown data set {data!r}; there are glyphs, omniglot and folder:PATH, miniimagenet, cifar_fs and fc100, and "
        "torchmeta:NAME with the NAME omniglot, miniimagenet, cifar_fs or fc100"
    )


def _load_glyphs(split: str, preprocessing: Preprocessing) -> ImageClasses:
    # Here, not above: only this data set needs the package Hershey-Fonts.
    from metanas_training.datasets.glyphs import draw_glyph, glyph_classes

    classes = glyph_classes(split)
    images = [
        torch.stack(
            [
                torch.from_numpy(prepare(picture_from_array(draw_glyph(glyph, drawing)), preprocessing))
                for drawing in range(GLYPH_DRAWINGS)
            ]
        )
        for glyph in classes
    ]
    return ImageClasses(
        name=f"glyphs/{split}",
        class_names=tuple(glyph.name for glyph in classes),
        images=tuple(images),
        preprocessing=preprocessing,
    )
