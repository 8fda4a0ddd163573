"""What can go wrong in training, beside the errors of the core.

TrainingError(MetaNASError)
├── DatasetError       the data are not there, or too few
└── CheckpointError    a checkpoint that does not belong to this run
"""

from metanas.errors import MetaNASError


class TrainingError(MetaNASError):
    """Root of training's own errors."""


class DatasetError(TrainingError):
    """A data set is missing, unreadable or too small."""


class CheckpointError(TrainingError):
    """A checkpoint was made with another configuration."""
