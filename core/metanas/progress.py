"""How far adaptation has got, told after each gradient step.

Apart from ``snapshots``, for it needs no torch: a server hands it on to who watches a job.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepReport:
    """How far adaptation has got, after one gradient step."""

    phase: str
    """"architecture" or "weights"."""
    step: int
    """Steps done in both phases together, from 1."""
    steps: int
    """Steps of both phases together."""
    loss: float
    temperature: float
    accuracy: float
    """Of the step's images, before it."""
