"""What is kept: the meta-model that every task starts from, and the model of one task.

    MetaModel     meta-learned weights and architecture, with all that adaptation needs
    TaskModel     a pruned network that answers, with its names and its support set

Values only; ``learner.adapt`` goes from one to the other, ``artifact`` to and from files.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from metanas.backbone import Backbone, build_backbone
from metanas.errors import InvalidConfigError
from metanas.network import Network, channels_last, count_parameters
from metanas.optimizer import parameter_names
from metanas.preprocessing import Preprocessing, scale
from metanas.relaxation import Architecture, initial_architecture
from metanas.schedule import Schedule
from metanas.space import NO_CELLS, ConvBlocks, Genotype, SearchSpace, Space
from metanas.statistics import PriorStatistics, statistics_names
from metanas.task_network import TaskNetwork
from metanas.tasks import SupportSet
from metanas.trust import Trust
from metanas.variation import Variation


@dataclass(frozen=True, slots=True)
class MetaModel:
    """Meta-learned weights and architecture. Adaptation never changes it.

    Raises:
        InvalidConfigError: weights or architecture that do not fit the search space.
    """

    space: Space
    weights: Mapping[str, Tensor]
    """Every parameter of the network, by its name there; float32."""
    architecture: Architecture
    """Empty where the architecture is fixed."""
    head_scale: float
    """Scale of the prototypes that a task's head starts from."""
    preprocessing: Preprocessing
    schedule: Schedule = field(default_factory=Schedule)
    moments: Mapping[str, Tensor] = field(default_factory=dict)
    """Adam's second moments at the end of meta-training, as ``optimizer.collect_moments`` names
    them; empty: every adaptation starts from zero."""
    step_rates: Mapping[str, Tensor] = field(default_factory=dict)
    """Learned learning rates of plain gradient steps, ``(steps,)`` for each of
    ``optimizer.parameter_names``; empty: the schedule's rates."""
    known_similarity: float | None = None
    """Of images to their class's prototype after one shot, what all but a few exceed; None: unknown."""
    prior: PriorStatistics | None = None
    """Batch-norm statistics of training images; None: a task's support set speaks for itself."""
    variation: Variation | None = None
    """How features of one class vary, which the steps of a task reckon with; None: they do not. Takes plain steps."""
    genotype: Genotype | None = None
    """The fixed architecture; None: each task chooses its own from the search space."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Plain values: data set, seed, code version, accuracies."""

    def __post_init__(self) -> None:
        if isinstance(self.space, ConvBlocks) and self.genotype != NO_CELLS:
            raise InvalidConfigError("plain blocks have no cells: the genotype of such a meta-model is NO_CELLS")
        if isinstance(self.space, SearchSpace) and self.space.affine and self.searches:
            raise InvalidConfigError("a search needs batch norms without scale and shift: set affine to false")
        skeleton = _skeleton(self.space, self.genotype)
        expected = {name: tuple(value.shape) for name, value in skeleton.named_parameters()}
        _check_shapes("weights", self.weights, expected)
        layout = architecture_shapes(self.space, self.genotype)
        _check_shapes("architecture", self.architecture, layout)
        if self.step_rates:
            steps = max(1, *(value.numel() for value in self.step_rates.values()))
            names = parameter_names(self.weights, self.architecture)
            _check_shapes("step_rates", self.step_rates, dict.fromkeys(names, (steps,)))
        if self.prior is not None:
            buffers = {name: tuple(skeleton.get_buffer(name).shape) for name in statistics_names(skeleton)}
            _check_shapes("prior statistics", self.prior.values, buffers)
        if self.variation is not None:
            features = self.space.features
            _check_shapes("variation", {"covariance": self.variation.covariance}, {"covariance": (features, features)})
            if self.schedule.optimizer != "sgd":
                raise InvalidConfigError("variation needs plain steps: set the schedule's optimizer to 'sgd'")
        if not (isinstance(self.head_scale, float) and 0 < self.head_scale < float("inf")):
            raise InvalidConfigError(f"head_scale must be a number above 0, got {self.head_scale!r}")
        known = self.known_similarity
        if known is not None and not (isinstance(known, float) and -1 <= known <= 1):
            raise InvalidConfigError(f"known_similarity must be a cosine in -1..1 or None, got {known!r}")
        size = (self.preprocessing.channels, self.preprocessing.height, self.preprocessing.width)
        if size != (self.space.in_channels, self.space.image_size, self.space.image_size):
            raise InvalidConfigError(
                f"preprocessing makes images of (channels, height, width) {size}, the search space takes "
                f"({self.space.in_channels}, {self.space.image_size}, {self.space.image_size})"
            )

    @property
    def searches(self) -> bool:
        """Whether tasks choose their architecture."""
        return self.genotype is None

    def build_network(self) -> Backbone:
        """A new network with copies of the meta-weights, in training mode; one-shot where tasks search."""
        network = empty_backbone(self.space, self.genotype)
        channels_last(network)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.copy_(self.weights[name])
        return network


