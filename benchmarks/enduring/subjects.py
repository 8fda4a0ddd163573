"""A small meta-model and drawn classes.

    small_meta      random weights, one cell of one node: a task is learnt in some 40 ms of processor time
    drawn_support   classes of one client, with labels that no other client has
    SHORT           the options of a short schedule: one gradient step of each kind

What is tested is the server, not how well it learns: of one support image for each of some plainly
different characters, a network says after two steps which of them it is shown again.
"""

from collections.abc import Mapping

import numpy as np
from measuring.subjects import Pixels, untrained

from metanas.model import MetaModel
from metanas.schedule import Schedule
from metanas.space import SearchSpace
from metanas_client import AdaptOptions
from metanas_training.datasets.glyphs import draw_glyph, glyph_classes

SHORT = AdaptOptions(architecture_steps=1, weight_steps=1)

_SIDE = 28


def small_meta() -> MetaModel:
    """A meta-model that searches, as small as can be."""
    space = SearchSpace(channels=4, cells=1, reduction_cells=(0,), nodes=1, operations=("max_pool_3x3", "sep_conv_3x3"))
    return untrained(space, Schedule(architecture_steps=1, weight_steps=1))


def drawn_support(owner: str, *, classes: int, seed: int) -> Mapping[str, list[Pixels]]:
    """One drawing of each of some characters, by labels that begin with ``owner``.

    Args:
        seed: which characters, and whose hand; another seed gives others.
    """
    glyphs = glyph_classes("test")
    chosen = np.random.default_rng(seed).choice(len(glyphs), classes, replace=False)
    return {f"{owner}/{glyphs[index].name}": [draw_glyph(glyphs[index], seed, size=_SIDE)] for index in chosen}
