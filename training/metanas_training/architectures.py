"""Which architectures tasks end with, and which is the most common.

    count_structures   genotypes  ->  how many have each structure
    most_common        genotypes  ->  the structure that most have, at its mean weights
    most_common_cell   the same for one cell type alone

Ties go to the structure that comes first in the order of its nodes' (input, operation) pairs,
whatever the order of the tasks. Source: Elsken et al., CVPR 2020, section 5.2 and Figure 4.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from metanas.space import CellGenotype, EdgeOperation, Genotype

T = TypeVar("T")
Structure = tuple[Any, ...]
"""Nested tuples: equal for architectures of one shape, and ordered."""


@dataclass(frozen=True, slots=True)
class CommonGenotype:
    """The most common architecture; each weight is the mean over the tasks that have it."""

    genotype: Genotype
    share: float
    """Fraction of the tasks."""


@dataclass(frozen=True, slots=True)
class CommonCell:
    """The most common cell of one type; each weight is the mean over the tasks that have it."""

    cell: CellGenotype
    share: float
    """Fraction of the tasks."""


def count_structures(genotypes: Sequence[Genotype]) -> Counter[Structure]:
    """How many of ``genotypes`` have each structure."""
    return Counter(genotype.structure() for genotype in genotypes)


def most_common(genotypes: Sequence[Genotype]) -> CommonGenotype:
    """The architecture, both cells together, that most of ``genotypes`` have."""
    alike = _largest_group(genotypes, lambda genotype: genotype.structure())
    genotype = Genotype(
        normal=_mean_cell([one.normal for one in alike]), reduction=_mean_cell([one.reduction for one in alike])
    )
    return CommonGenotype(genotype, len(alike) / len(genotypes))


def most_common_cell(genotypes: Sequence[Genotype], cell_type: str) -> CommonCell:
    """The cell of ``cell_type`` that most of ``genotypes`` have, whatever their other cell."""
    cells = [genotype.cell(cell_type) for genotype in genotypes]
    alike = _largest_group(cells, _cell_structure)
    return CommonCell(_mean_cell(alike), len(alike) / len(cells))


def _cell_structure(cell: CellGenotype) -> Structure:
    return tuple(tuple((edge.source, edge.operation) for edge in node) for node in cell)


def _largest_group(items: Sequence[T], structure: Callable[[T], Structure]) -> list[T]:
    counts = Counter(structure(item) for item in items)
    largest = min(counts, key=lambda one: (-counts[one], one))
    return [item for item in items if structure(item) == largest]


def _mean_cell(cells: Sequence[CellGenotype]) -> CellGenotype:
    return tuple(
        tuple(
            EdgeOperation(edges[0].source, edges[0].operation, sum(edge.weight for edge in edges) / len(edges))
            for edges in zip(*nodes, strict=True)
        )
        for nodes in zip(*cells, strict=True)
    )
