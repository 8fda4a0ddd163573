"""The search space as data: what a network of MetaNAS can be built from.

    SearchSpace     sizes, candidate operations, which cells reduce
    Genotype        what is left of it after pruning: one cell of each type
    ConvBlocks      the plain convolutional network that few-shot papers compare with: nothing to search

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
    """k of equation 7: how many inputs a node keeps; a node with fewer keeps all of them."""
    operations: tuple[str, ...] = DEFAULT_OPERATIONS
    stem_multiplier: int = 3
    """The stem has ``stem_multiplier * channels`` filters."""
    affine: bool = False
    """Whether the batch norms of the cells have a scale and a shift; only for networks of one fixed genotype."""

    def __post_init__(self) -> None:
        _check_counts(
            self, ("channels", "in_channels", "image_size", "cells", "nodes", "inputs_per_node", "stem_multiplier")
        )
        if self.channels < 2:
            raise InvalidConfigError(f"channels must be at least 2, as reductions halve them, got {self.channels}")
        if not self.operations or len(set(self.operations)) != len(self.operations):
            raise InvalidConfigError(f"operations must be distinct and at least one, got {self.operations}")
        whole = all(isinstance(cell, int) and not isinstance(cell, bool) for cell in self.reduction_cells)
        if not whole or any(not 0 <= cell < self.cells for cell in self.reduction_cells):
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
        """All sets of ``inputs_per_node`` inputs of ``node``: the set I of equation 7.

        A node with fewer inputs has one set, of all of them.
        """
        inputs = CELL_INPUTS + node
        return tuple(combinations(range(inputs), min(self.inputs_per_node, inputs)))

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
        InvalidConfigError: a node without input, an input that comes after its node, or cells of
            unequal numbers of nodes.
    """

    normal: CellGenotype
    reduction: CellGenotype

    def __post_init__(self) -> None:
        if len(self.normal) != len(self.reduction):
            raise InvalidConfigError(
                f"both cells must have as many nodes, got {len(self.normal)} and {len(self.reduction)}"
            )
        for cell_type in CELL_TYPES:
            for node, kept in enumerate(self.cell(cell_type)):
                if not kept:
                    raise InvalidConfigError(f"node {node} of the {cell_type} cell has lost all its inputs")
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


NO_CELLS = Genotype(normal=(), reduction=())
"""The genotype of a network that has no cells, ``ConvBlocks``."""


@dataclass(frozen=True, slots=True)
class ConvBlocks:
    """REPTILE's CNN: blocks of 3x3 convolution, batch norm, ReLU and 2x2 max pooling, then flattened.

    Source: Vinyals et al., NIPS 2016; Nichol et al., arXiv 1803.02999. 113,236 parameters with a
    head of 20 classes on 28x28x1, 121,093 with one of 5 on 84x84x3.

    Raises:
        InvalidConfigError: a value is out of range, or no pixel is left after the last pooling.
    """

    filters: int = 64
    blocks: int = 4
    in_channels: int = 1
    image_size: int = 28

    def __post_init__(self) -> None:
        _check_counts(self, ("filters", "blocks", "in_channels", "image_size"))
        if self.final_size < 1:
            raise InvalidConfigError(
                f"{self.blocks} blocks halve {self.image_size} pixels to nothing; take fewer blocks or larger images"
            )

    @property
    def final_size(self) -> int:
        """Height and width after the last pooling."""
        return self.image_size >> self.blocks

    @property
    def features(self) -> int:
        """Length of the feature vector that goes into the head."""
        return self.filters * self.final_size**2

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for files."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ConvBlocks":
        """The inverse of ``to_dict``.

        Raises:
            InvalidConfigError: an unknown key or a value out of range.
        """
        return from_plain(cls, values)


Space = SearchSpace | ConvBlocks


def space_to_dict(space: Space) -> dict[str, Any]:
    """Plain values, for files; ``kind`` says which of the two it is."""
    return {"kind": "cells" if isinstance(space, SearchSpace) else "conv_blocks", **space.to_dict()}


def space_from_dict(values: dict[str, Any]) -> Space:
    """The inverse of ``space_to_dict``; without ``kind`` it is a search space.

    Raises:
        InvalidConfigError: an unknown kind or key, or a value out of range.
    """
    rest = {key: value for key, value in values.items() if key != "kind"}
    match values.get("kind", "cells"):
        case "cells":
            return SearchSpace.from_dict(rest)
        case "conv_blocks":
            return ConvBlocks.from_dict(rest)
    raise InvalidConfigError(f"unknown kind of network {values['kind']!r}; there are cells and conv_blocks")


def _check_counts(settings: object, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(settings, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidConfigError(f"{name} must be a whole number of at least 1, got {value!r}")
