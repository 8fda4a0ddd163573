"""What there is to learn: a handful of labelled pictures.

    SupportSet   prepared pixels, a class number for each, the classes' names

A support set has a canonical order that depends on its pixels alone. Adaptation works in
that order, so neither the names of the classes nor the order in which images arrive can
change what is learned: relabelling permutes the answers and changes nothing else.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from metanas.errors import InvalidTaskError


@dataclass(frozen=True, slots=True)
class SupportSet:
    """The labelled images of one task.

    Raises:
        InvalidTaskError: shapes or types that do not fit, fewer than two classes, a class
            without images, or names that are empty or not distinct.
    """

    images: Tensor
    """uint8 ``(images, channels, height, width)``, as ``preprocessing.prepare`` makes them."""
    labels: Tensor
    """int64 ``(images,)``, class numbers from 0."""
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise InvalidTaskError(
                "support images must be uint8 (images, channels, height, width), "
                f"got {self.images.dtype} {tuple(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise InvalidTaskError(
                f"labels must be int64 ({len(self.images)},), one an image, "
                f"got {self.labels.dtype} {tuple(self.labels.shape)}"
            )
        n_way = len(self.class_names)
        if n_way < 2:
            raise InvalidTaskError(f"a task needs at least two classes to tell apart, got {n_way}")
        if any(not name for name in self.class_names):
            raise InvalidTaskError("a class name is empty; give every class a name")
        if len(set(self.class_names)) != n_way:
            twice = sorted({name for name in self.class_names if self.class_names.count(name) > 1})
            raise InvalidTaskError(f"class names must be distinct, got {', '.join(twice)} more than once")
        shots = torch.bincount(self.labels.clamp(min=0), minlength=n_way)
        outside = (self.labels < 0) | (self.labels >= n_way)
        if bool(outside.any()):
            raise InvalidTaskError(f"labels must be 0..{n_way - 1}, got {int(self.labels[outside][0])}")
        missing = [str(index) for index in range(n_way) if shots[index] == 0]
        if missing:
            raise InvalidTaskError(
                f"no support image for class {', '.join(missing)}; a {n_way}-way task needs at least one image "
                f"for each of 0..{n_way - 1}"
            )

    @property
    def n_way(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def shots(self) -> tuple[int, ...]:
        """Number of images of each class."""
        return tuple(torch.bincount(self.labels, minlength=self.n_way).tolist())

    def canonical(self) -> tuple["SupportSet", tuple[int, ...]]:
        """The same set in an order that depends on pixels alone.

        Returns:
            The reordered set, and for each of its classes the class number it has here.
        """
        digests = [hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest() for image in self.images.cpu()]
        labels = self.labels.tolist()
        members: list[list[int]] = [[] for _ in self.class_names]
        for index in sorted(range(len(digests)), key=lambda index: digests[index]):
            members[labels[index]].append(index)
        order = sorted(range(self.n_way), key=lambda label: [digests[index] for index in members[label]])
        rows = [index for label in order for index in members[label]]
        new_labels = [new for new, label in enumerate(order) for _ in members[label]]
        return (
            SupportSet(
                images=self.images[rows],
                labels=torch.tensor(new_labels, dtype=torch.int64),
                class_names=tuple(self.class_names[label] for label in order),
            ),
            tuple(order),
        )
