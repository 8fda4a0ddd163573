"""torchmeta 1.8.0 itself, its files read without it, and our own readers: the same classes, the same pixels.

Copies of the data sets are small and made here, the one of Omniglot by torchmeta's own writer: once from generated
drawings, so that something always runs, once from real ones where METANAS_DATA has them.
"""

import importlib
import importlib.util
import io
import json
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from metanas.preprocessing import Preprocessing
from metanas_training.datasets import ImageClasses, data_root, default_preprocessing, load_classes
from metanas_training.datasets.cifar import RECORD_BYTES, load_cifar_fs
from metanas_training.datasets.miniimagenet import load_miniimagenet
from metanas_training.datasets.omniglot import load_omniglot
from metanas_training.datasets.torchmeta import FORMATS, classes_from, import_torchmeta, read_hdf5
from metanas_training.datasets.torchvision_stand_in import (
    CenterCrop,
    Compose,
    Resize,
    ToTensor,
    download_url,
    list_dir,
    rotate,
    stand_in_modules,
)
from metanas_training.episodes import sample_episode
from metanas_training.errors import DatasetError

needs_torchmeta = pytest.mark.skipif(
    importlib.util.find_spec("torchmeta") is None,
    reason="torchmeta is not installed; `make test` does: pip install --no-deps torchmeta==1.8.0",
)

DRAWINGS = default_preprocessing("omniglot")
ORIGINALS = Preprocessing(height=105, width=105, invert=True)
REAL_ALPHABETS = ("Alphabet_of_the_Magi", "Tagalog")
"""All their characters are in Vinyals' training split; the first five of each are enough here."""


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert("1").save(file, "PNG")
    return file.getvalue()


def _generated_drawings() -> dict[str, bytes]:
    """Two alphabets of two characters of three drawings, in the layout of the official zips."""
    rng = np.random.default_rng(0)
    return {
        f"images_background/Alphabet_{alphabet}/character0{character}/000{character}_0{drawing}.png": _png(
            np.kron(rng.integers(0, 2, (15, 15), dtype=np.uint8) * 255, np.ones((7, 7), np.uint8))
        )
        for alphabet in "AB" for character in (1, 2) for drawing in (1, 2, 3)
    }  # fmt: skip


def _real_drawings() -> dict[str, bytes]:
    archive = data_root() / "omniglot" / "images_background.zip"
    if not archive.is_file():
        pytest.skip(f"Omniglot is not under {data_root()}; set METANAS_DATA to check torchmeta with real drawings")
    with zipfile.ZipFile(archive) as files:
        drawings = [name for name in files.namelist() if name.endswith(".png")]
        wanted = {(alphabet, f"character{number:02}") for alphabet in REAL_ALPHABETS for number in range(1, 6)}
        return {name: files.read(name) for name in drawings if tuple(name.split("/")[1:3]) in wanted}


@pytest.fixture(scope="module", params=["generated", "real"])
def omniglot_root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Omniglot: zips for our reader, and the HDF5 and label files that torchmeta makes of them."""
    if importlib.util.find_spec("torchmeta") is None:
        pytest.skip("torchmeta, whose own writer makes this copy, is not installed")
    drawings = _generated_drawings() if request.param == "generated" else _real_drawings()
    root = tmp_path_factory.mktemp(request.param)
    folder = root / "omniglot"
    for part in ("background", "evaluation"):
        (folder / f"images_{part}").mkdir(parents=True)
        with zipfile.ZipFile(folder / f"images_{part}.zip", "w") as archive:
            for name, content in drawings.items():
                if name.startswith(f"images_{part}/"):
                    archive.writestr(name, content)
        # torchmeta unpacks only what it has fetched itself.
        with zipfile.ZipFile(folder / f"images_{part}.zip") as archive:
            archive.extractall(folder)
    characters = sorted({tuple(name.split("/")[:3]) for name in drawings})
    torchmeta = import_torchmeta()
    torchmeta.datasets.Omniglot(root, num_classes_per_task=2, meta_train=True, download=True)
    # What it wrote as Vinyals' split names all 1,028 characters; only these are here.
    label_file = folder / "vinyals_train_labels.json"
    written = json.loads(label_file.read_text())
    assert len(written) == 1028
    assert request.param == "generated" or all(list(character) in written for character in characters)
    label_file.write_text(json.dumps(characters))
    (root / "splits").mkdir()
    rows = [[part.removeprefix("images_"), *rest] for part, *rest in characters]
    (root / "splits" / "omniglot_vinyals.json").write_text(json.dumps({"train": rows}))
    return root


def _omniglot(root: Path, **arguments: Any) -> Any:
    """Torchmeta's Omniglot with the usual rotations; pictures unless a transform is given."""
    torchmeta = import_torchmeta()
    turned = [torchmeta.transforms.Rotation([90, 180, 270])]
    return torchmeta.datasets.Omniglot(
        root, num_classes_per_task=2, meta_train=True, class_augmentations=turned, **arguments
    )


