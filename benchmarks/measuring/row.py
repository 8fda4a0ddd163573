"""One row of the table: what must be reached, what was, and whether that is enough.

Goal      a number to reach, at most or at least
Row       what was measured, in words and as values
verdict   "aim", "bar", "missed", or "" where nothing is asked
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Goal:
    """What one number is judged by."""

    value: float
    """As measured."""
    must: float
    aim: float
    at_least: bool = False
    """Whether more is better."""

    def reaches(self, threshold: float) -> bool:
        """Whether the value is as good as ``threshold``; NaN never is."""
        return self.value >= threshold if self.at_least else self.value <= threshold


@dataclass(frozen=True, slots=True)
class Row:
    """One line."""

    what: str
    measured: str
    bar: str = ""
    aim: str = ""
    goals: tuple[Goal, ...] = ()
    """All of them are to be reached."""
    limit_seconds: float | None = None
    times_limit: float | None = None
    values: dict[str, Any] = field(default_factory=dict)
    """Everything behind ``measured``, for JSON."""

    @property
    def verdict(self) -> str:
        """Whether the aim is reached, or the bar, or neither."""
        return verdict(self.goals)


def verdict(goals: Sequence[Goal]) -> str:
    """ "aim", "bar" or "missed"; "" without goals."""
    if not goals:
        return ""
    if all(goal.reaches(goal.aim) for goal in goals):
        return "aim"
    return "bar" if all(goal.reaches(goal.must) for goal in goals) else "missed"
