"""Omniglot: 1,623 characters of 50 alphabets, 20 drawings each.

Read from ``omniglot_28x28.npz`` where it holds exactly what the preprocessing asks for, else
from the official ``images_background.zip`` and ``images_evaluation.zip``; both give the same
pixels. The split is Vinyals' where ``splits/omniglot_vinyals.json`` is beside them, else the
official one (background for training and validation, evaluation for test); which one it was
is in the name of the data set.

Source: Lake, Salakhutdinov, Tenenbaum, Science 2015; split: Vinyals et al., NIPS 2016.
"""

import json
import logging
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metanas.preprocessing import Preprocessing, prepare
from metanas_training.datasets.image_classes import ROTATIONS, ImageClasses
from metanas_training.errors import DatasetError

logger = logging.getLogger(__name__)

PREPROCESSING = Preprocessing(channels=1, height=28, width=28, invert=True)
"""Dark ink on white paper becomes bright on black."""

VALIDATION_ALPHABETS = 5
"""Of the official split: the last so many background alphabets are for validation."""

Character = tuple[str, str, str]
"""("background" or "evaluation", alphabet, character)."""


def load_omniglot(
    root: Path, split: str, *, preprocessing: Preprocessing = PREPROCESSING, source: str = "auto"
) -> ImageClasses:
    """Read one split.

    Args:
        root: the folder that holds ``omniglot/`` and, if at hand, ``splits/``; or ``omniglot/`` itself.
        split: "train", "val" or "test".
        preprocessing: what is done to the original pictures.
        source: "npz", "zip", or "auto" for whichever serves.

    Raises:
        DatasetError: no file of the data set is there, or the split names what is not in it.
    """
    folder = root / "omniglot" if (root / "omniglot").is_dir() else root
    archive = folder / "omniglot_28x28.npz"
    if source == "npz" or (source == "auto" and archive.is_file() and preprocessing == PREPROCESSING):
        drawings = _read_npz(archive)
    else:
        drawings = _read_zips(folder, preprocessing)
    name, chosen = _split(root, split, sorted(drawings))
    missing = [character for character in chosen if character not in drawings]
    if missing:
        raise DatasetError(f"{name} names {missing[0]}, which is not among the characters in {folder}")
    return ImageClasses(
        name=f"{name}/{split}",
        class_names=tuple(f"{alphabet}/{character}" for _, alphabet, character in chosen),
        images=tuple(drawings[character] for character in chosen),
        preprocessing=preprocessing,
        rotations=ROTATIONS,
    )


def _read_npz(archive: Path) -> dict[Character, Tensor]:
    if not archive.is_file():
        raise DatasetError(f"Omniglot is not there: no {archive}")
    with np.load(archive) as arrays:
        images = torch.from_numpy(arrays["images"]).unsqueeze(2)
        keys = zip(arrays["split"].tolist(), arrays["alphabet"].tolist(), arrays["character"].tolist(), strict=True)
        return dict(zip(keys, images, strict=True))


def _read_zips(folder: Path, preprocessing: Preprocessing) -> dict[Character, Tensor]:
    pixels: dict[Character, list[Tensor]] = {}
    for part in ("background", "evaluation"):
        archive = folder / f"images_{part}.zip"
        if not archive.is_file():
            raise DatasetError(
                f"Omniglot is not there: neither {folder / 'omniglot_28x28.npz'} nor {archive}; put the official "
                "zips into that folder, or set METANAS_DATA or --data-root to where they are"
            )
        with zipfile.ZipFile(archive) as files:
            for path in sorted(name for name in files.namelist() if name.endswith(".png")):
                _, alphabet, character, _ = path.split("/")
                with files.open(path) as file, Image.open(file) as picture:
                    image = torch.from_numpy(prepare(picture, preprocessing))
                pixels.setdefault((part, alphabet, character), []).append(image)
    return {character: torch.stack(images) for character, images in pixels.items()}


def _split(root: Path, split: str, characters: Iterable[Character]) -> tuple[str, list[Character]]:
    if split not in ("train", "val", "test"):
        raise DatasetError(f"unknown split {split!r}; there are train, val and test")
    for file in (root / "splits" / "omniglot_vinyals.json", root.parent / "splits" / "omniglot_vinyals.json"):
        if file.is_file():
            rows = json.loads(file.read_text(encoding="utf-8"))[split]
            return "omniglot-vinyals", [(str(part), str(alphabet), str(name)) for part, alphabet, name in rows]
    logger.warning("no splits/omniglot_vinyals.json under %s: using the official background/evaluation split", root)
    alphabets = sorted({alphabet for part, alphabet, _ in characters if part == "background"})
    held_out = set(alphabets[-VALIDATION_ALPHABETS:])
    part_of = {"train": "background", "val": "background", "test": "evaluation"}[split]
    return "omniglot-official", [
        (part, alphabet, name)
        for part, alphabet, name in characters
        if part == part_of and (split == "test" or (alphabet in held_out) == (split == "val"))
    ]