def _all_classes(classes: ImageClasses) -> list[Tensor]:
    """The images of each class, turned ones included, in the order in which episodes number them."""
    return [torch.rot90(images, turn, dims=(2, 3)) for turn in range(classes.rotations) for images in classes.images]


def _all_names(classes: ImageClasses) -> list[str]:
    turned = [f"{name}@{90 * turn}" for turn in range(1, classes.rotations) for name in classes.class_names]
    return [*classes.class_names, *turned]


@needs_torchmeta
def test_omniglot_through_torchmeta_and_from_its_file_are_the_same_classes(omniglot_root: Path) -> None:
    through = classes_from(_omniglot(omniglot_root), preprocessing=ORIGINALS)
    direct = read_hdf5(omniglot_root, "omniglot", split="train", preprocessing=ORIGINALS)
    assert (through.name, direct.name) == ("torchmeta:Omniglot/train", "torchmeta:omniglot/train")
    assert (through.rotations, direct.rotations) == (1, 4)
    assert len(through) == len(direct)
    assert list(through.class_names) == _all_names(direct)
    assert all(torch.equal(one, other) for one, other in zip(through.images, _all_classes(direct), strict=True))


@needs_torchmeta
def test_at_28_pixels_only_turned_drawings_differ_and_by_rounding_only(omniglot_root: Path) -> None:
    through = classes_from(_omniglot(omniglot_root), preprocessing=DRAWINGS)
    direct = load_classes("torchmeta:omniglot", "train", preprocessing=DRAWINGS, root=omniglot_root)
    for number, (one, other) in enumerate(zip(through.images, _all_classes(direct), strict=True)):
        assert one.shape[1:] == (1, 28, 28)
        assert (one.int() - other.int()).abs().max() <= (0 if number < len(direct.images) else 1)


@needs_torchmeta
def test_torchmetas_omniglot_has_the_pixels_of_our_reader(omniglot_root: Path) -> None:
    direct = read_hdf5(omniglot_root, "omniglot", split="train", preprocessing=DRAWINGS)
    ours = load_omniglot(omniglot_root, "train", source="zip")
    assert [f"images_background/{name}" for name in ours.class_names] == list(direct.class_names)
    for one, other in zip(ours.images, direct.images, strict=True):
        # torchmeta keeps the order in which the file system listed the drawings.
        assert sorted(image.numpy().tobytes() for image in one) == sorted(image.numpy().tobytes() for image in other)


@needs_torchmeta
def test_torchmetas_helper_with_float_tensors_gives_the_same_bytes_as_pictures(omniglot_root: Path) -> None:
    torchmeta = import_torchmeta()
    tensors = torchmeta.datasets.helpers.omniglot(
        str(omniglot_root), shots=1, ways=2, test_shots=1, meta_train=True, seed=0
    )
    assert tensors.dataset[0][0][0].dtype == torch.float32
    of_tensors = classes_from(tensors, preprocessing=DRAWINGS)
    of_pictures = classes_from(_omniglot(omniglot_root), preprocessing=DRAWINGS)
    assert of_tensors.class_names == of_pictures.class_names
    assert all(torch.equal(one, other) for one, other in zip(of_tensors.images, of_pictures.images, strict=True))
    episode = sample_episode(of_tensors, n_way=2, n_shot=1, n_query=1, generator=torch.Generator().manual_seed(0))
    assert episode.support.images.shape == (2, 1, 28, 28)


