"""How thoroughly to measure."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Settings:
    """Of one run of the benchmark."""

    folder: Path
    """For files of the moment."""
    quick: bool = False
    """A look: few steps, few calls; shows that everything works, and roughly how fast."""
    adapt_budget_seconds: float = 20.0
    """The longest that one Omniglot-shaped Adapt is measured in full; a longer one is scaled."""
    large_budget_seconds: float = 30.0
    """The same for the Adapt of 84 x 84 pixels."""
    quick_seconds: float = 4.0
    """In place of both where ``quick``."""
