"""How one task is learned: steps, rates, temperatures, threshold. Values only."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from metanas.errors import InvalidConfigError
from metanas.plain import from_plain, to_plain
from metanas.relaxation import RELAXATIONS, STRATEGIES, Relaxation, Strategy

InnerOptimizer = Literal["adam", "sgd"]
"""Of a task's steps: Adam with beta_1 = 0 (Reptile), or plain gradient steps (MAML)."""
INNER_OPTIMIZERS: tuple[InnerOptimizer, ...] = get_args(InnerOptimizer)


@dataclass(frozen=True, slots=True)
class Schedule:
    """How one task is learned. Defaults: Table 4 for Omniglot.

    A network whose architecture is fixed takes as many steps in all, all of them on its weights.

    Raises:
        InvalidConfigError: a value is out of range; the message names it.
    """

    architecture_steps: int = 50
    """Gradient steps on weights and architecture while the temperature falls."""
    weight_steps: int = 50
    """Gradient steps on the weights of the pruned network."""
    batch_size: int = 20
    """Support images a step; a smaller support set goes in whole."""
    optimizer: InnerOptimizer = "adam"
    """A meta-model adapts best with the steps that it was meta-trained for."""
    learning_rate: float = 1e-3
    """Of the weights and the head; where a meta-model has a ``variation``, that says the head's."""
    weight_decay: float = 0.0
    architecture_learning_rate: float = 5e-4
    architecture_weight_decay: float = 1e-3
    temperature_start: float = 1.0
    temperature_end: float = 0.05
    threshold: float = 0.01
    """Operations and inputs of a smaller weight are pruned."""
    strategy: Strategy = "operations_and_inputs"
    relaxation: Relaxation = "softmax"
    augmentation: float = 0.0
    """How much support images are distorted, anew at every step (``augmentation.distort``); 0 in the paper."""
    max_parameters: int | None = None
    """Of the task network, head included: the search obeys it (``budget``); None: any."""
    max_multiply_adds: int | None = None
    """Of the task network, for one image."""
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
        if not 0 <= self.augmentation <= 10:
            raise InvalidConfigError(f"augmentation must be 0..10, got {self.augmentation}")
        for name in ("max_parameters", "max_multiply_adds"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= 1):
                raise InvalidConfigError(f"{name} must be a whole number of at least 1 or None, got {value!r}")
        if self.optimizer not in INNER_OPTIMIZERS:
            raise InvalidConfigError(f"unknown optimizer {self.optimizer!r}; known are {', '.join(INNER_OPTIMIZERS)}")
        if self.strategy not in STRATEGIES:
            raise InvalidConfigError(f"unknown strategy {self.strategy!r}; known are {', '.join(STRATEGIES)}")
        if self.relaxation not in RELAXATIONS:
            raise InvalidConfigError(f"unknown relaxation {self.relaxation!r}; known are {', '.join(RELAXATIONS)}")
        for name in ("weight_decay", "architecture_weight_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidConfigError(f"{name} must be 0..1, got {getattr(self, name)}")

    @property
    def steps(self) -> int:
        """Of both phases together."""
        return self.architecture_steps + self.weight_steps

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