@needs_torchmeta
def test_torchmetas_own_loader_samples_tasks_on_this_torch(omniglot_root: Path) -> None:
    torchmeta = import_torchmeta()
    tasks = torchmeta.datasets.helpers.omniglot(
        str(omniglot_root), shots=1, ways=3, test_shots=2, meta_train=True, seed=0
    )
    batch = next(iter(torchmeta.utils.data.BatchMetaDataLoader(tasks, batch_size=2)))
    images, labels = batch["train"]
    assert images.shape == (2, 3, 1, 28, 28)
    assert sorted(labels[0].tolist()) == [0, 1, 2]
    assert batch["test"][0].shape == (2, 6, 1, 28, 28)
    task = tasks.sample_task()["train"]
    assert torch.equal(next(iter(torch.utils.data.DataLoader(task, batch_size=3)))[0][0], task[0][0])


@pytest.fixture(params=["generated", "real"])
def miniimagenet_root(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, tuple[Tensor, ...]]:
    """Three validation images a class as torchmeta writes them, and those images."""
    if request.param == "generated":
        drawn = torch.randint(0, 256, (3, 3, 3, 84, 84), generator=torch.Generator().manual_seed(0))
        images, labels = tuple(drawn.to(torch.uint8)), ["n01", "n02", "n03"]
    else:
        archive = data_root() / "miniimagenet" / "miniimagenet_val.npz"
        if not archive.is_file():
            pytest.skip(f"miniImageNet is not under {data_root()}; set METANAS_DATA to check torchmeta with its images")
        images = load_miniimagenet(data_root(), "val", limit_per_class=3).images
        with np.load(archive) as arrays:
            labels = arrays["wnids"].tolist()
    folder = tmp_path / "miniimagenet"
    folder.mkdir()
    with h5py.File(folder / "val_data.hdf5", "w") as file:
        group = file.create_group("datasets")
        for label, of_class in zip(labels, images, strict=True):
            group.create_dataset(label, data=of_class.permute(0, 2, 3, 1).numpy())
    (folder / "val_labels.json").write_text(json.dumps(labels))
    return tmp_path, images


@needs_torchmeta
def test_miniimagenet_is_the_same_through_torchmeta_from_its_file_and_by_our_reader(
    miniimagenet_root: tuple[Path, tuple[Tensor, ...]],
) -> None:
    root, images = miniimagenet_root
    preprocessing = default_preprocessing("torchmeta:miniimagenet")
    torchmeta = import_torchmeta()
    through = classes_from(
        torchmeta.datasets.MiniImagenet(root, num_classes_per_task=2, meta_val=True), preprocessing=preprocessing
    )
    direct = load_classes("torchmeta:miniimagenet", "val", preprocessing=preprocessing, root=root)
    assert through.class_names == direct.class_names
    for one, other, ours in zip(through.images, direct.images, images, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, ours)


