"""What every meta-learner is: tasks in, a change of the meta-parameters out.

    Subject        what is meta-learned: weights, architecture, scale of the head, Adam's moments
    MetaTask       one task of a meta-batch, with its own source of randomness
    Contribution   what some tasks ask for, as sums, so that parts of a meta-batch can be added
    MetaLearner    ``learn``: tasks -> Contribution;  ``move``: the mean Contribution -> Subject

The two halves are apart because the tasks of a meta-batch may be learned in several processes:
their contributions are summed, and every process makes the same move.

Source: Elsken et al., CVPR 2020, Algorithm 1 and equations 8 and 9.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from metanas.backbone import Backbone
from metanas.errors import NothingMovedError
from metanas.relaxation import Architecture
from metanas_training.episodes import Episode

NETWORK, ARCHITECTURE, MOMENTS = "network/", "architecture/", "moments/"
"""Prefixes of the names in a ``Contribution``."""


class Subject(Protocol):
    """What is meta-learned. A meta-learner changes it in ``move`` only."""

    network: Backbone
    """In training mode."""
    architecture: Architecture
    """Leaf tensors that require gradients; empty where the architecture is fixed."""
    log_scale: Tensor
    """0-dimensional leaf: logarithm of the scale of the prototypes that heads start from."""
    moments: dict[str, Tensor]
    """Adam's second moments that every task starts from, as ``optimizer.collect_moments`` names them."""
    step_rates: dict[str, Tensor]
    """Learned learning rates (MAML++), by the name of the parameter: ``(inner steps,)``; else empty."""


@dataclass(frozen=True, slots=True)
class MetaTask:
    """One task of a meta-batch."""

    episode: Episode
    generator: torch.Generator
    """Of everything random in learning it: the order of the images, DropPath, Gumbel noise."""


@dataclass(frozen=True, slots=True)
class Contribution:
    """What some tasks ask for: sums over those tasks."""

    values: Mapping[str, Tensor]
    """By name, float64; what they mean is between the ``learn`` and the ``move`` of one meta-learner.

    In float64 the order of a sum does not show in the float32 result, so neither does the number
    of processes that share a meta-batch."""
    loss: float
    accuracy: float
    tasks: int

    def mean(self) -> "Contribution":
        """The sums divided by the number of tasks."""
        if self.tasks == 1:
            return self
        return Contribution(
            {name: value / self.tasks for name, value in self.values.items()},
            self.loss / self.tasks,
            self.accuracy / self.tasks,
            self.tasks,
        )


class MetaLearner(Protocol):
    """A way to learn from a meta-batch of tasks."""

    def learn(self, subject: Subject, tasks: Sequence[MetaTask], *, learn_architecture: bool) -> Contribution:
        """Learn each task from ``subject``, which is the same afterwards.

        Args:
            learn_architecture: False during the warm-up: the architecture stays, at the first temperature.

        Raises:
            NonFiniteError: a loss is not finite; the message names the step and the task.
        """
        ...

    def move(self, subject: Subject, mean: Contribution, *, decay: float, learn_architecture: bool) -> None:
        """Move ``subject``, in place.

        Args:
            mean: ``Contribution.mean`` over all tasks of the meta-batch.
            decay: what the meta learning rates are multiplied by, in [0, 1].

        Raises:
            NothingMovedError: no weight is to move, or no architecture parameter that was to learn.
        """
        ...


def check_moved(changes: Mapping[str, Tensor], *, learn_architecture: bool) -> None:
    """Raise NothingMovedError if ``changes``, named as in a ``Contribution``, would move nothing.

    Weight decay alone counts as a move.
    """

    def any_moved(prefix: str) -> bool:
        return any(bool(value.any()) for name, value in changes.items() if name.startswith(prefix))

    if not any_moved(NETWORK):
        raise NothingMovedError("the meta-step moved no weight; check learning rates and that gradients reach them")
    if learn_architecture and not any_moved(ARCHITECTURE):
        raise NothingMovedError("the meta-step moved no architecture parameter; check its learning rate")
