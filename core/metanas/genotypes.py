"""Architectures that papers report, to train and to compare with.

    GENOTYPES         name  ->  Genotype
    named_genotype    the same, with an error that names those there are
    random_genotype   sizes, seed  ->  Genotype, what a search has to beat

``metanas_omniglot`` and ``metanas_miniimagenet`` are the cells that MetaNAS found most often,
``autometa`` is AutoMeta's, the same for both cell types. Every operation has the weight 1.0: the
papers give structures, and their networks just sum. AutoMeta's cells have 5 nodes, the others 3.

Sources: Elsken et al., CVPR 2020, figure 4; Kim et al. (AutoMeta), arXiv 1806.06927.
"""

import random
from collections.abc import Sequence

from metanas.errors import InvalidConfigError
from metanas.space import CELL_INPUTS, CellGenotype, EdgeOperation, Genotype


def _cell(*nodes: tuple[tuple[int, str], ...]) -> CellGenotype:
    return tuple(tuple(EdgeOperation(source, operation, 1.0) for source, operation in node) for node in nodes)


_AUTOMETA = _cell(
    ((1, "conv_3x3"), (1, "max_pool_3x3")),
    ((2, "conv_1x5_5x1"), (2, "max_pool_3x3")),
    ((2, "conv_3x3"), (3, "conv_1x5_5x1")),
    ((3, "conv_3x3"), (3, "conv_3x3")),
    ((3, "conv_1x5_5x1"), (2, "conv_3x3")),
)

GENOTYPES: dict[str, Genotype] = {
    "metanas_omniglot": Genotype(
        normal=_cell(
            ((0, "dil_conv_3x3"), (1, "sep_conv_3x3")),
            ((0, "avg_pool_3x3"), (1, "sep_conv_3x3")),
            ((0, "conv_1x5_5x1"), (2, "conv_3x3")),
        ),
        reduction=_cell(
            ((0, "skip_connect"), (1, "sep_conv_3x3")),
            ((0, "conv_3x3"), (1, "dil_conv_3x3")),
            ((0, "dil_conv_3x3"), (2, "conv_1x5_5x1")),
        ),
    ),
    "metanas_miniimagenet": Genotype(
        normal=_cell(
            ((0, "conv_1x5_5x1"), (1, "conv_3x3")),
            ((0, "conv_3x3"), (2, "sep_conv_3x3")),
            ((1, "dil_conv_3x3"), (3, "conv_1x5_5x1")),
        ),
        reduction=_cell(
            ((0, "sep_conv_3x3"), (1, "conv_3x3")),
            ((0, "conv_3x3"), (2, "sep_conv_3x3")),
            ((0, "conv_3x3"), (1, "dil_conv_3x3")),
        ),
    ),
    "autometa": Genotype(normal=_AUTOMETA, reduction=_AUTOMETA),
}


def named_genotype(name: str) -> Genotype:
    """One of ``GENOTYPES``.

    Raises:
        InvalidConfigError: there is none of that name.
    """
    if name not in GENOTYPES:
        raise InvalidConfigError(f"unknown genotype {name!r}; known are {', '.join(GENOTYPES)}")
    return GENOTYPES[name]


def random_genotype(seed: int, *, nodes: int, inputs_per_node: int, operations: Sequence[str]) -> Genotype:
    """Draw an architecture of a search space, all equally likely.

    Args:
        seed: always gives the same one.
        nodes: of a cell.
        inputs_per_node: different ones; of a node that has no more inputs before it, all.
        operations: names to draw from, one for each input.
    """
    draw = random.Random(seed)

    def cell() -> CellGenotype:
        return tuple(
            tuple(
                EdgeOperation(source, draw.choice(operations), 1.0)
                for source in sorted(draw.sample(range(there), min(inputs_per_node, there)))
            )
            for there in range(CELL_INPUTS, CELL_INPUTS + nodes)
        )

    return Genotype(normal=cell(), reduction=cell())