@pytest.fixture
def cifar_root(tmp_path: Path) -> Path:
    """Three classes of CIFAR-100 as torchmeta writes them and, the same pixels, in the binary version."""
    pairs = [["fish", "ray"], ["fish", "trout"], ["trees", "oak"]]
    planes = np.random.default_rng(0).integers(0, 256, (3, 2, 3, 32, 32), dtype=np.uint8)
    folder = tmp_path / "cifar100"
    for subfolder in ("cifar-fs", "fc100"):
        (folder / subfolder).mkdir(parents=True)
        (folder / subfolder / "train_labels.json").write_text(json.dumps(pairs))
    with h5py.File(folder / "data.hdf5", "w") as file:
        for pair, of_class in zip(pairs, planes, strict=True):
            file.create_dataset("/".join(pair), data=of_class.transpose(0, 2, 3, 1))
    (folder / "fine_names.json").write_text(json.dumps({"fish": ["ray", "trout"], "trees": ["oak"]}))
    (folder / "coarse_label_names.txt").write_text("fish\ntrees\n")
    (folder / "fine_label_names.txt").write_text("oak\nray\ntrout\n")
    records = np.empty((3, RECORD_BYTES), dtype=np.uint8)
    records[:, :2] = [[0, 1], [0, 2], [1, 0]]
    for drawing, name in enumerate(("train.bin", "test.bin")):
        records[:, 2:] = planes[:, drawing].reshape(3, -1)
        records.tofile(folder / name)
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "cifar_fs.json").write_text(json.dumps({"train": pairs}))
    return tmp_path


@needs_torchmeta
def test_cifar_fs_is_the_same_through_torchmeta_from_its_file_and_by_our_reader(cifar_root: Path) -> None:
    preprocessing = default_preprocessing("torchmeta:cifar_fs")
    assert preprocessing == default_preprocessing("cifar_fs")
    torchmeta = import_torchmeta()
    through = classes_from(
        torchmeta.datasets.CIFARFS(cifar_root, num_classes_per_task=2, meta_train=True), preprocessing=preprocessing
    )
    direct = load_classes("torchmeta:cifar_fs", "train", preprocessing=preprocessing, root=cifar_root)
    ours = load_cifar_fs(cifar_root, "train")
    assert through.class_names == direct.class_names == ("fish/ray", "fish/trout", "trees/oak")
    assert ours.class_names == ("ray", "trout", "oak")
    for one, other, own in zip(through.images, direct.images, ours.images, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, own)
    fc100 = load_classes("torchmeta:fc100", "train", preprocessing=preprocessing, root=cifar_root)
    assert fc100.class_names == direct.class_names


@needs_torchmeta
def test_a_limit_keeps_the_first_images_of_each_class_on_both_ways(cifar_root: Path) -> None:
    preprocessing = default_preprocessing("cifar_fs")
    with h5py.File(cifar_root / "cifar100" / "data.hdf5", "r+") as file:
        for path in ("fish/ray", "fish/trout", "trees/oak"):
            pixels = np.concatenate([file[path][:], file[path][:] // 2])
            del file[path]
            file[path] = pixels
    torchmeta = import_torchmeta()
    everything = torchmeta.datasets.CIFARFS(cifar_root, num_classes_per_task=2, meta_train=True)
    through = classes_from(everything, preprocessing=preprocessing, limit_per_class=3)
    direct = read_hdf5(cifar_root, "cifar_fs", split="train", preprocessing=preprocessing, limit_per_class=3)
    whole = read_hdf5(cifar_root, "cifar_fs", split="train", preprocessing=preprocessing)
    assert whole.smallest == 4
    for one, other, all_images in zip(through.images, direct.images, whole.images, strict=True):
        assert torch.equal(one, all_images[:3])
        assert torch.equal(other, all_images[:3])


def _own(items: list[list[Any]], *, augmentations: list[Any] | None = None, labels: list[Any] | None = None) -> Any:
    """A user's own data set in torchmeta's terms: ``items[class][image]``."""
    data = import_torchmeta().utils.data

    class OfOneClass(data.Dataset):  # type: ignore[misc, name-defined]
        def __init__(self, index: int, images: list[Any], label: Any, **transforms: Any) -> None:
            super().__init__(index, **transforms)
            self.images, self.label = images, label

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, index: int) -> tuple[Any, Any]:
            image = self.images[index]
            return (self.transform(image) if self.transform else image), self.target_transform(self.label)

    class OfClasses(data.ClassDataset):  # type: ignore[misc, name-defined]
        num_classes = len(items)

        def __getitem__(self, index: int) -> OfOneClass:
            number = index % len(items)
            return OfOneClass(
                index, items[number], labels[number] if labels else number,
                transform=self.get_transform(index), target_transform=self.get_target_transform(index),
            )  # fmt: skip

    return data.CombinationMetaDataset(OfClasses(meta_train=True, class_augmentations=augmentations), 2)


@needs_torchmeta
def test_a_users_own_class_dataset_is_read_with_its_flips_as_classes() -> None:
    rng = np.random.default_rng(0)
    pictures = [[Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)) for _ in "ab"] for _ in "abc"]
    flips = [import_torchmeta().transforms.HorizontalFlip()]
    classes = classes_from(
        _own(pictures, augmentations=flips), preprocessing=Preprocessing(channels=3, height=6, width=6,
        mean=(0.0,) * 3, deviation=(1.0,) * 3), name="mine",
    )  # fmt: skip
    assert classes.class_names == ("0", "1", "2", *(f"{number}@HorizontalFlip()" for number in range(3)))
    assert classes.name == "mine"
    for plain, flipped in zip(classes.images[:3], classes.images[3:], strict=True):
        assert torch.equal(plain.flip(3), flipped)


