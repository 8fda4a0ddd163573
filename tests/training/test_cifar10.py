"""CIFAR-10: one set of classes from JPEG archives or from the official binary files, and clear refusals."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from metanas_training.datasets import data_root
from metanas_training.datasets.cifar10 import CLASS_NAMES, cifar10_preprocessing, load_cifar10
from metanas_training.errors import DatasetError

RECORD = 3073

needs_cifar10 = pytest.mark.skipif(
    not (data_root() / "cifar10" / "cifar10_test.npz").is_file(),
    reason=f"CIFAR-10 is not under {data_root()}; set METANAS_DATA to check the reader against the real files",
)


def _records(count: int = 20, *, seed: int = 0) -> NDArray[np.uint8]:
    """Records of the binary version with labels 0, 1, ..., 9, 0, 1, ..."""
    records = np.random.default_rng(seed).integers(0, 256, (count, RECORD), dtype=np.uint8)
    records[:, 0] = np.arange(count) % 10
    return records


def _binary(root: Path) -> Path:
    folder = root / "cifar10"
    folder.mkdir(parents=True)
    for number in range(1, 6):
        _records(seed=number).tofile(folder / f"data_batch_{number}.bin")
    _records(seed=6).tofile(folder / "test_batch.bin")
    return folder


def _npz(root: Path, **replaced: NDArray[np.generic]) -> Path:
    """An archive of 20 pictures as PNG, which is as lossless as the binary version."""
    folder = root / "cifar10"
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for record in _records():
        file = io.BytesIO()
        Image.fromarray(record[1:].reshape(3, 32, 32).transpose(1, 2, 0)).save(file, "PNG")
        files.append(file.getvalue())
    arrays: dict[str, NDArray[np.generic]] = {
        "blob": np.frombuffer(b"".join(files), dtype=np.uint8),
        "offsets": np.cumsum([0, *map(len, files)]),
        "labels": (np.arange(20) % 10).astype(np.int16),
        "classes": np.array(CLASS_NAMES),
    }
    np.savez(folder / "cifar10_train.npz", **{**arrays, **replaced})  # type: ignore[arg-type]
    return folder / "cifar10_train.npz"


def test_a_record_is_a_label_and_a_red_a_green_and_a_blue_plane(tmp_path: Path) -> None:
    folder = _binary(tmp_path)
    record = np.zeros(RECORD, dtype=np.uint8)
    record[0] = 3
    record[1 + 32 * 5 + 7] = 200  # red, row 5, column 7
    record[1 + 1024] = 100  # green, the first pixel
    records = _records(seed=6)
    records[3] = record
    records.tofile(folder / "test_batch.bin")
    found = load_cifar10(tmp_path, "test", preprocessing=cifar10_preprocessing())
    assert found.class_names[3] == "cat"
    image = found.images[3][0]
    assert image.shape == (3, 32, 32)
    assert image[0, 5, 7] == 200
    assert image[1, 0, 0] == 100
    assert int(image.to(torch.int64).sum()) == 300


def test_five_binary_files_are_read_where_they_lie_or_where_the_archive_unpacks_to(tmp_path: Path) -> None:
    folder = _binary(tmp_path)
    found = load_cifar10(tmp_path, "train", preprocessing=cifar10_preprocessing())
    assert found.name == "cifar10-binary/train"
    assert [len(images) for images in found.images] == [10] * 10
    assert torch.equal(found.images[4][9].flatten(), torch.from_numpy(_records(seed=5)[14, 1:]))
    unpacked = tmp_path / "other" / "cifar-10-batches-bin"
    unpacked.parent.mkdir()
    folder.rename(unpacked)
    again = load_cifar10(unpacked.parent, "train", preprocessing=cifar10_preprocessing())
    assert all(torch.equal(one, other) for one, other in zip(found.images, again.images, strict=True))


def test_an_archive_of_pictures_gives_the_pixels_of_the_binary_version(tmp_path: Path) -> None:
    _npz(tmp_path)
    found = load_cifar10(tmp_path, "train", preprocessing=cifar10_preprocessing())
    assert found.name == "cifar10-npz/train"
    for label in range(10):
        expected = torch.from_numpy(_records()[[label, label + 10], 1:].reshape(2, 3, 32, 32))
        assert torch.equal(found.images[label], expected)
    small = load_cifar10(tmp_path / "cifar10", "train", preprocessing=cifar10_preprocessing(16))
    assert small.images[0].shape == (2, 3, 16, 16)


def test_the_lossless_version_is_preferred_and_either_can_be_asked_for(tmp_path: Path) -> None:
    _binary(tmp_path)
    _npz(tmp_path)
    names = [
        load_cifar10(tmp_path, "train", preprocessing=cifar10_preprocessing(), source=source).name
        for source in ("auto", "binary", "npz")
    ]
    assert names == ["cifar10-binary/train", "cifar10-binary/train", "cifar10-npz/train"]


def test_missing_files_and_unknown_splits_are_refused(tmp_path: Path) -> None:
    preprocessing = cifar10_preprocessing()
    with pytest.raises(
        DatasetError, match=r"neither .*cifar10_train\.npz nor .*data_batch_1\.bin; put the official binary version"
    ):
        load_cifar10(tmp_path, "train", preprocessing=preprocessing)
    with pytest.raises(DatasetError, match="unknown split 'val'; CIFAR-10 has train and test"):
        load_cifar10(tmp_path, "val", preprocessing=preprocessing)
    folder = _binary(tmp_path)
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(DatasetError, match=r"is not whole: no data_batch_3\.bin; unpack it again"):
        load_cifar10(tmp_path, "train", preprocessing=preprocessing)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"test_batch\.bin has 0 bytes, which is no whole number of records of 3073"),
        (bytes(RECORD + 1), r"test_batch\.bin has 3074 bytes, which is no whole number of records of 3073"),
        (bytes([77]) + bytes(RECORD - 1), r"test_batch\.bin has the label 77; CIFAR-10 has 0\.\.9; is it CIFAR-100\?"),
        (
            bytes(2 * RECORD),
            r"cifar10-binary/test in .* has no image of automobile, bird, .*truck; get the files again",
        ),
    ],
)
def test_a_damaged_binary_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (_binary(tmp_path) / "test_batch.bin").write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        load_cifar10(tmp_path, "test", preprocessing=cifar10_preprocessing())


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"labels": np.full(20, 10, dtype=np.int16)}, r"cifar10_train\.npz has the label 10"),
        ({"labels": np.full(20, -1, dtype=np.int16)}, r"cifar10_train\.npz has the label -1"),
        ({"labels": np.zeros(19, dtype=np.int16)}, "contradicts itself: its offsets, labels and blob do not fit"),
        ({"labels": np.zeros(20)}, "contradicts itself"),
        ({"offsets": np.zeros(21, dtype=np.int64)}, "contradicts itself"),
        ({"offsets": np.arange(21) * 10**6}, "contradicts itself"),
        ({"blob": np.zeros(10**6, dtype=np.uint8)}, r"image 0 of .*cifar10_train\.npz cannot be decoded"),
        ({"labels": np.array([{}] * 20, dtype=object)}, r"cifar10_train\.npz cannot be read: .*allow_pickle=False"),
    ],
)
def test_a_damaged_archive_is_refused(tmp_path: Path, replaced: dict[str, NDArray[np.generic]], message: str) -> None:
    _npz(tmp_path, **replaced)
    with pytest.raises(DatasetError, match=message):
        load_cifar10(tmp_path, "train", preprocessing=cifar10_preprocessing())


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    archive = _npz(tmp_path)
    archive.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(DatasetError, match=r"cifar10_train\.npz cannot be read: .*; copy it again"):
        load_cifar10(tmp_path, "train", preprocessing=cifar10_preprocessing())
    archive.write_bytes(b"no archive")
    with pytest.raises(DatasetError, match=r"cifar10_train\.npz cannot be read"):
        load_cifar10(tmp_path, "train", preprocessing=cifar10_preprocessing())


@needs_cifar10
def test_the_real_test_images_are_1000_of_each_class_and_have_the_mean_that_is_subtracted() -> None:
    preprocessing = cifar10_preprocessing()
    found = load_cifar10(data_root(), "test", preprocessing=preprocessing)
    assert found.class_names == CLASS_NAMES
    assert [tuple(images.shape) for images in found.images] == [(1000, 3, 32, 32)] * 10
    pixels = torch.cat(found.images).to(torch.float32) / 255
    torch.testing.assert_close(pixels.mean(dim=(0, 2, 3)), torch.tensor(preprocessing.mean), atol=0.01, rtol=0)
    torch.testing.assert_close(pixels.std(dim=(0, 2, 3)), torch.tensor(preprocessing.deviation), atol=0.01, rtol=0)
