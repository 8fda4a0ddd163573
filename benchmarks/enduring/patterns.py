"""Drawn classes that no network mistakes, without torch.

    drawn_support   classes of one client, by labels that no other client has
    SHORT           the options of a short schedule: one gradient step of each kind

A class is a pattern of 7 x 7 black and white squares; two of them differ in half of their squares. What
is tested is the server, not how well it learns: of one image of each class, a network says after two
steps which of them it is shown again.
"""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from metanas_client import AdaptOptions

Support: TypeAlias = Mapping[str, list[NDArray[np.uint8]]]

SHORT = AdaptOptions(architecture_steps=1, weight_steps=1)

_SQUARES, _SIDE = 7, 4


def drawn_support(owner: str, *, classes: int, seed: int) -> Support:
    """One image of 28 x 28 for each class, by labels that begin with ``owner``.

    Args:
        seed: which patterns; the same seed gives the same ones.
    """
    chance = np.random.default_rng(seed)
    patterns = chance.integers(0, 2, (classes, _SQUARES, _SQUARES), dtype=np.uint8) * np.uint8(255)
    pictures = patterns.repeat(_SIDE, axis=1).repeat(_SIDE, axis=2)
    return {f"{owner}/{seed}/{number}": [picture] for number, picture in enumerate(pictures)}
