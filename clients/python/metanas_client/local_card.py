"""What an exported file says about itself: all that a device must know beside the network.

    Card        class names, preprocessing, temperature
    read_card   the values in an ONNX file's metadata or in a plan's sidecar  ->  Card

Knows neither a runtime nor a file. A file that says too little is refused: without the names an
answer is a number, and without the preprocessing it is a wrong one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metanas_client.errors import ModelFileError
from metanas_client.local_pixels import Recipe

KEYS = ("class_names", "preprocessing", "format_version", "temperature")
"""What is read of all that a file says."""
FORMAT_VERSION = 1
"""The latest version of exported files that this package reads."""


@dataclass(frozen=True)
class Card:
    """What stands beside the network."""

    class_names: tuple[str, ...]
    """In the order of the network's scores."""
    recipe: Recipe
    temperature: float
    """Scores are divided by it before the softmax."""


def read_card(values: Mapping[str, Any], *, name: str) -> Card:
    """Read and check what a file says.

    Args:
        values: plain values by their keys; ``class_names`` and ``preprocessing`` must be there.
        name: what messages call the file.

    Raises:
        ModelFileError: a key is missing or makes no sense, or a later version wrote the file.
    """
    version = values.get("format_version", FORMAT_VERSION)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ModelFileError(
            f"{name} has format version {version}, this package reads up to {FORMAT_VERSION}; "
            "upgrade metanas-edge on this device"
        )
    missing = [key for key in ("class_names", "preprocessing") if key not in values]
    if missing:
        raise ModelFileError(
            f"{name} does not say its {' and '.join(missing)}; export the task again with metanas-export, "
            "and keep tools from dropping the metadata"
        )
    names, temperature = values["class_names"], values.get("temperature", 1.0)
    if not isinstance(names, list) or len(names) < 2 or not all(isinstance(one, str) for one in names):
        raise ModelFileError(f"{name} has class_names {names!r}; they must be two texts or more: export the task again")
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
        raise ModelFileError(f"{name} has temperature {temperature!r}; it must be above 0: export the task again")
    try:
        recipe = Recipe.from_dict(values["preprocessing"])
    except (ValueError, TypeError) as error:
        raise ModelFileError(
            f"{name} has a preprocessing that cannot be done ({error}); export the task again"
        ) from error
    return Card(class_names=tuple(names), recipe=recipe, temperature=float(temperature))