def empty_backbone(space: Space, genotype: Genotype | None) -> Backbone:
    """A network on the CPU whose parameters are still to be filled; the state of the random numbers stays."""
    network = _skeleton(space, genotype)
    for name, buffer in network.named_buffers():
        # Statistics before they are measured; the constants of a genotype are set below.
        buffer.fill_(1.0 if name.endswith("variance") else 0.0)
    if isinstance(network, Network) and genotype is not None:
        network.set_constants(genotype)
    return network


def _skeleton(space: Space, genotype: Genotype | None) -> Backbone:
    # Not on the meta device: what torch imports for it takes half a second, and random weights milliseconds.
    with torch.random.fork_rng(devices=[]):
        return build_backbone(space, genotype)


def architecture_shapes(space: Space, genotype: Genotype | None) -> dict[str, tuple[int, ...]]:
    """The architecture parameters that a meta-model has: none where the architecture is fixed."""
    if genotype is not None or isinstance(space, ConvBlocks):
        return {}
    return {name: tuple(value.shape) for name, value in initial_architecture(space).items()}


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
    budget: "BudgetReport | None" = None
    """What obeying a budget cost; None: there was none."""
    is_unlike_training: bool = False
    """Whether the steps left the meta-model's variation out, as the support images are unlike its own."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for files."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "AdaptationReport":
        """The inverse of ``to_dict``."""
        budget = values.get("budget")
        return cls(**{**values, "budget": None if budget is None else BudgetReport(**budget)})


@dataclass(frozen=True, slots=True)
class BudgetReport:
    """What fitting a task network into its budget cost, measured when it was pruned, before its last steps."""

    max_parameters: int | None
    max_multiply_adds: int | None
    multiply_adds: int
    """Of the task network."""
    unconstrained_parameter_count: int
    """Of the network that the threshold alone would have left."""
    unconstrained_multiply_adds: int
    unconstrained_support_accuracy: float
    """Of that network, on the support images, normalised together."""
    support_accuracy: float
    """Of the network that fits."""


@dataclass(frozen=True, slots=True)
class TaskModel:
    """A task that was learned, ready to answer. In evaluation mode; treat it as read-only."""

    network: TaskNetwork
    class_names: tuple[str, ...]
    """In the order of the logits, which is the order of the support set."""
    preprocessing: Preprocessing
    support: SupportSet
    report: AdaptationReport
    trust: Trust = field(default_factory=Trust)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Plain values: the meta-model's provenance, and whatever the application adds."""

    def __post_init__(self) -> None:
        expected = (self.space.in_channels, self.space.image_size, self.space.image_size)
        if tuple(self.support.images.shape[1:]) != expected:
            raise InvalidConfigError(
                f"support images are {tuple(self.support.images.shape[1:])}, the network takes {expected}"
            )

    @property
    def space(self) -> Space:
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
            float32 ``(batch, classes)``; softmax of logits over ``trust.temperature`` gives probabilities.
        """
        scores: Tensor = self.network(scale(images, self.preprocessing))
        return scores


def total_parameters(network: Backbone, n_way: int) -> int:
    """Parameters of a network together with the head of an ``n_way`` task."""
    return count_parameters(network) + n_way * (network.space.features + 1)
