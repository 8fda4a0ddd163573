"""The arithmetic that an algorithm needs: FLOP of the operations that it ran.

    Counter.forward     of one image, with the operations of a mask
    Counter.learning    the same, forward and backward
    adaptation_flops    a whole Adapt, step by step

Counted are the convolutions and linear layers, two FLOP a multiply-add, as ``metanas.cost`` counts
them: taps on the padding are in; batch norm, ReLU, pooling and sums are not. A backward pass costs
twice the forward pass, one for the gradient of the input and one for that of the weights; the stem
has no gradient of its input, so that third of it is left out.

A mask says for each cell type which rows of the plan ran: what falls under ``skip_below`` in the
course of an adaptation is not needed, and its arithmetic is no part of the limit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from metanas.network import Network
from metanas.space import CELL_TYPES, Genotype, SearchSpace

Mask = tuple[tuple[bool, ...], ...]
"""For each of ``CELL_TYPES`` and each row of the plan whether it ran."""


def mask_of(weights: Mapping[str, torch.Tensor], *, skip_below: float) -> Mask:
    """The operations that are run with these weights."""
    return tuple(tuple((weights[name].detach() >= skip_below).tolist()) for name in CELL_TYPES)


class Counter:
    """FLOP of one image in one network; each mask is counted once, on torch's meta device."""

    def __init__(self, space: SearchSpace, genotype: Genotype | None = None, *, n_way: int = 0) -> None:
        with torch.device("meta"):
            self._network = Network(space, genotype)
        self._known: dict[Mask, int] = {}
        self._size = (1, space.in_channels, space.image_size, space.image_size)
        self._head = 2 * space.features * n_way
        self._stem = 2 * 9 * space.in_channels * space.stem_multiplier * space.channels * space.image_size**2

    def everything(self) -> Mask:
        """All rows of the plan."""
        rows = dict.fromkeys(CELL_TYPES, 0)
        for name, cell in zip(self._network.space.cell_types, self._network.cells, strict=True):
            rows[name] = len(cell.plan)  # type: ignore[arg-type]
        return tuple((True,) * rows[name] for name in CELL_TYPES)

    def forward(self, mask: Mask | None = None) -> int:
        """Of the forward pass of one image; all operations without a mask."""
        mask = mask or self.everything()
        if mask not in self._known:
            run = dict(zip(CELL_TYPES, mask, strict=True))
            with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
                weights = {name: torch.empty(len(rows)) for name, rows in run.items()}
                self._network(torch.empty(self._size), weights, run=run)
            self._known[mask] = int(counter.get_total_flops()) + self._head
        return self._known[mask]

    def learning(self, mask: Mask | None = None) -> int:
        """Of the forward and the backward pass of one image."""
        return 3 * self.forward(mask) - self._stem


@dataclass(frozen=True, slots=True)
class AdaptationFlops:
    """FLOP of one adaptation, by part."""

    architecture: int
    """Of the architecture steps."""
    weights: int
    """Of the weight steps."""
    rest: int
    """Forward passes only: the prototypes of the head, the frozen statistics, the support accuracy."""


def adaptation_flops(
    space: SearchSpace,
    masks: Sequence[Mask],
    genotype: Genotype,
    *,
    weight_steps: int,
    batch: int,
    support: int,
    n_way: int,
) -> AdaptationFlops:
    """FLOP of an adaptation as it was run.

    Args:
        masks: of the head's prototypes, then of each architecture step.
        genotype: what survived.
        batch: images of a step.
        support: images of the support set.
    """
    one_shot = Counter(space, n_way=n_way)
    task = Counter(space, genotype, n_way=n_way)
    return AdaptationFlops(
        architecture=batch * sum(one_shot.learning(mask) for mask in masks[1:]),
        weights=batch * weight_steps * task.learning(),
        rest=support * (one_shot.forward(masks[0]) + 2 * task.forward()),
    )
