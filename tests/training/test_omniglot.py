"""Omniglot: one set of pixels from either source, Vinyals' split or the official one."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metanas.preprocessing import prepare
from metanas_training.datasets import data_root
from metanas_training.datasets.omniglot import PREPROCESSING, load_omniglot
from metanas_training.errors import DatasetError

needs_omniglot = pytest.mark.skipif(
    not (data_root() / "omniglot" / "omniglot_28x28.npz").is_file(),
    reason=f"Omniglot is not under {data_root()}; set METANAS_DATA to check it against the real files",
)


def _zips(root: Path, *, alphabets: int = 7) -> Path:
    """Made-up zips in the official layout: background of ``alphabets``, evaluation of two; 2 characters, 3 drawings."""
    folder = root / "omniglot"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("background", alphabets), ("evaluation", 2)):
        with zipfile.ZipFile(folder / f"images_{part}.zip", "w") as archive:
            for alphabet in range(count):
                for character in ("character01", "character02"):
                    for drawing in range(3):
                        file = io.BytesIO()
                        pixels = rng.integers(0, 2, (105, 105), dtype=np.uint8) * 255
                        Image.fromarray(pixels).convert("1").save(file, "PNG")
                        path = f"images_{part}/{part}_{alphabet}/{character}/0001_{drawing:02}.png"
                        archive.writestr(path, file.getvalue())
    return root


def test_without_vinyals_split_the_official_one_is_used_and_named(tmp_path: Path) -> None:
    root = _zips(tmp_path)
    splits = {split: load_omniglot(root, split) for split in ("train", "val", "test")}
    assert splits["train"].name == "omniglot-official/train"
    alphabets = {split: {name.split("/")[0] for name in found.class_names} for split, found in splits.items()}
    assert alphabets["train"] == {"background_0", "background_1"}
    assert alphabets["val"] == {f"background_{number}" for number in range(2, 7)}  # the last five
    assert alphabets["test"] == {"evaluation_0", "evaluation_1"}
    assert len(splits["val"]) == 4 * 10  # with rotations
    assert splits["val"].images[0].shape == (3, 1, 28, 28)


def test_a_split_file_beside_the_data_decides(tmp_path: Path) -> None:
    root = _zips(tmp_path)
    (root / "splits").mkdir()
    rows = [["evaluation", "evaluation_1", "character02"], ["background", "background_0", "character01"]]
    (root / "splits" / "omniglot_vinyals.json").write_text(
        json.dumps({"train": rows, "val": [["x", "y", "z"]], "test": []})
    )
    for given in (root, root / "omniglot"):
        found = load_omniglot(given, "train")
        assert found.class_names == ("evaluation_1/character02", "background_0/character01")
        assert found.name == "omniglot-vinyals/train"
    with pytest.raises(
        DatasetError, match=r"omniglot-vinyals names \('x', 'y', 'z'\), which is not among the characters"
    ):
        load_omniglot(root, "val")


def test_missing_files_and_unknown_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"neither .*omniglot_28x28\.npz nor .*images_background\.zip; put the official"
    ):
        load_omniglot(tmp_path, "train")
    with pytest.raises(DatasetError, match=r"Omniglot is not there: no .*omniglot_28x28\.npz"):
        load_omniglot(tmp_path, "train", source="npz")
    with pytest.raises(DatasetError, match="unknown split 'dev'; there are train, val and test"):
        load_omniglot(_zips(tmp_path / "made up", alphabets=1), "dev")


@needs_omniglot
def test_vinyals_split_has_1028_172_and_423_characters_that_are_disjoint() -> None:
    splits = {split: load_omniglot(data_root(), split) for split in ("train", "val", "test")}
    assert [len(found.images) for found in splits.values()] == [1028, 172, 423]
    assert len({name for found in splits.values() for name in found.class_names}) == 1623
    assert len(splits["train"]) == 4112
    assert all(images.shape == (20, 1, 28, 28) for found in splits.values() for images in found.images)
    assert splits["test"].name == "omniglot-vinyals/test"


@needs_omniglot
@pytest.mark.parametrize("part", ["background", "evaluation"])
def test_the_official_zips_and_the_npz_hold_the_same_pixels(part: str) -> None:
    with np.load(data_root() / "omniglot" / "omniglot_28x28.npz") as arrays:
        keys = list(
            zip(arrays["split"].tolist(), arrays["alphabet"].tolist(), arrays["character"].tolist(), strict=True)
        )
        images = arrays["images"]
    rows = [row for row, key in enumerate(keys) if key[0] == part]
    with zipfile.ZipFile(data_root() / "omniglot" / f"images_{part}.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".png")]
        assert {tuple(name.split("/")[1:3]) for name in names} == {keys[row][1:] for row in rows}
        for row in rows[:: len(rows) // 6]:
            of_character = sorted(name for name in names if name.split("/")[1:3] == list(keys[row][1:]))
            assert len(of_character) == 20
            for number, name in enumerate(of_character):
                with archive.open(name) as file, Image.open(file) as picture:
                    found = torch.from_numpy(prepare(picture, PREPROCESSING))
                assert torch.equal(found[0], torch.from_numpy(images[row, number]))
