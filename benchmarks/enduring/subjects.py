"""A small meta-model: random weights, one cell of one node, four channels.

A task of two images is learnt from it in some 40 ms of processor time, so thousands of cycles are a
matter of minutes; the way through server, adaptation process and store is that of any other.
"""

from measuring.subjects import untrained

from metanas.model import MetaModel
from metanas.schedule import Schedule
from metanas.space import SearchSpace


def small_meta() -> MetaModel:
    """A meta-model that searches, as small as can be."""
    space = SearchSpace(channels=4, cells=1, reduction_cells=(0,), nodes=1, operations=("max_pool_3x3", "sep_conv_3x3"))
    return untrained(space, Schedule(architecture_steps=1, weight_steps=1))
