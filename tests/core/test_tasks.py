"""Support sets: what cannot be learned, and an order that depends on pixels alone."""

import pytest
import torch
from torch import Tensor

from metanas.errors import InvalidTaskError
from metanas.tasks import SupportSet

IMAGES = torch.arange(5 * 4, dtype=torch.uint8).reshape(5, 1, 2, 2)
LABELS = torch.tensor([0, 1, 1, 2, 2])
NAMES = ("a", "b", "c")


@pytest.mark.parametrize(
    ("images", "labels", "names", "message"),
    [
        (IMAGES.float(), LABELS, NAMES, r"must be uint8 \(images, channels, height, width\), got torch.float32 \(5, 1"),
        (IMAGES[:, 0], LABELS, NAMES, r"support images must be uint8 .*, got torch.uint8 \(5, 2, 2\)"),
        (IMAGES, LABELS.int(), NAMES, r"labels must be int64 \(5,\), one an image, got torch.int32 \(5,\)"),
        (IMAGES, LABELS[:4], NAMES, r"labels must be int64 \(5,\), one an image, got torch.int64 \(4,\)"),
        (IMAGES, LABELS[:, None], NAMES, r"labels must be int64 \(5,\), one an image, got torch.int64 \(5, 1\)"),
        (IMAGES, torch.zeros(5, dtype=torch.int64), ("a",), "needs at least two classes to tell apart, got 1"),
        (IMAGES[:0], LABELS[:0], (), "needs at least two classes to tell apart, got 0"),
        (IMAGES, LABELS, ("a", "", "c"), "a class name is empty; give every class a name"),
        (IMAGES, LABELS, ("b", "a", "b"), "class names must be distinct, got b more than once"),
        (IMAGES, LABELS - 1, NAMES, r"labels must be 0\.\.2, got -1"),
        (IMAGES, LABELS + 5, NAMES, r"labels must be 0\.\.2, got 5"),
        (
            IMAGES,
            torch.tensor([0, 0, 2, 2, 2]),
            ("a", "b", "c", "d", "e"),
            r"no support image for class 1, 3, 4; a 5-way task needs at least one image for each of 0\.\.4",
        ),
        (IMAGES[:0], LABELS[:0], ("a", "b"), "no support image for class 0, 1; a 2-way task needs"),
    ],
)
def test_a_support_set_that_cannot_be_learned_is_refused(
    images: Tensor, labels: Tensor, names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InvalidTaskError, match=message):
        SupportSet(images, labels, names)


def test_shots_count_the_images_of_each_class() -> None:
    assert SupportSet(IMAGES, LABELS, NAMES).shots == (1, 2, 2)


def _shuffled(support: SupportSet, seed: int) -> SupportSet:
    """The same task with its classes renumbered and renamed and its images in another order."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(support.labels), generator=generator)
    renumbered = torch.randperm(support.n_way, generator=generator)
    names = tuple(f"name {seed} {label}" for label in range(support.n_way))
    return SupportSet(support.images[rows], renumbered[support.labels[rows]], names)


@pytest.mark.parametrize("seed", range(8))
def test_the_canonical_order_depends_on_neither_names_nor_numbers_nor_order(seed: int) -> None:
    support = SupportSet(IMAGES, LABELS, NAMES)
    expected, _ = support.canonical()
    found, order = _shuffled(support, seed).canonical()
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.labels, expected.labels)
    assert sorted(order) == [0, 1, 2]


@pytest.mark.parametrize("seed", range(8))
def test_the_canonical_order_stands_when_classes_share_images(seed: int) -> None:
    images = IMAGES[[0, 1, 0, 1, 1, 0, 2]]  # classes {0, 1}, {0, 1, 1}, {0, 2}
    support = SupportSet(images, torch.tensor([0, 0, 1, 1, 1, 2, 2]), NAMES)
    expected, _ = support.canonical()
    found, _ = _shuffled(support, seed).canonical()
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.labels, expected.labels)


def test_the_canonical_order_says_which_class_each_was() -> None:
    support = SupportSet(IMAGES, LABELS, NAMES)
    canonical, order = support.canonical()
    assert canonical.class_names == tuple(NAMES[label] for label in order)
    for new, old in enumerate(order):
        one = {tuple(image.flatten().tolist()) for image in canonical.images[canonical.labels == new]}
        other = {tuple(image.flatten().tolist()) for image in support.images[support.labels == old]}
        assert one == other
    assert canonical.labels.tolist() == sorted(canonical.labels.tolist())


def test_the_canonical_order_does_not_depend_on_memory_layout() -> None:
    images = torch.randint(0, 255, (5, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    one, _ = SupportSet(images, LABELS, NAMES).canonical()
    other, _ = SupportSet(images.contiguous(memory_format=torch.channels_last), LABELS, NAMES).canonical()
    assert torch.equal(one.images, other.images)
