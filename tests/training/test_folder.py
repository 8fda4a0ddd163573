"""A user's own pictures: both layouts, and what is wrong with a folder."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metanas.preprocessing import Preprocessing, prepare
from metanas_training.datasets import default_preprocessing, load_classes
from metanas_training.datasets.folder import SPLITS, load_folder
from metanas_training.errors import DatasetError

GREY = Preprocessing(height=8, width=8)


def _draw(folder: Path, count: int = 3, suffix: str = "png") -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(folder.name))
    for number in range(count):
        pixels = rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.{suffix}")


def test_classes_without_splits_are_shared_out_by_name_alone(tmp_path: Path) -> None:
    for root in ("one", "other"):
        for number in range(25):
            _draw(tmp_path / root / f"class {number}")
    splits = {split: load_folder(tmp_path / "one", split, preprocessing=GREY) for split in SPLITS}
    assert [len(splits[split]) for split in SPLITS] == [16, 4, 5]  # 64 : 16 : 20
    names = [name for split in SPLITS for name in splits[split].class_names]
    assert len(set(names)) == 25
    assert load_folder(tmp_path / "other", "val", preprocessing=GREY).class_names == splits["val"].class_names
    assert splits["val"].name == "folder:one/val"


def test_splits_that_the_user_made_are_kept(tmp_path: Path) -> None:
    for split, names in {"train": "ab", "val": "cd", "test": "efg"}.items():
        for name in names:
            _draw(tmp_path / split / name, suffix="jpg")
    (tmp_path / "train" / ".thumbnails").mkdir()
    assert load_folder(tmp_path, "train", preprocessing=GREY).class_names == ("a", "b")
    assert load_folder(tmp_path, "test", preprocessing=GREY).class_names == ("e", "f", "g")


def test_pictures_go_through_the_preprocessing_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in "abcdef":
        _draw(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    classes = load_classes(f"folder:{tmp_path}", "train", preprocessing=GREY, root=tmp_path)
    images = classes.images[0]
    assert images.shape == (3, 1, 8, 8)
    with Image.open(tmp_path / classes.class_names[0] / "1.png") as picture:
        np.testing.assert_array_equal(images[1].numpy(), prepare(picture, GREY))


def test_a_folder_that_is_not_there_or_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="/none is not a folder; give the folder that holds one folder a class"):
        load_folder(tmp_path / "none", "train", preprocessing=GREY)
    for name in "abcde":
        _draw(tmp_path / name)
    with pytest.raises(DatasetError, match="5 class folders are too few to split; two for each of train, val and test"):
        load_folder(tmp_path, "train", preprocessing=GREY)
    with pytest.raises(DatasetError, match="unknown split 'dev'; there are train, val, test"):
        load_folder(tmp_path, "dev", preprocessing=GREY)


def _bomb() -> bytes:
    """A PNG of 60,000 x 60,000 pixels in a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("content", [b"no image at all", b"\x89PNG\r\n\x1a\n", b"", _bomb()])
def test_a_file_that_is_no_usable_image_is_named(tmp_path: Path, content: bytes) -> None:
    for split in SPLITS:
        for name in "ab":
            _draw(tmp_path / split / name)
    (tmp_path / "val" / "b" / "odd.png").write_bytes(content)
    with pytest.raises(DatasetError, match=r"/val/b/odd\.png cannot be read as an image: "):
        load_folder(tmp_path, "val", preprocessing=GREY)


def test_classes_with_too_few_images_are_named(tmp_path: Path) -> None:
    for name in "abcdef":
        _draw(tmp_path / name, count=1)
    with pytest.raises(
        DatasetError, match=r"class '.' of folder:.*/train has 1 image; it needs one for the support set"
    ):
        load_folder(tmp_path, "train", preprocessing=GREY)
    for image in tmp_path.glob("*/*.png"):
        image.unlink()
    with pytest.raises(DatasetError, match=r"class folder .* holds no image \(\.bmp, \.gif"):
        load_folder(tmp_path, "train", preprocessing=GREY)


def test_folders_are_84_pixel_rgb_unless_told_otherwise() -> None:
    usual, told = default_preprocessing("folder:x"), default_preprocessing("folder:x", image_size=32, grey=True)
    assert (usual.channels, usual.height, usual.width) == (3, 84, 84)
    assert (told.channels, told.height, told.width) == (1, 32, 32)


def test_an_unknown_data_set_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="unknown data set 'mnist'; there are glyphs, omniglot and folder:PATH"):
        load_classes("mnist", "train", preprocessing=GREY, root=tmp_path)
