"""Few-shot CIFAR-100 from made-up files in the layout of the binary version."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from metanas.preprocessing import picture_from_array, prepare
from metanas_training.datasets import data_root, default_preprocessing, load_classes
from metanas_training.datasets.cifar import RECORD_BYTES, load_cifar_fs, load_fc100
from metanas_training.errors import DatasetError

PAIRS = [["fish", "ray"], ["fish", "trout"], ["trees", "oak"], ["trees", "pine"], ["people", "boy"], ["people", "girl"]]
CIFAR_FS = {"train": [["fish", "ray"], ["people", "boy"]], "val": [["fish", "trout"], ["trees", "oak"]], "test": PAIRS}
FC100 = {"train": ["fish"], "val": ["trees"], "test": ["people", "fish"]}

needs_splits = pytest.mark.skipif(
    not (data_root() / "splits" / "cifar_fs.json").is_file(),
    reason=f"the split lists are not under {data_root()}; set METANAS_DATA to check them",
)


def _write(folder: Path, pairs: list[list[str]], *, train: int = 4, test: int = 1) -> None:
    """Every class with so many images, in an order without order; fine labels by name, as the original has them."""
    folder.mkdir(parents=True)
    coarse, fine = sorted({pair[0] for pair in pairs}), sorted(pair[1] for pair in pairs)
    # The original ends in an empty line.
    (folder / "coarse_label_names.txt").write_text("\n".join(coarse) + "\n\n")
    (folder / "fine_label_names.txt").write_text("\n".join(fine) + "\n\n")
    rng = np.random.default_rng(0)
    labels = {name: (coarse.index(superclass), fine.index(name)) for superclass, name in pairs}
    for file, images in (("train.bin", train), ("test.bin", test)):
        records = rng.integers(0, 256, (images * len(fine), RECORD_BYTES), dtype=np.uint8)
        records[:, :2] = rng.permutation(np.array([labels[name] for name in fine] * images, dtype=np.uint8))
        records.tofile(folder / file)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    _write(tmp_path / "cifar100", PAIRS)
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "cifar_fs.json").write_text(json.dumps(CIFAR_FS))
    (tmp_path / "splits" / "fc100_superclasses.json").write_text(json.dumps(FC100))
    return tmp_path


def test_a_class_has_its_training_images_and_then_its_test_images(root: Path) -> None:
    classes = load_cifar_fs(root, "train")
    assert classes.class_names == ("ray", "boy")
    assert classes.name == "cifar_fs/train"
    records = np.concatenate(
        [
            np.fromfile(root / "cifar100" / file, np.uint8).reshape(-1, RECORD_BYTES)
            for file in ("train.bin", "test.bin")
        ]
    )
    fine = sorted(name for _, name in PAIRS)
    for name, images in zip(classes.class_names, classes.images, strict=True):
        planes = records[records[:, 1] == fine.index(name), 2:].reshape(-1, 3, 32, 32)
        assert len(planes) == 5
        np.testing.assert_array_equal(images.numpy(), planes)


def test_other_sizes_go_through_the_preprocessing(root: Path) -> None:
    smaller = default_preprocessing("cifar_fs", image_size=16)
    native = load_classes("cifar_fs", "val", preprocessing=default_preprocessing("cifar_fs"), root=root)
    resized = load_classes("cifar_fs", "val", preprocessing=smaller, root=root)
    for image, small in zip(torch.cat(native.images), torch.cat(resized.images), strict=True):
        picture = picture_from_array(image.permute(1, 2, 0).numpy())
        np.testing.assert_array_equal(small.numpy(), prepare(picture, smaller))


def test_fc100_takes_all_classes_of_the_superclasses_of_a_split(root: Path) -> None:
    names = {split: load_fc100(root, split).class_names for split in FC100}
    assert names == {"train": ("ray", "trout"), "val": ("oak", "pine"), "test": ("boy", "girl", "ray", "trout")}
    prepared = load_classes("fc100", "val", preprocessing=default_preprocessing("fc100"), root=root)
    assert prepared.name == "fc100/val"


def test_a_limit_keeps_the_first_images_of_each_class(root: Path) -> None:
    everything, some = load_cifar_fs(root, "test"), load_cifar_fs(root, "test", limit_per_class=2)
    assert all(torch.equal(few, many[:2]) for few, many in zip(some.images, everything.images, strict=True))


def test_the_folder_may_have_the_name_it_unpacks_to(root: Path) -> None:
    wanted = load_cifar_fs(root, "train")
    (root / "cifar100").rename(root / "cifar-100-binary")
    for given in (root, root / "cifar-100-binary"):
        found = load_cifar_fs(given, "train")
        assert all(torch.equal(one, other) for one, other in zip(found.images, wanted.images, strict=True))


def test_missing_files_are_named_with_where_they_come_from(root: Path) -> None:
    (root / "cifar100" / "fine_label_names.txt").unlink()
    with pytest.raises(
        DatasetError, match=r"/cifar100 is not whole: no fine_label_names\.txt; unpack https://.*binary"
    ):
        load_cifar_fs(root, "train")
    for file in (root / "cifar100").iterdir():
        file.unlink()
    with pytest.raises(
        DatasetError,
        match=r"train\.bin and test\.bin are neither in .*/cifar100 nor in .*/cifar-100-binary; unpack the binary "
        r"version, https://.*/cifar-100-binary\.tar\.gz, there, or set METANAS_DATA or --data-root",
    ):
        load_fc100(root, "train")
    with pytest.raises(DatasetError, match="unknown split 'dev'; there are train, val and test"):
        load_cifar_fs(root, "dev")


@pytest.mark.parametrize("place", ["cifar100", "cifar-100-python", "cifar100/cifar-100-python"])
def test_pickle_files_are_not_read_but_the_binary_version_is_asked_for(tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir(parents=True)
    for file in ("train", "test", "meta"):
        (tmp_path / place / file).write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    with pytest.raises(DatasetError, match=rf"{place} holds the Python version .* pickle .* put the binary version"):
        load_cifar_fs(tmp_path, "train")


def test_a_list_of_the_split_that_is_missing_or_does_not_fit_is_named(root: Path) -> None:
    (root / "splits" / "cifar_fs.json").unlink()
    with pytest.raises(DatasetError, match=r"no splits/cifar_fs\.json in .* or beside it"):
        load_cifar_fs(root, "train")
    for rows, message in (
        ([["trees", "ray"]], r"do not fit CIFAR-100 in .*/cifar100: it names trees/ray, which is not there; copy both"),
        (["ray"], r"the train classes of .*cifar_fs\.json do not fit .*too many values to unpack"),
        ([7], "do not fit .*cannot unpack"),
    ):
        (root / "splits" / "cifar_fs.json").write_text(json.dumps({"train": rows}))
        with pytest.raises(DatasetError, match=message):
            load_cifar_fs(root, "train")
    (root / "splits" / "fc100_superclasses.json").write_text(json.dumps({"train": ["fish", "insects"]}))
    with pytest.raises(
        DatasetError, match=r"fc100_.*: it names the superclass 'insects', and there are fish, people, trees; copy"
    ):
        load_fc100(root, "train")


def test_files_that_are_cut_short_or_of_something_else_are_refused(root: Path) -> None:
    file = root / "cifar100" / "train.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    with pytest.raises(DatasetError, match=r"train\.bin has 73771 bytes, which is no whole number of records of 3074"):
        load_cifar_fs(root, "train")
    file.write_bytes(whole[:-RECORD_BYTES])
    with pytest.raises(DatasetError, match=r"train\.bin is not whole: it has 3 to 4 images of a class"):
        load_cifar_fs(root, "train")
    file.write_bytes(whole[:1] + b"\x06" + whole[2:])
    with pytest.raises(DatasetError, match=r"has the label 6 where .*/fine_label_names\.txt has 6 names"):
        load_cifar_fs(root, "train")
    file.write_bytes(bytes([(whole[0] + 1) % 3]) + whole[1:])
    with pytest.raises(DatasetError, match="put 6 classes into 7 pairs of superclass and class"):
        load_cifar_fs(root, "train")
    file.write_bytes(whole)
    (root / "cifar100" / "fine_label_names.txt").write_text("ray\nray\n")
    with pytest.raises(DatasetError, match=r"fine_label_names\.txt has 2 names, 1 of them different"):
        load_cifar_fs(root, "train")


@needs_splits
def test_the_published_splits_share_no_class_and_fc100s_no_superclass(tmp_path: Path) -> None:
    lists = json.loads((data_root() / "splits" / "cifar_fs.json").read_text())
    pairs = [pair for rows in lists.values() for pair in rows]
    _write(tmp_path / "cifar100", pairs, train=2, test=1)
    (tmp_path / "splits").symlink_to(data_root() / "splits")
    superclass = {name: of for of, name in pairs}
    for load, sizes in ((load_cifar_fs, [64, 16, 20]), (load_fc100, [60, 20, 20])):
        names = [load(tmp_path, split).class_names for split in ("train", "val", "test")]
        assert [len(of_split) for of_split in names] == sizes
        assert len({name for of_split in names for name in of_split}) == 100
    assert sum(len({superclass[name] for name in of_split}) for of_split in names) == 20
