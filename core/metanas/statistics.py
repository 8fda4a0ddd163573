"""What batch norm normalises with where it may not look at the batch: the statistics of few images.

    measuring         while open, every batch norm of a network keeps what it sees of one batch
    PriorStatistics   those of meta-training, as if some more images had been in that batch
    measure_prior     network, training images  ->  PriorStatistics

A support set of five images says little about mean and variance, and the error is in every answer. So a
meta-model may bring the statistics of its training images, which count as a number of images of their own: few
images lean on them, many speak for themselves.

Source: Schneider et al., arXiv 2006.16971, who blend for images of a shifted distribution.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metanas.backbone import Backbone
from metanas.errors import InvalidConfigError
from metanas.operations import BatchNorm, Prior

MEAN, VARIANCE = ".mean", ".variance"
"""What the names of a norm's statistics end in, as in ``state_dict``."""


@dataclass(frozen=True, slots=True)
class PriorStatistics:
    """Batch-norm statistics from meta-training.

    Raises:
        InvalidConfigError: values that are no statistics, or a weight that is not above 0 and finite.
    """

    images: float
    """How many images of a support set they count as."""
    values: Mapping[str, Tensor]
    """``(channels,)`` float32: mean and variance of every norm, by the names of its buffers."""

    def __post_init__(self) -> None:
        if not (isinstance(self.images, float) and 0 < self.images < math.inf):
            raise InvalidConfigError(f"prior statistics must count as more than 0 images, got {self.images!r}")
        for name, value in self.values.items():
            if not value.isfinite().all() or (name.endswith(VARIANCE) and (value < 0).any()):
                raise InvalidConfigError(f"prior statistics: {name} holds values that are no {name.rsplit('.')[-1]}")

    def of(self, name: str) -> Prior:
        """Those of one norm, by the name of its module."""
        return Prior(mean=self.values[name + MEAN], variance=self.values[name + VARIANCE], images=self.images)


def statistics_names(network: nn.Module) -> list[str]:
    """The names of all statistics of a network: what ``PriorStatistics.values`` has to hold."""
    return [name + end for name, _ in _norms(network) for end in (MEAN, VARIANCE)]


@contextmanager
def measuring(network: nn.Module, prior: PriorStatistics | None = None) -> Iterator[None]:
    """While open, every ``BatchNorm`` of ``network`` keeps the statistics of the batch it sees.

    Args:
        prior: blended with those of the batch, which is then normalised with the blend, as later images will
            be. Of this network or of one with more norms.
    """
    norms = _norms(network)
    for name, norm in norms:
        norm.measuring = True
        norm.prior = None if prior is None else prior.of(name)
    try:
        yield
    finally:
        for _, norm in norms:
            norm.measuring = False
            norm.prior = None


@torch.no_grad()
def measure_prior(
    network: Backbone, weights: Mapping[str, Tensor] | None, images: Tensor, *, count_as: float
) -> PriorStatistics:
    """The statistics of training images, of all operations, whatever their weight.

    Args:
        network: only the statistics that it keeps for evaluation change.
        weights: of the operations, ``steps.operation_weights``; None where the architecture is fixed.
        images: float32 ``(images, channels, H, W)``, as ``preprocessing.scale`` makes them.
        count_as: ``PriorStatistics.images``.
    """
    with measuring(network):
        network(images, weights)
    state = network.state_dict()
    values = {name: state[name].detach().cpu().clone() for name in statistics_names(network)}
    return PriorStatistics(images=count_as, values=values)


def _norms(network: nn.Module) -> list[tuple[str, BatchNorm]]:
    return [(name, module) for name, module in network.named_modules() if isinstance(module, BatchNorm)]