@needs_torchmeta
@pytest.mark.parametrize("convert", [
    lambda pixels: pixels,
    lambda pixels: pixels.astype(np.float64) / 255,
    lambda pixels: torch.from_numpy(pixels)[None],
    lambda pixels: torch.from_numpy(pixels)[None].float() / 255,
    lambda pixels: (torch.from_numpy(pixels)[None].float() / 255).expand(3, -1, -1),
], ids=["uint8 array", "float array", "uint8 tensor", "float tensor", "grey as RGB"])  # fmt: skip
def test_arrays_and_tensors_are_taken_as_the_pictures_they_are(convert: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 2, 5, 7), dtype=np.uint8)
    items = [[convert(image) for image in of_class] for of_class in pixels]
    classes = classes_from(_own(items), preprocessing=Preprocessing(height=5, width=7))
    np.testing.assert_array_equal(torch.stack(classes.images)[:, :, 0].numpy(), pixels)


@needs_torchmeta
def test_what_is_no_image_or_has_no_classes_is_refused() -> None:
    grey = Preprocessing(height=5, width=5)
    normalised = [[torch.full((1, 5, 5), -0.5)] * 2] * 2
    with pytest.raises(
        DatasetError,
        match=r"image 0 of class '0' of torchmeta:CombinationMetaDataset/train cannot be used: float pixels must be in "
        r"\[0, 1\], got -0\.5 to -0\.5; .* leave scaling by mean and deviation to the preprocessing",
    ):
        classes_from(_own(normalised), preprocessing=grey)
    with pytest.raises(DatasetError, match=r"got \(12,\)"):
        classes_from(_own([[torch.zeros(12)] * 2] * 2), preprocessing=grey)
    with pytest.raises(DatasetError, match="a str is no picture, array or tensor"):
        classes_from(_own([["no image"] * 2] * 2), preprocessing=grey)
    with pytest.raises(DatasetError, match="mine has 1 names that classes share, as 'cat'; give each its own"):
        classes_from(_own([[torch.zeros(1, 5, 5)] * 2] * 2, labels=["cat"] * 2), preprocessing=grey, name="mine")
    sinusoids = import_torchmeta().toy.Sinusoid(num_samples_per_task=5)
    with pytest.raises(DatasetError, match="a Sinusoid has no classes to read; give a CombinationMetaDataset"):
        classes_from(sinusoids, preprocessing=grey)


