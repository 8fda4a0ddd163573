"""What learning a task takes of memory, and how a process is held to a bound.

    bound_memory      bytes                ->  from now on this process gets no more
    is_out_of_memory  an exception         ->  whether that was the reason
    image_bytes       a meta-model         ->  what each image of a support set takes at the peak

The bound is on private writable memory (``RLIMIT_DATA``), which torch's tensors are; not on address space
(``RLIMIT_AS``), of which a process with torch has hundreds of megabytes more than it ever touches.

The peak comes where the network sees the whole support set at once, to start the head and to freeze batch
norm. The estimate counts feature maps that are alive then; its three numbers are fitted to what the bundled
meta-model and one that prunes nothing early took (``benchmarks/support_memory.py``), a little high, so that
what is let in fits.
"""

import resource

import torch

from metanas.model import MetaModel
from metanas.relaxation import relax
from metanas.space import ConvBlocks, SearchSpace

BASE_BYTES = 320 * 1024 * 1024
"""Of a process that has warmed up and learns nothing."""

_FLOAT_BYTES = 4

# Feature maps: for each of the stem's multiplier, for each cell, for each operation that is run.
_STEM_MAPS, _CELL_MAPS, _OPERATION_MAPS = 6, 3, 0.9

_WORDS = ("can't allocate memory", "cannot allocate memory", "bad alloc", "bad_alloc", "not enough memory")


def bound_memory(size: int) -> None:
    """Let this process have no more than ``size`` bytes of memory of its own, for good."""
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that there was no more memory."""
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in _WORDS)


def image_bytes(meta: MetaModel) -> int:
    """What each image of a support set takes at the peak of learning it, in bytes; an estimate."""
    space = meta.space
    pixels = space.image_size**2
    if isinstance(space, ConvBlocks):
        # Blocks halve the sides; of each, convolution, norm and activation are there at once.
        return _FLOAT_BYTES * space.filters * pixels * 4
    running = _running_operations(meta, space)
    maps = float(_STEM_MAPS * space.stem_multiplier)
    for cell, kind in enumerate(space.cell_types):
        halvings = sum(reduction < cell for reduction in space.reduction_cells)
        maps += (_CELL_MAPS + _OPERATION_MAPS * running[kind]) / 4**halvings
    return int(_FLOAT_BYTES * space.channels * pixels * maps)


def _running_operations(meta: MetaModel, space: SearchSpace) -> dict[str, int]:
    """How many operations of a cell of each type are not too light to be run when a task starts."""
    if not meta.searches:
        return dict.fromkeys(space.cell_types, space.nodes * space.inputs_per_node)
    schedule = meta.schedule
    mixtures = relax(
        meta.architecture,
        space,
        temperature=schedule.temperature_start,
        strategy=schedule.strategy,
        relaxation=schedule.relaxation,
        generator=torch.Generator().manual_seed(0),
    )
    return {kind: int((mixture.rows > schedule.skip_below).sum()) for kind, mixture in mixtures.items()}
