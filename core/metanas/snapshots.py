"""The networks that adaptation passes through, shown to evaluation and tests.

Snapshot          before the first step and after every one
AdaptationTrace   on both sides of the pruning
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from metanas.backbone import Backbone
from metanas.head import Head
from metanas.network import Network
from metanas.relaxation import Mixture
from metanas.task_network import TaskNetwork


@dataclass(frozen=True, slots=True)
class AdaptationTrace:
    """What adaptation passed through; for evaluation and tests."""

    one_shot: Network
    head: Head
    """Of the one-shot network at the end of the architecture steps."""
    mixtures: dict[str, Mixture]
    pruned: TaskNetwork
    """The task network before its first weight step."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Where adaptation stands; for evaluation. Valid until the next step: the network goes on learning."""

    step: int
    """Steps done, from 0: before the first."""
    temperature: float
    """Of the step to come."""
    network: Backbone
    """In training mode; leave it so."""
    head: Head
    """Its rows are in canonical order."""
    weights: Mapping[str, Tensor] | None
    """Of the operations at ``temperature``, without noise; None for a network of fixed architecture."""
    mixtures: Mapping[str, Mixture] | None
    """Where ``weights`` come from: of operations and of inputs."""
    images: Tensor
    """The support set, scaled, in canonical order."""
    order: tuple[int, ...]
    """Canonical class ``i`` is class ``order[i]`` of the caller."""