def test_missing_files_and_unknown_names_are_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError,
        match=r"torchmeta's omniglot is not there: no .*/omniglot/data\.hdf5 and no .*/vinyals_val_labels\.json; let "
        r"torchmeta write it once with download=True, or set METANAS_DATA or --data-root",
    ):
        read_hdf5(tmp_path, "omniglot", split="val", preprocessing=DRAWINGS)
    with pytest.raises(
        DatasetError, match=r"unknown data set 'torchmeta:cub'; .* omniglot, miniimagenet, cifar_fs, fc1"
    ):
        load_classes("torchmeta:cub", "val", preprocessing=DRAWINGS, root=tmp_path)
    with pytest.raises(DatasetError, match="unknown split 'dev'; there are train, val and test"):
        read_hdf5(tmp_path, "omniglot", split="dev", preprocessing=DRAWINGS)


def test_files_that_are_damaged_or_do_not_fit_together_are_refused(cifar_root: Path) -> None:
    def read() -> ImageClasses:
        return read_hdf5(cifar_root, "cifar_fs", split="train", preprocessing=default_preprocessing("cifar_fs"))

    file, labels = cifar_root / "cifar100" / "data.hdf5", cifar_root / "cifar100" / "cifar-fs" / "train_labels.json"
    assert len(read()) == 3
    for wrong in (["fish", "shark"], ["fish"]):
        labels.write_text(json.dumps([wrong]))
        with pytest.raises(
            DatasetError, match=rf"data\.hdf5 has no array {'/'.join(wrong)}, which its list of classes"
        ):
            read()
    labels.write_text("[]")
    with pytest.raises(DatasetError, match=r"train_labels\.json is no list of classes; let torchmeta write it again"):
        read()
    labels.write_text("[")
    with pytest.raises(
        DatasetError, match=r"train_labels\.json cannot be read as JSON: .*; let torchmeta write it again"
    ):
        read()
    labels.write_text(json.dumps([["fish", "ray"], ["fish", "tench"]]))
    with h5py.File(file, "r+") as content:
        content["fish/tench"] = np.zeros((2, 32, 32, 3), dtype=np.float32)
    with pytest.raises(DatasetError, match=r"fish/tench in .*data\.hdf5 is float32\(2, 32, 32, 3\), not uint8"):
        read()
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DatasetError, match=r"data\.hdf5 cannot be read: .*; let torchmeta write it again"):
        read()


def test_packages_that_are_not_installed_are_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "h5py", None)
        with pytest.raises(
            DatasetError, match=r'package h5py, which is not installed: pip install "metanas-edge\[torch'
        ):
            read_hdf5(tmp_path, "omniglot", split="val", preprocessing=DRAWINGS)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torchmeta", None)
        with pytest.raises(
            DatasetError, match=r"install it without them: pip install --no-deps torchmeta==1\.8\.0 && "
        ):
            classes_from(object(), preprocessing=DRAWINGS)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """torchmeta and torchvision as if nothing had imported them; afterwards as before."""
    with monkeypatch.context() as patch:
        for name in [name for name in sys.modules if name.split(".")[0] in ("torchmeta", "torchvision")]:
            patch.delitem(sys.modules, name)
        yield patch
        for name in [name for name in sys.modules if name.split(".")[0] in ("torchmeta", "torchvision")]:
            del sys.modules[name]


