"""Support images in the order that a seed gives, batch by batch."""

import torch
from torch import Tensor


class Batches:
    """An endless stream of batches over ``count`` images; all of them where they fit in one batch.

    Each pass over the images is a new permutation; a batch may span two passes.
    """

    def __init__(self, count: int, *, batch_size: int, generator: torch.Generator) -> None:
        self._count = count
        self._size = min(batch_size, count)
        self._generator = generator
        self._left = torch.empty(0, dtype=torch.int64)

    def next(self) -> Tensor:
        """Indices of the next batch, int64 ``(min(batch_size, count),)``."""
        if self._size == self._count:
            return torch.arange(self._count)
        while len(self._left) < self._size:
            self._left = torch.cat((self._left, torch.randperm(self._count, generator=self._generator)))
        batch, self._left = self._left[: self._size], self._left[self._size :]
        return batch
