"""How much of a store a tenant has taken: what quotas are counted in."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """What is kept for one tenant."""

    tasks: int
    bytes: int
    """Of the files of all its tasks; what describes them is not counted."""
