"""Progress bars that suit a terminal and a log file."""

import sys
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 60.0
"""In a file; every refresh is a line there."""


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
