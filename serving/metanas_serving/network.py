"""A task's network, whatever runs it.

    Network           network inputs  ->  logits; ``programs`` and ``sessions`` have the kinds of it
    images_together   how many images of a size it is best to run together

**An image scores the same alone, in any batch and in any order**, to the bit.
"""

from abc import ABC, abstractmethod

import numpy as np

from metanas_serving.blocks import Floats

# Values of the images that are run together. Larger batches leave the caches, and gain nothing an image.
_RUN_VALUES = 8 * 28 * 28


def images_together(image_size: tuple[int, int, int]) -> int:
    """Images of ``(channels, height, width)`` that it is best to run together on a CPU."""
    return max(1, _RUN_VALUES // int(np.prod(image_size[1:])))


class Network(ABC):
    """A task's network; safe to share between threads."""

    @property
    @abstractmethod
    def providers(self) -> list[str]:
        """What really computes, first to last, as ONNX Runtime calls it; the compiled engine is ``programs.ENGINE``."""

    @property
    @abstractmethod
    def memory_bytes(self) -> int:
        """What it takes for itself; what it shares with others is not counted."""

    @property
    @abstractmethod
    def batch(self) -> int:
        """Images that it is best to run together."""

    @property
    @abstractmethod
    def threads(self) -> int:
        """Processors that a run takes."""

    @abstractmethod
    def run(self, inputs: Floats, *, is_away: bool = False) -> Floats:
        """Score images.

        Args:
            inputs: ``(batch, channels, height, width)``, as ``preprocessing.scale`` makes them.
            is_away: whether to compute on another processor, if this thread is tied to one.

        Returns:
            Logits, ``(batch, classes)``.
        """
