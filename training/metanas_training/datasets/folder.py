"""A user's own data: a directory of class folders of images.

PATH/cat/*.png, PATH/dog/*.jpg, ...             classes are split 64 : 16 : 20, by name
PATH/train/cat/*.png, PATH/val/..., PATH/test/...   split by the user
"""

import hashlib
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError

from metanas.errors import InvalidImageError
from metanas.preprocessing import Preprocessing, prepare
from metanas_training.datasets.image_classes import ImageClasses
from metanas_training.errors import DatasetError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}
SPLITS = ("train", "val", "test")


def load_folder(path: Path, split: str, *, preprocessing: Preprocessing) -> ImageClasses:
    """Read one split of a directory of class folders.

    Where ``path`` holds no folders train, val and test, the classes are put in an order that
    depends on their names only (SHA-256), and the first 64 % are for training, the next 16 %
    for validation, the rest for test.

    Raises:
        DatasetError: no such folder, too few classes or images, or an image that cannot be read.
    """
    if split not in SPLITS:
        raise DatasetError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    if not path.is_dir():
        raise DatasetError(f"{path} is not a folder; give the folder that holds one folder a class")
    if all((path / name).is_dir() for name in SPLITS):
        folders = _class_folders(path / split)
    else:
        folders = _share(_class_folders(path), split)
    return ImageClasses(
        name=f"folder:{path.name}/{split}",
        class_names=tuple(folder.name for folder in folders),
        images=tuple(_read(folder, preprocessing) for folder in folders),
        preprocessing=preprocessing,
    )


def _class_folders(path: Path) -> list[Path]:
    return sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))


def _share(folders: list[Path], split: str) -> list[Path]:
    if len(folders) < 6:
        raise DatasetError(
            f"{len(folders)} class folders are too few to split; two for each of train, val and test are the least"
        )
    shuffled = sorted(folders, key=lambda folder: hashlib.sha256(folder.name.encode()).hexdigest())
    validation = max(2, round(0.16 * len(folders)))
    test = max(2, round(0.20 * len(folders)))
    train = len(folders) - validation - test
    bounds = {"train": (0, train), "val": (train, train + validation), "test": (train + validation, len(folders))}
    first, last = bounds[split]
    return sorted(shuffled[first:last])


def _read(folder: Path, preprocessing: Preprocessing) -> torch.Tensor:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise DatasetError(f"class folder {folder} holds no image ({', '.join(sorted(SUFFIXES))})")
    images = []
    for file in files:
        try:
            with Image.open(file) as picture:
                images.append(torch.from_numpy(prepare(picture, preprocessing)))
        except (UnidentifiedImageError, InvalidImageError, Image.DecompressionBombError, ValueError, OSError) as error:
            raise DatasetError(f"{file} cannot be read as an image: {error}") from error
    return torch.stack(images)
