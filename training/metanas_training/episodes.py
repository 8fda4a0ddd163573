"""Episodes: few-shot tasks sampled from memory by a seeded generator.

    generator_for   run seed and place in the run  ->  its own generator
    sample_episode  classes, ways, shots           ->  support and query images
    sample_pairs    classes                        ->  two images of each of many classes
    sample_images   classes                        ->  images of any class, with its number

Every episode has a generator of its own, made from the seed and the number of the step, so a
resumed run draws what an uninterrupted one would have drawn.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from metanas.tasks import SupportSet
from metanas_training.datasets.image_classes import ImageClasses
from metanas_training.errors import DatasetError


@dataclass(frozen=True, slots=True)
class Episode:
    """One task with what it is judged by."""

    support: SupportSet
    query_images: Tensor
    """uint8 ``(queries, channels, height, width)``."""
    query_labels: Tensor
    """int64 ``(queries,)``."""
    outside_images: Tensor | None = None
    """Of classes that are not in the task, uint8 like the queries."""


def generator_for(seed: int, *place: int) -> torch.Generator:
    """A generator that depends on the seed and on ``place``, the numbers of phase, step, task, ..."""
    state = np.random.SeedSequence([seed, *place]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))


def sample_episode(
    classes: ImageClasses, *, n_way: int, n_shot: int, n_query: int, generator: torch.Generator, outside: int = 0
) -> Episode:
    """Draw one task: ``n_way`` classes, ``n_shot`` support images each and up to ``n_query`` others.

    Args:
        outside: number of further classes, as far as there are, up to ``n_query`` images of each; the
            task itself is the same for any.

    Raises:
        DatasetError: not so many classes, or no image left to classify.
    """
    if n_way > len(classes):
        raise DatasetError(f"{classes.name} has {len(classes)} classes, too few for {n_way} ways")
    if n_query > 0 and n_shot >= classes.smallest:
        raise DatasetError(
            f"the smallest class of {classes.name} has {classes.smallest} images: {n_shot} shots leave none to classify"
        )
    support, query, support_labels, query_labels, names = [], [], [], [], []
    drawn = torch.randperm(len(classes), generator=generator)[: n_way + outside].tolist()
    for label, chosen in enumerate(drawn[:n_way]):
        images, name, turned = _class(classes, chosen)
        order = torch.randperm(len(images), generator=generator)[: n_shot + n_query]
        support.append(turned(images[order[:n_shot]]))
        query.append(turned(images[order[n_shot:]]))
        support_labels += [label] * len(support[-1])
        query_labels += [label] * len(query[-1])
        names.append(name)
    others = []
    for chosen in drawn[n_way:]:
        images, _, turned = _class(classes, chosen)
        others.append(turned(images[torch.randperm(len(images), generator=generator)[:n_query]]))
    return Episode(
        support=SupportSet(torch.cat(support), torch.tensor(support_labels), tuple(names)),
        query_images=torch.cat(query),
        query_labels=torch.tensor(query_labels, dtype=torch.int64),
        outside_images=torch.cat(others) if others else None,
    )


def sample_pairs(classes: ImageClasses, *, count: int, generator: torch.Generator) -> Tensor:
    """Two images of each of ``count`` classes (or of all, if they are fewer).

    Returns:
        uint8 ``(2 * count, channels, height, width)``: the first of every pair, then the second.
    """
    first, second = [], []
    for chosen in torch.randperm(len(classes), generator=generator)[:count].tolist():
        images, _, turned = _class(classes, chosen)
        pair = turned(images[torch.randperm(len(images), generator=generator)[:2]])
        first.append(pair[0])
        second.append(pair[1])
    return torch.stack(first + second)


def sample_images(classes: ImageClasses, *, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One image each of ``count`` classes drawn with replacement.

    Returns:
        uint8 ``(count, channels, height, width)`` and int64 ``(count,)``, the number of the class.
    """
    labels = torch.randint(len(classes), (count,), generator=generator)
    places = torch.rand(count, generator=generator, dtype=torch.float64).tolist()
    drawn = []
    for label, place in zip(labels.tolist(), places, strict=True):
        images = classes.images[label % len(classes.images)]
        drawn.append(images[int(place * len(images))])
    pictures = torch.stack(drawn)
    versions = labels // len(classes.images)
    for version in range(1, len(classes) // len(classes.images)):
        chosen = versions == version
        pictures[chosen] = _turned(pictures[chosen], *divmod(version, classes.rotations))
    return pictures, labels


def _class(classes: ImageClasses, chosen: int) -> tuple[Tensor, str, Callable[[Tensor], Tensor]]:
    """The images that class ``chosen`` is made of, its name, and what makes some of those images its own."""
    version, base = divmod(chosen, len(classes.images))
    mirrored, turn = divmod(version, classes.rotations)
    name = classes.class_names[base] + (f"@{90 * turn}" if turn else "") + ("@mirrored" if mirrored else "")
    # Not all images of the class here and now: there may be hundreds, of which few are drawn.
    return classes.images[base], name, partial(_turned, mirrored=mirrored, turn=turn)


def _turned(images: Tensor, mirrored: int, turn: int) -> Tensor:
    """``images`` turned by so many quarters, then mirrored if ``mirrored`` is 1."""
    images = torch.rot90(images, turn, dims=(2, 3)) if turn else images
    return images.flip(3) if mirrored else images
