"""Batches of the prototype and the supervised loss, drawn from memory; on a GPU while it still computes the last one.

Place        seed, phase, step and batch: what a batch depends on, and nothing else
BatchSource  place  ->  images, labels, generator
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from metanas_training.config import TrainingConfig
from metanas_training.datasets import ImageClasses
from metanas_training.episodes import generator_for, sample_images, sample_pairs

Place = tuple[int, ...]


class Batch(NamedTuple):
    """Images, and the generator of whatever else is random in learning them."""

    images: Tensor
    """uint8 ``(batch, channels, height, width)``."""
    labels: Tensor | None
    """int64 ``(batch,)``; None: pairs."""
    generator: torch.Generator


class BatchSource:
    """Draws batches of ``train``.

    Args:
        config: which loss, of how many classes. On a CPU nothing is drawn ahead: the thread would
            take the time of the step.
    """

    def __init__(self, config: TrainingConfig, train: ImageClasses) -> None:
        self._config, self._train = config, train
        self._pool = ThreadPoolExecutor(1, "batches") if config.device == "cuda" else None
        self._ahead: dict[Place, Future[Batch]] = {}

    def take(self, place: Place) -> Batch:
        """The batch of ``place``, the same whether it was drawn ahead or not."""
        future = self._ahead.pop(place, None)
        return self._draw(place) if future is None else future.result()

    def start(self, places: Sequence[Place]) -> None:
        """Begin to draw the batches that are taken next."""
        if self._pool is not None:
            self._ahead = {place: self._ahead.get(place) or self._pool.submit(self._draw, place) for place in places}

    def _draw(self, place: Place) -> Batch:
        generator, count = generator_for(*place), self._config.pair_classes
        if self._config.warm_up == "supervised":
            return Batch(*sample_images(self._train, count=2 * count, generator=generator), generator)
        return Batch(sample_pairs(self._train, count=count, generator=generator), None, generator)
