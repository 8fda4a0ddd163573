"""How images of one class differ, learned from training classes: what a task's steps guard against.

    within_class     features, labels  ->  the covariance of features within their classes
    Variation        that covariance, how much it counts, and how fast a head moves under it

One picture of a class says nothing of what the next will look like, and a few pictures that are classified right from
the start give gradient steps nothing to do. So the loss of a step is that of features that vary as
those of training classes do: its expectation over normal noise of that covariance has an upper bound in closed form,
one term more for each logit.

Source: Wang et al. (ISDA), arXiv 1909.12220, equation 6; there the covariance is of each training class.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from metanas.errors import InvalidConfigError


@dataclass(frozen=True, slots=True)
class Variation:
    """The covariance of features within classes, and how steps use it.

    Raises:
        InvalidConfigError: a covariance that is none, or a number out of range; the message names it.
    """

    covariance: Tensor
    """``(features, features)`` float32, of unit-length features; ``within_class`` makes it."""
    strength: float
    """What the covariance is multiplied by for a class of one shot; where there are more, they show part of it, and it
    is divided by their number. 0: features vary no more than those of the support images."""
    softening: float
    """Logits are divided by it in the loss, so that what is classified right still has a gradient."""
    head_rate: float
    """Learning rate of the head at first, times ``softening``, in plain steps: its rows are far longer than other
    weights."""

    def __post_init__(self) -> None:
        matrix = self.covariance
        if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.isfinite().all():
            raise InvalidConfigError(f"variation: a covariance is a finite square matrix, got {tuple(matrix.shape)}")
        if not torch.allclose(matrix, matrix.T, rtol=1e-4, atol=1e-6) or (matrix.diagonal() < 0).any():
            raise InvalidConfigError("variation: a covariance is symmetric, with no negative variance")
        for name, least in (("strength", 0.0), ("softening", 1.0), ("head_rate", 0.0)):
            value = getattr(self, name)
            if not (isinstance(value, float) and least <= value < math.inf):
                raise InvalidConfigError(f"variation: {name} must be at least {least:g} and finite, got {value!r}")

    def numbers(self) -> dict[str, float]:
        """All but the covariance, for files."""
        return {"strength": self.strength, "softening": self.softening, "head_rate": self.head_rate}

    def head_rates(self, *, steps: int) -> Tensor:
        """Learning rate of the head at each step of a task, ``(steps,)``: it falls linearly towards 0."""
        return self.softening * self.head_rate * (1.0 - torch.arange(max(1, steps)) / max(1, steps))

    def harden(self, logits: Tensor, labels: Tensor, rows: Tensor, class_weights: Tensor) -> Tensor:
        """The logits that a step's cross-entropy takes.

        Args:
            logits: ``(batch, n_way)``.
            labels: int64 ``(batch,)``.
            rows: of the head that made them, ``(n_way, features)``.
            class_weights: ``(n_way,)``, one over the shots of each class.

        Returns:
            ``(batch, n_way)``: each wrong class is more probable, the more so the further features vary from the right
            class towards it.
        """
        products = rows @ self.covariance.to(rows.device) @ rows.T
        own = products.diagonal()
        spread = own + own[labels].unsqueeze(1) - 2.0 * products[labels]
        strength = self.strength * class_weights[labels].unsqueeze(1)
        return (logits + 0.5 * strength * spread) / self.softening


def within_class(features: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Deviations of unit-length features from the mean of their class, as a sum of products.

    Args:
        features: ``(images, features)`` float32.
        labels: int64 ``(images,)``.

    Returns:
        ``(features, features)`` float64, and the degrees of freedom: images less classes. The sums of several tasks
        over the sum of their degrees are a covariance.
    """
    unit = functional.normalize(features, dim=1).double()
    classes, labels = labels.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    membership = functional.one_hot(labels, len(classes)).to(unit.dtype)
    means = (membership / membership.sum(dim=0)).T @ unit
    deviations = unit - means[labels]
    return deviations.T @ deviations, len(labels) - len(classes)
