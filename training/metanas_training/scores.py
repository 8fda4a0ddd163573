"""What an evaluation found, as values, and what many of them come to.

TaskScore    of one task
Estimate     a mean with its 95 % interval
Evaluation   of many tasks
estimate, summarise
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from metanas.space import Genotype
from metanas_training.architectures import count_structures
from metanas_training.trust_scores import TrustScore, calibration_error


@dataclass(frozen=True, slots=True)
class TaskScore:
    """Fractions of query images classified right, and what it took."""

    inductive: float
    transductive: float
    prototype: float
    """Inductive, with the prototype head and without any adaptation step."""
    support_accuracy: float
    """Fraction of the support images that the finished network classifies right."""
    pruning_loss: float | None
    """Inductive accuracy of the one-shot network less that of the pruned one, before its weight
    steps; None where nothing is pruned."""
    parameter_count: int
    multiply_adds: int
    """Of the task network, for one image."""
    adapt_seconds: float
    genotype: Genotype
    """What the task network consists of, with the weights of its operations."""
    trust: TrustScore

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for files."""
        return {**asdict(self), "genotype": self.genotype.to_dict(), "trust": self.trust.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TaskScore":
        """The inverse of ``to_dict``."""
        parsed = {"genotype": Genotype.from_dict(values["genotype"]), "trust": TrustScore.from_dict(values["trust"])}
        return cls(**{**values, **parsed})


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval."""

    mean: float
    half_width: float
    """1.96 standard errors; 0 for a single task."""

    def __str__(self) -> str:
        return f"{100 * self.mean:.2f} % ± {100 * self.half_width:.2f}"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores over many tasks."""

    data: str
    n_way: int
    n_shot: int
    tasks: int
    inductive: Estimate
    transductive: Estimate
    prototype: Estimate
    gain: Estimate
    """Inductive accuracy less that of the prototypes, task by task: what the steps were worth."""
    support_accuracy: Estimate
    pruning_loss: Estimate | None
    """None where nothing is pruned."""
    parameter_count: float
    multiply_adds: float
    adapt_seconds: float
    structures: int
    """Number of different architectures among the tasks."""
    most_common_share: float
    """Fraction of tasks that ended with the most common architecture."""
    leave_one_out_accuracy: Estimate | None
    """What the tasks themselves promised; None: of single shots."""
    calibration_error: float
    """Expected calibration error over all query images, at temperature 1."""
    calibrated_error: float
    """The same at each task's temperature."""
    auroc: Estimate | None
    """Of query images against images of classes outside the task."""
    known_refused: Estimate | None
    """Query images taken for none of the classes."""
    unknown_refused: Estimate | None
    """Images of classes outside the task taken for none of the classes."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval of independent values."""
    array = np.asarray(values, dtype=np.float64)
    spread = float(array.std(ddof=1)) if len(array) > 1 else 0.0
    return Estimate(float(array.mean()), 1.96 * spread / len(array) ** 0.5)


def summarise(data: str, n_way: int, n_shot: int, scores: Sequence[TaskScore]) -> Evaluation:
    """Means and intervals over tasks."""
    trusts = [score.trust for score in scores]
    counts = count_structures([score.genotype for score in scores])
    return Evaluation(
        data=data,
        n_way=n_way,
        n_shot=n_shot,
        tasks=len(scores),
        inductive=estimate([score.inductive for score in scores]),
        transductive=estimate([score.transductive for score in scores]),
        prototype=estimate([score.prototype for score in scores]),
        gain=estimate([score.inductive - score.prototype for score in scores]),
        support_accuracy=estimate([score.support_accuracy for score in scores]),
        pruning_loss=_known([score.pruning_loss for score in scores]),
        parameter_count=float(np.mean([score.parameter_count for score in scores])),
        multiply_adds=float(np.mean([score.multiply_adds for score in scores])),
        adapt_seconds=float(np.mean([score.adapt_seconds for score in scores])),
        structures=len(counts),
        most_common_share=max(counts.values()) / len(scores),
        leave_one_out_accuracy=_known([trust.leave_one_out_accuracy for trust in trusts]),
        calibration_error=calibration_error([trust.confidence for trust in trusts]),
        calibrated_error=calibration_error([trust.calibrated_confidence for trust in trusts]),
        auroc=_known([trust.auroc for trust in trusts]),
        known_refused=_known([trust.known_refused for trust in trusts]),
        unknown_refused=_known([trust.unknown_refused for trust in trusts]),
    )


def _known(values: Sequence[float | None]) -> Estimate | None:
    """Over those that there are; None: there is none."""
    there = [value for value in values if value is not None]
    return estimate(there) if there else None
