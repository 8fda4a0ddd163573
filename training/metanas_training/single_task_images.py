"""The images of a single-task search: two halves to learn from, and those to be judged by.

Labelled     images of all classes together, with their labels
halve        training classes  ->  one half for the weights, one for the architecture
together     test classes      ->  all of them, or the first of each class
augment      a batch           ->  the same, cropped and flipped at random
"""

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from metanas_training.datasets import ImageClasses
from metanas_training.episodes import generator_for
from metanas_training.errors import DatasetError

HALVES = 0
"""Place of the draw that halves the images, among the generators of a seed."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """Images with their labels."""

    images: Tensor
    """uint8 ``(images, channels, height, width)``."""
    labels: Tensor
    """int64 ``(images,)``."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fingerprint(self) -> int:
        """Equal for equal images and labels, in equal order."""
        return zlib.crc32(self.labels.numpy().tobytes(), zlib.crc32(self.images.numpy().tobytes()))


def halve(classes: ImageClasses, *, images: int, seed: int) -> tuple[Labelled, Labelled]:
    """Draw images and halve them, class by class; each half comes in random order.

    Args:
        images: of all classes and both halves together, rounded down to equal numbers; 0: as
            many as the smallest class allows.

    Returns:
        One half for the weights, one for the architecture.

    Raises:
        DatasetError: not so many images, or not one for each class and half.
    """
    generator = generator_for(seed, HALVES)
    count = len(classes.images)
    each = images // (2 * count) if images else classes.smallest // 2
    if not 1 <= each <= classes.smallest // 2:
        raise DatasetError(
            f"{images} training images of {count} classes are {each} for each class and half; the smallest class of "
            f"{classes.name} has {classes.smallest}, so train_images must be 0 or "
            f"{2 * count}..{2 * count * (classes.smallest // 2)}"
        )
    orders = [torch.randperm(len(of_class), generator=generator)[: 2 * each] for of_class in classes.images]
    halves = []
    for part in (slice(0, each), slice(each, 2 * each)):
        drawn = torch.cat([of_class[order[part]] for of_class, order in zip(classes.images, orders, strict=True)])
        labels = torch.arange(count).repeat_interleave(each)
        mixed = torch.randperm(len(labels), generator=generator)
        halves.append(Labelled(drawn[mixed], labels[mixed]))
    return halves[0], halves[1]


def together(classes: ImageClasses, *, images: int) -> Labelled:
    """All images of all classes, or the first so many, rounded down to equal numbers.

    Raises:
        DatasetError: not so many images, or not one of each class.
    """
    count = len(classes.images)
    each = images // count
    if images and not 1 <= each <= classes.smallest:
        raise DatasetError(
            f"{images} test images of {count} classes are {each} of each; the smallest class of {classes.name} has "
            f"{classes.smallest}, so test_images must be 0 or {count}..{count * classes.smallest}"
        )
    chosen = [of_class[: each or None] for of_class in classes.images]
    labels = torch.cat([torch.full((len(of_class),), label) for label, of_class in enumerate(chosen)])
    return Labelled(torch.cat(chosen), labels)


def augment(images: Tensor, *, padding: int, generator: torch.Generator) -> Tensor:
    """Shift each image by up to ``padding`` pixels, black coming in, and mirror every second one or so.

    Args:
        images: uint8 ``(batch, channels, height, width)``.

    Returns:
        The same shape and type.
    """
    batch, channels, height, width = images.shape
    padded = functional.pad(images, (padding, padding, padding, padding))
    down, right = torch.randint(0, 2 * padding + 1, (2, batch, 1), generator=generator)
    mirrored = torch.rand(batch, 1, generator=generator) < 0.5
    rows = down + torch.arange(height)
    columns = right + torch.where(mirrored, torch.arange(width - 1, -1, -1), torch.arange(width))
    return padded[
        torch.arange(batch)[:, None, None, None],
        torch.arange(channels)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
