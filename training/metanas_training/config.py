"""One run of meta-training, as a value.

    TrainingConfig   every setting; saved beside what it produced
    Plan             how many steps each phase has

Phases, in order:

    warm_up   weights only, all operations at equal weight; by Reptile (the paper) or by a prototype loss
    search    prototype warm-up only: the architecture learns too while the temperature falls once,
              then the weights of what is left learn on
    joint     Algorithm 2: Reptile on weights and architecture

Defaults of the joint phase: Table 4, for Omniglot.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from metanas.errors import InvalidConfigError
from metanas.model import Schedule

WarmUp = Literal["prototype", "reptile"]


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps of each phase."""

    warm_up: int
    search: int
    fall: int
    """The first so many search steps, in which the architecture learns and the temperature falls."""
    joint: int

    def phases(self) -> tuple[tuple[str, int], ...]:
        """(name, steps) in order."""
        return (("warm_up", self.warm_up), ("search", self.search), ("joint", self.joint))


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Every setting of a run.

    Raises:
        InvalidConfigError: a value is out of range; the message names it.
    """

    data: str = "glyphs"
    channels: int = 28
    image_size: int | None = None
    grey: bool = False
    seed: int = 0
    device: str = "cpu"
    threads: int = 1
    """Torch threads; the bits of the result depend on it."""
    warm_up: WarmUp = "prototype"
    plan: Plan | None = None
    """None: chosen from ``minutes`` by measuring one step first."""
    minutes: float = 10.0
    pair_classes: int = 64
    """Classes of a batch of the prototype loss, two drawings each."""
    prototype_learning_rate: float = 1e-3
    search_architecture_travel: float = 1.0
    """How far an architecture parameter can go while the temperature falls: learning rate times steps."""
    search_temperature_end: float = 0.005
    """Where the temperature of the search phase falls to, geometrically from 1."""
    search_skip_below: float = 1e-3
    """Operations of a smaller weight are not run in the search phase."""
    meta_batch_size: int = 10
    n_way: int = 20
    train_shots: int = 10
    inner_steps: int = 5
    inner_batch_size: int = 20
    inner_learning_rate: float = 1e-3
    inner_architecture_learning_rate: float = 5e-4
    meta_learning_rate: float = 1.0
    """Falls linearly to zero over the joint phase (and over a Reptile warm-up), as in Reptile."""
    meta_architecture_learning_rate: float = 0.6
    temperature_end: float = 0.05
    checkpoint_minutes: float = 5.0
    validations: int = 10
    """How often accuracy on validation classes is measured, over the whole run."""
    validation_tasks: int = 10
    eval_tasks: int = 5
    eval_shots: int = 1
    eval_queries: int = 15

    def __post_init__(self) -> None:
        for name in ("minutes", "checkpoint_minutes", "meta_learning_rate", "prototype_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidConfigError(f"{name} must be above 0 and finite, got {getattr(self, name)}")
        for name in ("meta_batch_size", "train_shots", "inner_steps", "eval_tasks", "eval_shots", "threads"):
            if getattr(self, name) < 1:
                raise InvalidConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise InvalidConfigError(f"seed must be at least 0, got {self.seed}")
        if self.n_way < 2 or self.pair_classes < 2:
            raise InvalidConfigError(
                f"n_way and pair_classes must be at least 2, got {self.n_way} and {self.pair_classes}"
            )
        if self.warm_up not in ("prototype", "reptile"):
            raise InvalidConfigError(f"warm_up must be prototype or reptile, got {self.warm_up!r}")
        if self.plan is not None and (min(asdict(self.plan).values()) < 0 or self.plan.fall > self.plan.search):
            raise InvalidConfigError(f"the plan must have no negative steps and no more fall than search: {self.plan}")

    def schedule(self) -> Schedule:
        """How the tasks of the joint phase, and later the tasks of users, are learned."""
        return Schedule(
            batch_size=self.inner_batch_size,
            learning_rate=self.inner_learning_rate,
            architecture_learning_rate=self.inner_architecture_learning_rate,
            temperature_end=self.temperature_end,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for files."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainingConfig":
        """The inverse of ``to_dict``."""
        plan = values.get("plan")
        return cls(**{**values, "plan": Plan(**plan) if plan else None})
