"""What is kept: the meta-model that every task starts from, and the model of one task.

    Schedule      how a task is learned: steps, rates, temperatures, threshold
    MetaModel     meta-learned weights and architecture, with all that adaptation needs
    TaskModel     a pruned network that answers, with its names and its support set

Values only; ``learner.adapt`` goes from one to the other, ``artifact`` to and from files.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from metanas.errors import InvalidConfigError
from metanas.network import Network, channels_last, count_parameters, one_shot_plan
from metanas.plain import from_plain, to_plain
from metanas.preprocessing import Preprocessing, scale
from metanas.relaxation import STRATEGIES, Architecture, Strategy, initial_architecture
from metanas.space import Genotype, SearchSpace
from metanas.task_network import TaskNetwork
from metanas.tasks import SupportSet


@dataclass(frozen=True, slots=True)
class Schedule:
    """How one task is learned. Defaults: Table 4 for Omniglot.

    Raises:
        InvalidConfigError: a value is out of range; the message names it.
    """

    architecture_steps: int = 50
    """Gradient steps on weights and architecture while the temperature falls."""
    weight_steps: int = 50
    """Gradient steps on the weights of the pruned network."""
    batch_size: int = 20
    """Support images a step; a smaller support set goes in whole."""
    learning_rate: float = 1e-3
    """Of the weights and the head (Adam with beta_1 = 0)."""
    architecture_learning_rate: float = 5e-4
    architecture_weight_decay: float = 1e-3
    temperature_start: float = 1.0
    temperature_end: float = 0.05
    threshold: float = 0.01
    """Operations and inputs of a smaller weight are pruned."""
    strategy: Strategy = "operations_and_inputs"
    skip_below: float = 1e-4
    """Operations of a smaller weight in their node's sum are not run during the architecture
    steps. Their weight can only rise again by ``architecture_learning_rate`` a step in their
    parameters (times sqrt(1000) at worst, right after Adam's moments were zero). 0 runs all."""

    def __post_init__(self) -> None:
        for name in ("architecture_steps", "weight_steps"):
            if not 0 <= getattr(self, name) <= 10_000:
                raise InvalidConfigError(f"{name} must be 0..10000, got {getattr(self, name)}")
        if self.batch_size < 2:
            raise InvalidConfigError(f"batch_size must be at least 2, got {self.batch_size}")
        for name in ("learning_rate", "architecture_learning_rate", "temperature_start", "temperature_end"):
            if not 0 < getattr(self, name) <= 100:
                raise InvalidConfigError(f"{name} must be above 0 and at most 100, got {getattr(self, name)}")
        if not 0 < self.threshold < 1:
            raise InvalidConfigError(f"threshold must be between 0 and 1, got {self.threshold}")
        if not 0 <= self.skip_below < self.threshold:
            raise InvalidConfigError(
                f"skip_below must be at least 0 and under the threshold {self.threshold}, got {self.skip_below}"
            )
        if self.strategy not in STRATEGIES:
            raise InvalidConfigError(f"unknown strategy {self.strategy!r}; known are {', '.join(STRATEGIES)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for files."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Schedule":
        """The inverse of ``to_dict``.

        Raises:
            InvalidConfigError: an unknown key or a value out of range.
        """
        return from_plain(cls, values)


@dataclass(frozen=True, slots=True)
class MetaModel:
    """Meta-learned weights and architecture. Adaptation never changes it.

    Raises:
        InvalidConfigError: weights or architecture that do not fit the search space.
    """

    space: SearchSpace
    weights: Mapping[str, Tensor]
    """Every parameter of the one-shot network, by its name in ``Network``; float32."""
    architecture: Architecture
    head_scale: float
    """Scale of the prototypes that a task's head starts from."""
    preprocessing: Preprocessing
    schedule: Schedule = field(default_factory=Schedule)
    moments: Mapping[str, Tensor] = field(default_factory=dict)
    """Adam's second moments at the end of meta-training, as ``optimizer.collect_moments`` names
    them; empty: every adaptation starts from zero."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Plain values: data set, seed, code version, accuracies."""

    def __post_init__(self) -> None:
        expected = {name: tuple(value.shape) for name, value in _skeleton(self.space).named_parameters()}
        _check_shapes("weights", self.weights, expected)
        layout = {name: tuple(value.shape) for name, value in initial_architecture(self.space).items()}
        _check_shapes("architecture", self.architecture, layout)
        if not (isinstance(self.head_scale, float) and 0 < self.head_scale < float("inf")):
            raise InvalidConfigError(f"head_scale must be a number above 0, got {self.head_scale!r}")
        size = (self.preprocessing.channels, self.preprocessing.height, self.preprocessing.width)
        if size != (self.space.in_channels, self.space.image_size, self.space.image_size):
            raise InvalidConfigError(
                f"preprocessing makes images of (channels, height, width) {size}, the search space takes "
                f"({self.space.in_channels}, {self.space.image_size}, {self.space.image_size})"
            )

    def build_network(self) -> Network:
        """A new one-shot network with copies of the meta-weights, in training mode."""
        network = _skeleton(self.space).to_empty(device="cpu")
        channels_last(network)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.copy_(self.weights[name])
            for buffer in network.buffers():
                buffer.zero_()  # one-shot networks only ever normalise with the batch
        return network


def _skeleton(space: SearchSpace) -> Network:
    # On the meta device: names and shapes without drawing random weights.
    with torch.device("meta"):
        return Network(space, one_shot_plan(space))


def _check_shapes(what: str, given: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    if given.keys() != expected.keys():
        odd = sorted(given.keys() ^ expected.keys())
        raise InvalidConfigError(f"{what} do not fit the search space: {odd[0]} (and {len(odd) - 1} more)")
    for name, shape in expected.items():
        if tuple(given[name].shape) != shape:
            raise InvalidConfigError(f"{what}: {name} is {tuple(given[name].shape)}, the search space needs {shape}")


@dataclass(frozen=True, slots=True)
class AdaptationReport:
    """What adaptation did."""

    architecture_steps: int
    weight_steps: int
    seed: int
    support_accuracy: float
    """Fraction of support images that the finished network classifies right."""
    parameter_count: int
    """Of the task network, head included."""
    one_shot_parameter_count: int
    """Of the network it was pruned from, head included; without architecture parameters."""


@dataclass(frozen=True, slots=True)
class TaskModel:
    """A task that was learned, ready to answer. In evaluation mode; treat it as read-only."""

    network: TaskNetwork
    class_names: tuple[str, ...]
    """In the order of the logits, which is the order of the support set."""
    preprocessing: Preprocessing
    support: SupportSet
    report: AdaptationReport
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Plain values: the meta-model's provenance, and whatever the application adds."""

    def __post_init__(self) -> None:
        expected = (self.space.in_channels, self.space.image_size, self.space.image_size)
        if tuple(self.support.images.shape[1:]) != expected:
            raise InvalidConfigError(
                f"support images are {tuple(self.support.images.shape[1:])}, the network takes {expected}"
            )

    @property
    def space(self) -> SearchSpace:
        """Sizes of the network."""
        return self.network.space

    @property
    def genotype(self) -> Genotype:
        """The surviving operations."""
        return self.network.genotype

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Score prepared images.

        Args:
            images: uint8 ``(batch, channels, height, width)``, as ``preprocessing.prepare`` makes them.

        Returns:
            float32 ``(batch, classes)``; softmax gives probabilities.
        """
        scores: Tensor = self.network(scale(images, self.preprocessing))
        return scores


def total_parameters(network: Network, n_way: int) -> int:
    """Parameters of a network together with the head of an ``n_way`` task."""
    return count_parameters(network) + n_way * (network.space.features + 1)
