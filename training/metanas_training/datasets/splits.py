"""Lists of class names that say which class belongs to which split, as JSON files beside the data.

    find_split_file   ``splits/NAME`` in the folder of the data, or beside it
    read_split_file   its content
    split_rows        the rows of one split

It does not know the data sets; they do not know where the lists lie.
"""

import json
from pathlib import Path
from typing import Any

from metanas_training.errors import DatasetError

SPLITS = ("train", "val", "test")


def check_split(split: str) -> None:
    """Raise DatasetError unless ``split`` is "train", "val" or "test"."""
    if split not in SPLITS:
        raise DatasetError(f"unknown split {split!r}; there are train, val and test")


def find_split_file(root: Path, name: str) -> Path | None:
    """The file ``splits/NAME`` under ``root`` or beside it; None where there is none."""
    for folder in (root, root.parent):
        if (folder / "splits" / name).is_file():
            return folder / "splits" / name
    return None


def read_split_file(file: Path) -> dict[str, Any]:
    """The content of a list.

    Raises:
        DatasetError: it is no JSON object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file} cannot be read as JSON: {error}; copy it again") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{file} holds a {type(content).__name__}, not an object with train, val and test")
    return content


def split_rows(file: Path, split: str) -> list[Any]:
    """The rows of one split.

    Raises:
        DatasetError: no such list, or an empty one.
    """
    rows = read_split_file(file).get(split)
    if not isinstance(rows, list) or not rows:
        raise DatasetError(f"{file} has no list {split!r}; it needs train, val and test")
    return rows