@needs_torchmeta
@pytest.mark.parametrize("kind", ["missing", "broken"])
def test_without_a_working_torchvision_stand_ins_are_there_during_the_import_only(
    fresh: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    if kind == "missing":
        fresh.setitem(sys.modules, "torchvision", None)
    else:
        (tmp_path / "torchvision").mkdir()
        (tmp_path / "torchvision" / "extension.py").write_text("")
        broken = "import torchvision.extension\nraise RuntimeError('operator torchvision::nms does not exist')"
        (tmp_path / "torchvision" / "__init__.py").write_text(broken)
        fresh.syspath_prepend(tmp_path)
    before = {name for name in sys.modules if name.split(".")[0] == "torchvision"}
    torchmeta = import_torchmeta()
    assert {name for name in sys.modules if name.split(".")[0] == "torchvision"} == before
    assert torchmeta.transforms.Rotation([90])
    assert import_torchmeta() is torchmeta
    importlib.invalidate_caches()
    with pytest.raises((ModuleNotFoundError, RuntimeError)):
        importlib.import_module("torchvision")


@needs_torchmeta
def test_a_working_torchvision_is_used_and_left_as_it_was(fresh: pytest.MonkeyPatch) -> None:
    modules = stand_in_modules()
    utilities = modules["torchvision.datasets.utils"]
    removed = ("_get_confirm_token", "_save_response_content")  # as in today's torchvision
    for name in removed:
        delattr(utilities, name)
    for name, module in modules.items():
        fresh.setitem(sys.modules, name, module)
    torchmeta = import_torchmeta()
    assert torchmeta.datasets.omniglot.list_dir is utilities.list_dir
    assert sys.modules["torchvision"] is modules["torchvision"]
    assert not any(hasattr(utilities, name) for name in removed)
    with pytest.raises(DatasetError, match="torchmeta can no longer fetch from Google Drive"):
        torchmeta.datasets.utils._get_confirm_token(None)


@needs_torchmeta
def test_a_requirement_of_torchmeta_that_is_missing_is_named(fresh: pytest.MonkeyPatch) -> None:
    fresh.setitem(sys.modules, "ordered_set", None)
    with pytest.raises(
        DatasetError, match=r"torchmeta cannot be imported \(.*ordered_set.*\); .*metanas-edge\[torchme"
    ):
        import_torchmeta()


def test_stand_ins_change_pictures_as_torchvision_does() -> None:
    picture = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6))
    assert Resize(2)(picture).size == (3, 2)  # the shorter side
    assert Resize((5, 7))(picture).size == (7, 5)  # height, width
    np.testing.assert_array_equal(np.asarray(CenterCrop(2)(picture)), [[8, 9], [14, 15]])
    np.testing.assert_array_equal(np.asarray(rotate(picture, 180)), np.asarray(picture)[::-1, ::-1])
    square = Image.fromarray(np.array([[1, 2], [3, 4]], dtype=np.uint8))
    np.testing.assert_array_equal(np.asarray(rotate(square, 90, False, False, None, fill=(0,))), [[2, 4], [1, 3]])
    both = Compose([CenterCrop(2), ToTensor()])
    torch.testing.assert_close(both(picture), torch.tensor([[[8.0, 9.0], [14.0, 15.0]]]) / 255)
    assert ToTensor()(Image.new("1", (2, 1), 1)).tolist() == [[[1.0, 1.0]]]
    assert ToTensor()(Image.new("I", (1, 1), 300)).tolist() == [[[300]]]
    assert ToTensor()(Image.new("RGB", (3, 2))).shape == (3, 2, 3)


def test_the_stand_in_for_downloads_checks_what_came(tmp_path: Path) -> None:
    source = tmp_path / "there" / "data.zip"
    source.parent.mkdir()
    source.write_bytes(b"hello")
    download_url(source.as_uri(), str(tmp_path / "here"), md5="5d41402abc4b2a76b9719d911017c592")
    assert (tmp_path / "here" / "data.zip").read_bytes() == b"hello"
    with pytest.raises(
        DatasetError, match=r"gave a file with another MD5 than 00; put the right one at .*/other by hand"
    ):
        download_url(source.as_uri(), str(tmp_path / "here"), "other", "00")
    assert not (tmp_path / "here" / "other").exists()
    assert set(list_dir(str(tmp_path))) == {"there", "here"}
    assert str(tmp_path / "there") in list_dir(str(tmp_path), prefix=True)
    shutil.rmtree(source.parent)
    download_url(source.as_uri(), str(tmp_path / "here"), md5="5d41402abc4b2a76b9719d911017c592")  # not fetched again


def test_each_name_of_torchmeta_is_prepared_as_ours_of_that_name() -> None:
    assert set(FORMATS) == {"omniglot", "miniimagenet", "cifar_fs", "fc100"}
    for name in FORMATS:
        assert default_preprocessing(f"torchmeta:{name}") == default_preprocessing(name)
        assert default_preprocessing(f"torchmeta:{name}", image_size=20).width == 20
