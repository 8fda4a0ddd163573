"""The search space as data: what a network of MetaNAS can be built from.

    SearchSpace     sizes, candidate operations, which cells reduce
    Genotype        what is left of it after pruning: one cell of each type

A cell has two inputs (the outputs of the two cells before it), some intermediate
nodes, and concatenates the nodes' outputs. Input numbers 0 and 1 are the cell's
inputs; 2, 3, ... are its own nodes. All cells of one type share one architecture.

Nothing here knows tensors. Source: Elsken et al., CVPR 2020, section 5.1.
"""

from dataclasses import dataclass
from itertools import combinations
from math import isfinite
from typing import Any

from metanas.errors import InvalidConfigError
from metanas.plain import from_plain, to_plain

NORMAL = "normal"
REDUCTION = "reduction"
CELL_TYPES = (NORMAL, REDUCTION)

CELL_INPUTS = 2

DEFAULT_OPERATIONS = (
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "conv_1x5_5x1",
    "conv_3x3",
    "sep_conv_3x3",
    "dil_conv_3x3",
)


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """One search space. The defaults are the paper's for about 100,000 parameters.

    Raises:
        InvalidConfigError: a value is out of range; the message names it.
    """

    channels: int = 28
    """Number of filters C of every operation, constant through the network."""
    in_channels: int = 1
    """Channels of an image: 1 (grey) or 3 (RGB)."""
    image_size: int = 28
    """Height and width of an image, in pixels."""
    cells: int = 4
    reduction_cells: tuple[int, ...] = (1, 3)
    """Which cells (from 0) have stride 2 on their two inputs."""
    nodes: int = 3
    """Intermediate nodes of a cell."""
    inputs_per_node: int = 2
    """k of equation 7: how many inputs a node keeps."""
    operations: tuple[str, ...] = DEFAULT_OPERATIONS
    stem_multiplier: int = 3
    """The stem has ``stem_multiplier * channels`` filters."""

    def __post_init__(self) -> None:
        for name in ("channels", "in_channels", "image_size", "cells", "nodes", "inputs_per_node", "stem_multiplier"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InvalidConfigError(f"{name} must be a whole number of at least 1, got {value!r}")
        if self.channels < 2:
            raise InvalidConfigError(f"channels must be at least 2, as reductions halve them, got {self.channels}")
        if self.inputs_per_node > CELL_INPUTS:
            # The first node has two inputs only, so it has no combination of three.
            raise InvalidConfigError(
                f"inputs_per_node must be at most {CELL_INPUTS}, the inputs of a cell's first node, "
                f"got {self.inputs_per_node}"
            )
        if not self.operations or len(set(self.operations)) != len(self.operations):
            raise InvalidConfigError(f"operations must be distinct and at least one, got {self.operations}")
        if any(not 0 <= cell < self.cells for cell in self.reduction_cells):
            raise InvalidConfigError(f"reduction_cells must name cells 0..{self.cells - 1}, got {self.reduction_cells}")

    @property
    def cell_types(self) -> tuple[str, ...]:
        """The type of each cell, first to last."""
        return tuple(REDUCTION if index in self.reduction_cells else NORMAL for index in range(self.cells))

    @property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """All edges (node, input) of a cell, node by node: (0, 0), (0, 1), (1, 0), ..."""
        return tuple((node, source) for node in range(self.nodes) for source in range(CELL_INPUTS + node))

    @property
    def features(self) -> int:
        """Length of the feature vector that goes into the head."""
        return self.nodes * self.channels

    def node_edges(self, node: int) -> slice:
        """Which rows of ``edges`` belong to ``node``."""
        first = sum(CELL_INPUTS + earlier for earlier in range(node))
        return slice(first, first + CELL_INPUTS + node)

    def combinations(self, node: int) -> tuple[tuple[int, ...], ...]:
        """All sets of ``inputs_per_node`` inputs of ``node``: the set I of equation 7."""
        return tuple(combinations(range(CELL_INPUTS + node), self.inputs_per_node))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for files."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "SearchSpace":
        """The inverse of ``to_dict``.

        Raises:
            InvalidConfigError: an unknown key or a value out of range.
        """
        return from_plain(cls, values)


@dataclass(frozen=True, slots=True)
class EdgeOperation:
    """One surviving operation of a node: ``weight * operation(input)`` is added to the node's sum."""

    source: int
    """Input number: 0 and 1 are the cell's inputs, 2, 3, ... its own nodes."""
    operation: str
    weight: float
    """The constant mixture weight, above 0."""

    def __post_init__(self) -> None:
        if not (isfinite(self.weight) and self.weight > 0):
            raise InvalidConfigError(f"the weight of {self.operation} must be above 0, got {self.weight}")


CellGenotype = tuple[tuple[EdgeOperation, ...], ...]
"""The surviving operations of each node, first to last; never empty for a node."""


@dataclass(frozen=True, slots=True)
class Genotype:
    """The architecture that survived pruning.

    Raises:
        InvalidConfigError: a node without input, an operation twice, or an input that comes after its node.
    """

    normal: CellGenotype
    reduction: CellGenotype

    def __post_init__(self) -> None:
        for cell_type in CELL_TYPES:
            for node, kept in enumerate(self.cell(cell_type)):
                if not kept:
                    raise InvalidConfigError(f"node {node} of the {cell_type} cell has lost all its inputs")
                rows = [(edge.source, edge.operation) for edge in kept]
                if len(set(rows)) != len(rows):
                    raise InvalidConfigError(f"node {node} of the {cell_type} cell has an operation twice: {rows}")
                late = [edge.source for edge in kept if not 0 <= edge.source < CELL_INPUTS + node]
                if late:
                    raise InvalidConfigError(f"node {node} of the {cell_type} cell cannot read from input {late[0]}")

    def cell(self, cell_type: str) -> CellGenotype:
        """The cell of ``cell_type``, "normal" or "reduction"."""
        return self.normal if cell_type == NORMAL else self.reduction

    def structure(self) -> tuple[tuple[tuple[tuple[int, str], ...], ...], ...]:
        """The genotype without its weights: equal for networks of one shape."""
        return tuple(
            tuple(tuple((edge.source, edge.operation) for edge in node) for node in self.cell(cell_type))
            for cell_type in CELL_TYPES
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values: cell type -> nodes -> [source, operation, weight]."""
        return {
            cell_type: [[[edge.source, edge.operation, edge.weight] for edge in node] for node in self.cell(cell_type)]
            for cell_type in CELL_TYPES
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Genotype":
        """The inverse of ``to_dict``."""

        def cell(rows: Any) -> CellGenotype:
            return tuple(tuple(EdgeOperation(int(s), str(o), float(w)) for s, o, w in node) for node in rows)

        return cls(normal=cell(values[NORMAL]), reduction=cell(values[REDUCTION]))
