"""How far a run has got, and bars of it that suit a terminal and a log file."""

import sys
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 60.0
"""In a file; every refresh is a line there."""


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """One step, for whoever shows progress."""

    phase: str
    step: int
    """Steps done in all phases."""
    steps: int
    """Steps of all phases."""
    loss: float
    accuracy: float
    """On training classes."""
    tasks: int
    """Tasks the step learned from, in all processes; a batch of pairs counts as one."""
    images: int
    """Images that went forward and backward, in all processes."""
    seconds: float
    validation: float | None
    """Accuracy on validation classes where it was measured after this step."""


def progress_bar(*, total: int, unit: str, description: str = "", initial: int = 0) -> "tqdm[Any]":
    """A bar on stderr. Set its texts with ``refresh=False``: it is drawn when it is due."""
    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        unit=unit,
        dynamic_ncols=True,
        mininterval=0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES,
    )
