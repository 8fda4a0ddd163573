"""miniImageNet: JPEG files end to end become classes with English names; contradictory files are refused."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metanas.preprocessing import Preprocessing, prepare
from metanas_training.datasets import data_root, default_preprocessing, load_classes
from metanas_training.datasets.miniimagenet import ARCHIVES, DEVIATION, MEAN, SIDE, load_miniimagenet
from metanas_training.errors import DatasetError

needs_miniimagenet = pytest.mark.skipif(
    not (data_root() / "miniimagenet" / "miniimagenet_val.npz").is_file(),
    reason=f"miniImageNet is not under {data_root()}; set METANAS_DATA to check it against the real files",
)


def _jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((SIDE, SIDE)).save(file, "JPEG", quality=90)
    return file.getvalue()


def _write(archive: Path, wnids: list[str], /, *, images: int = 3, seed: int = 0, **other: Any) -> list[bytes]:
    """An archive with so many images of each class, all different; ``other`` replaces arrays."""
    files = [_jpeg(1000 * seed + number) for number in range(images * len(wnids))]
    arrays = {
        "blob": np.frombuffer(b"".join(files), dtype=np.uint8),
        "offsets": np.cumsum([0, *map(len, files)]),
        "labels": np.repeat(np.arange(len(wnids), dtype=np.int16), images),
        "wnids": np.array(wnids),
    }
    archive.parent.mkdir(parents=True, exist_ok=True)
    np.savez(archive, **{name: array for name, array in (arrays | other).items() if array is not None})
    return files


@pytest.fixture
def val(tmp_path: Path) -> tuple[Path, list[bytes]]:
    """A root with two validation classes of three images, and the JPEG files."""
    return tmp_path, _write(tmp_path / "miniimagenet" / "miniimagenet_val.npz", ["n01", "n02"])


def test_the_four_train_files_make_one_split_in_their_order(tmp_path: Path) -> None:
    for part, name in enumerate(ARCHIVES["train"]):
        _write(tmp_path / "miniimagenet" / name, [f"n{part}1", f"n{part}2"], seed=part)
    for root in (tmp_path, tmp_path / "miniimagenet"):
        classes = load_miniimagenet(root, "train")
        assert classes.class_names == ("n01", "n02", "n11", "n12", "n21", "n22", "n31", "n32")
        assert classes.name == "miniimagenet/train"
        assert all(images.shape == (3, 3, SIDE, SIDE) and images.is_contiguous() for images in classes.images)


@pytest.mark.parametrize(
    "preprocessing",
    [
        default_preprocessing("miniimagenet"),
        default_preprocessing("miniimagenet", image_size=32),
        Preprocessing(height=SIDE, width=SIDE),
        Preprocessing(height=SIDE, width=SIDE, channels=3, mean=MEAN, deviation=DEVIATION, invert=True),
    ],
    ids=["native", "smaller", "grey", "inverted"],
)
def test_pixels_are_those_that_the_server_makes_of_the_same_file(
    val: tuple[Path, list[bytes]], preprocessing: Preprocessing
) -> None:
    root, files = val
    classes = load_classes("miniimagenet", "val", preprocessing=preprocessing, root=root)
    found = torch.cat(classes.images).numpy()
    for image, file in zip(found, files, strict=True):
        np.testing.assert_array_equal(image, prepare(Image.open(io.BytesIO(file)), preprocessing))


def test_images_belong_to_the_class_of_their_label_in_whatever_order_they_lie(tmp_path: Path) -> None:
    labels = np.array([1, 0, 0, 1, 1, 0])
    files = _write(tmp_path / "miniimagenet_val.npz", ["n01", "n02"], labels=labels)
    classes = load_miniimagenet(tmp_path, "val")
    for label, images in enumerate(classes.images):
        wanted = [np.asarray(Image.open(io.BytesIO(files[row]))) for row in np.flatnonzero(labels == label)]
        np.testing.assert_array_equal(images.permute(0, 2, 3, 1).numpy(), np.stack(wanted))


def test_a_limit_keeps_the_first_images_of_each_class(val: tuple[Path, list[bytes]]) -> None:
    everything, some = load_miniimagenet(val[0], "val"), load_miniimagenet(val[0], "val", limit_per_class=2)
    assert [len(images) for images in some.images] == [2, 2]
    assert all(torch.equal(few, many[:2]) for few, many in zip(some.images, everything.images, strict=True))


def test_english_names_are_used_and_shared_ones_are_told_apart(tmp_path: Path) -> None:
    _write(tmp_path / "miniimagenet" / "miniimagenet_val.npz", ["n01", "n02", "n03", "n04"])
    (tmp_path / "splits").mkdir()
    content = {"val": ["n01", "n02", "n03", "n04"], "names": {"n01": "crane", "n02": "robin", "n03": "crane"}}
    (tmp_path / "splits" / "miniimagenet_ravi.json").write_text(json.dumps(content))
    assert load_miniimagenet(tmp_path, "val").class_names == ("crane (n01)", "robin", "crane (n03)", "n04")


def test_files_and_the_list_of_the_split_must_name_the_same_classes(val: tuple[Path, list[bytes]]) -> None:
    root, _ = val
    (root / "splits").mkdir()
    (root / "splits" / "miniimagenet_ravi.json").write_text(json.dumps({"val": ["n01", "n09"]}))
    with pytest.raises(DatasetError, match=r"val files and .*ravi\.json do not name the same classes: n02 is in one"):
        load_miniimagenet(root, "val")
    (root / "splits" / "miniimagenet_ravi.json").write_text("{")
    with pytest.raises(DatasetError, match=r"miniimagenet_ravi\.json cannot be read as JSON: .*; copy it again"):
        load_miniimagenet(root, "val")
    (root / "splits" / "miniimagenet_ravi.json").write_text(json.dumps({"train": ["n01"]}))
    with pytest.raises(DatasetError, match=r"miniimagenet_ravi\.json has no list 'val'"):
        load_miniimagenet(root, "val")


def test_a_part_copied_twice_is_refused(tmp_path: Path) -> None:
    for name in ARCHIVES["train"]:
        _write(tmp_path / name, ["n01", "n02"])
    with pytest.raises(DatasetError, match="train files have the class n01 twice; copy the files again"):
        load_miniimagenet(tmp_path, "train")


def test_missing_files_are_named_with_what_to_do(tmp_path: Path) -> None:
    _write(tmp_path / "miniimagenet" / "miniimagenet_train_0.npz", ["n01", "n02"])
    with pytest.raises(
        DatasetError,
        match=r"no miniimagenet_train_1\.npz, miniimagenet_train_2\.npz, miniimagenet_train_3\.npz in .*/miniimagenet; "
        "put the files into that folder, or set METANAS_DATA or --data-root",
    ):
        load_miniimagenet(tmp_path, "train")
    with pytest.raises(DatasetError, match="unknown split 'dev'; there are train, val and test"):
        load_miniimagenet(tmp_path, "dev")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"labels": np.array([0, 0, 0, 1, 1, 2])}, r"labels 0\.\.2 for 2 classes"),
        ({"labels": np.array([0, 0, 0, 1, 1, -1])}, r"labels -1\.\.1 for 2 classes"),
        ({"labels": np.array([0, 0, 1, 1])}, "4 labels need 5 offsets, not 7"),
        ({"labels": np.zeros((6, 1), int)}, r"labels int64\(6, 1\), not rows of uint8 and of integers"),
        ({"blob": np.zeros(9, np.uint8)}, "its offsets run from 0 to [0-9]+ and must rise from 0 to 9, the bytes"),
        ({"offsets": np.array([0, 5, 4, 7, 8, 9, 10]), "blob": np.zeros(10, np.uint8)}, "must rise from 0 to 10"),
        ({"offsets": np.arange(7) - 1, "blob": np.zeros(5, np.uint8)}, "its offsets run from -1 to 5"),
        ({"wnids": None}, r"cannot be read: .*wnids.*; copy it again"),
        ({"wnids": np.array(["n01", None], dtype=object)}, "cannot be read: Object arrays cannot be loaded"),
        ({"offsets": np.arange(7), "blob": np.zeros(6, np.uint8)}, r"image 0 of .*val\.npz cannot be decoded: "),
    ],
)  # fmt: skip
def test_a_file_that_contradicts_itself_is_refused(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    _write(tmp_path / "miniimagenet_val.npz", ["n01", "n02"], **other)
    with pytest.raises(DatasetError, match=message) as caught:
        load_miniimagenet(tmp_path, "val")
    assert "miniimagenet_val.npz" in str(caught.value)


@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_a_truncated_file_is_refused(val: tuple[Path, list[bytes]], kept: float) -> None:
    archive = val[0] / "miniimagenet" / "miniimagenet_val.npz"
    content = archive.read_bytes()
    archive.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DatasetError, match=r"miniimagenet_val\.npz cannot be read: .*; copy it again"):
        load_miniimagenet(val[0], "val")


def test_it_is_prepared_as_84_pixel_rgb_unless_told_otherwise() -> None:
    usual, told = default_preprocessing("miniimagenet"), default_preprocessing("miniimagenet", image_size=32)
    assert (usual.channels, usual.height, usual.width, usual.invert) == (3, 84, 84, False)
    assert told == Preprocessing(channels=3, height=32, width=32, mean=MEAN, deviation=DEVIATION)


@needs_miniimagenet
def test_the_real_splits_have_64_16_and_20_classes_of_600_with_names_of_their_own() -> None:
    splits = {split: load_miniimagenet(data_root(), split, limit_per_class=6) for split in ARCHIVES}
    assert [len(classes) for classes in splits.values()] == [64, 16, 20]
    assert len({name for classes in splits.values() for name in classes.class_names}) == 100
    assert {"house finch", "robin"} <= set(splits["train"].class_names)
    assert all(images.shape == (6, 3, 84, 84) for classes in splits.values() for images in classes.images)
    for split in ("val", "test"):
        with np.load(data_root() / "miniimagenet" / f"miniimagenet_{split}.npz") as arrays:
            assert set(np.bincount(arrays["labels"])) == {600}
    # 384 of the 38,400 training images: mean and deviation of all of them are what is declared, to a hundredth.
    pixels = torch.cat(splits["train"].images).float() / 255
    torch.testing.assert_close(pixels.mean((0, 2, 3)), torch.tensor(MEAN), atol=0.015, rtol=0)
    torch.testing.assert_close(pixels.std((0, 2, 3)), torch.tensor(DEVIATION), atol=0.015, rtol=0)
