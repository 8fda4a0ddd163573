"""What can go wrong in training, beside the errors of the core.

TrainingError(MetaNASError)
├── DatasetError       the data are not there, or too few
├── EvaluationError    what was asked cannot be measured
├── CheckpointError    a checkpoint that does not belong to this run
├── NonFiniteError     a loss or an answer that is no number
└── WorkerLostError    another process of a distributed run is gone
"""

import math

from metanas.errors import MetaNASError


class TrainingError(MetaNASError):
    """Root of training's own errors."""


class DatasetError(TrainingError):
    """A data set is missing, unreadable or too small."""


class EvaluationError(TrainingError):
    """What was asked cannot be measured here."""


class CheckpointError(TrainingError):
    """A checkpoint was made with another configuration."""


class NonFiniteError(TrainingError):
    """A loss, or what a network answers, is infinite or no number."""


class WorkerLostError(TrainingError):
    """Another process of a distributed run ended or cannot be reached."""


def check_finite(loss: float, where: str) -> None:
    """Raise NonFiniteError if ``loss`` is not finite; ``where`` names step and task."""
    if not math.isfinite(loss):
        raise NonFiniteError(f"the loss is {loss} at {where}; start again with lower learning rates")
