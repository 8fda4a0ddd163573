"""The network: stem, cells, pooled features. One class for the one-shot and the pruned network.

    CellPlan   which operations each cell type has, as rows (node, source, operation)
    Cell       runs the rows of its type and sums them into nodes
    Network    stem, cells, global average pooling  ->  features

A network is built from a plan: all candidates for the one-shot network, only those of a
genotype for a task network or a fixed architecture. The weights of the mixture are an
argument of ``forward``, one for each row of the plan, so the network does not know how they
are relaxed, learned or pruned; one of a fixed genotype holds its own constants. It has no
head either: a task brings its own (``metanas.head``).

Source: Elsken et al., CVPR 2020, section 5.1 and equations 1 and 7.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from metanas.errors import InvalidConfigError
from metanas.native import network as engine
from metanas.operations import BatchNorm, FactorizedReduction, Operation, Projection, build_operation
from metanas.space import CELL_INPUTS, CELL_TYPES, REDUCTION, Genotype, SearchSpace


class PlanRow(NamedTuple):
    """One operation on one edge."""

    node: int
    source: int
    operation: str
    copy: int = 0
    """How many equal rows come before it: a fixed genotype may use an operation twice on one edge."""


CellPlan = tuple[PlanRow, ...]


def one_shot_plan(space: SearchSpace) -> dict[str, CellPlan]:
    """All candidates on every edge; row ``e * operations + o`` is operation ``o`` of edge ``e``."""
    rows = tuple(PlanRow(node, source, name) for node, source in space.edges for name in space.operations)
    return dict.fromkeys(CELL_TYPES, rows)


def genotype_plan(genotype: Genotype) -> dict[str, CellPlan]:
    """Only the surviving operations, node by node."""
    plans = {}
    for cell_type in CELL_TYPES:
        rows: list[PlanRow] = []
        for node, kept in enumerate(genotype.cell(cell_type)):
            for edge in kept:
                row = PlanRow(node, edge.source, edge.operation)
                rows.append(row._replace(copy=sum(one[:3] == row[:3] for one in rows)))
        plans[cell_type] = tuple(rows)
    return plans


class Cell(nn.Module):
    """One cell: two inputs, ``nodes`` intermediate nodes, their concatenation."""

    def __init__(
        self, space: SearchSpace, plan: CellPlan, *, in_channels: tuple[int, int], reduces: bool, halve_first: bool
    ) -> None:
        super().__init__()
        self.nodes = space.nodes
        self.plan = plan
        first = FactorizedReduction if halve_first else Projection
        self.first_input: Operation = first(in_channels[0], space.channels, affine=space.affine)
        self.second_input: Operation = Projection(in_channels[1], space.channels, affine=space.affine)
        self.operations = nn.ModuleDict()
        self.keys: list[str] = []
        for row in plan:
            operation = build_operation(
                row.operation,
                space.channels,
                stride=2 if reduces and row.source < CELL_INPUTS else 1,
                affine=space.affine,
            )
            # A weightless operation gives the same on every edge that leaves one input: one serves all.
            weightless = not any(True for _ in operation.parameters())
            self.keys.append(f"from{row.source}_{row.operation}" if weightless else row_key(row))
            if self.keys[-1] not in self.operations:
                self.operations[self.keys[-1]] = operation
        self.shared = [key != row_key(row) for key, row in zip(self.keys, plan, strict=True)]

    def operation(self, index: int) -> Operation:
        """The module of row ``index`` of the plan; rows of a weightless operation on one input share it."""
        return cast(Operation, self.operations[self.keys[index]])

    def forward(
        self, first: Tensor, second: Tensor, weights: Tensor, run: Sequence[bool], paths: Tensor | None
    ) -> Tensor:
        """Run the cell.

        Args:
            first, second: outputs of the two cells before, ``(batch, channels, H, W)``.
            weights: ``(rows of the plan,)``, the weight of each row in its node's sum.
            run: for each row whether it is run at all.
            paths: ``(rows or more, batch)``, DropPath's factor of each row and image; None: all 1.

        Returns:
            ``(batch, nodes * C, H', W')``.
        """
        inputs = [self.first_input(functional.relu(first)), self.second_input(functional.relu(second))]
        rectified: dict[int, Tensor] = {}
        shared: dict[str, Tensor] = {}
        outputs = []
        for node in range(self.nodes):
            total: Tensor | None = None
            for index, row in enumerate(self.plan):
                if row.node != node or not run[index]:
                    continue
                operation, key = self.operation(index), self.keys[index]
                x = inputs[row.source]
                if self.shared[index]:
                    if key not in shared:
                        shared[key] = operation(x)
                    term = shared[key] * weights[index]
                else:
                    if operation.rectified:
                        if row.source not in rectified:
                            rectified[row.source] = functional.relu(x)
                        x = rectified[row.source]
                    term = operation(x, weights[index])
                if paths is not None and row.operation != "skip_connect":
                    term = term * paths[index, :, None, None, None]
                total = term if total is None else total + term
            if total is None:
                raise RuntimeError(f"no operation of node {node} is run; the largest of its weights must be")
            outputs.append(total)
            inputs.append(total)
        return torch.cat(outputs, dim=1)


def row_key(row: PlanRow) -> str:
    """The name of a row's module inside its cell; readable in files and ONNX graphs."""
    again = f"_{row.copy + 1}" if row.copy else ""
    return f"node{row.node}_from{row.source}_{row.operation}{again}"


class Network(nn.Module):
    """Stem, cells and global average pooling: images to features.

    Args:
        space: sizes.
        genotype: the operations of each cell type and their constant weights; None: the one-shot
            network, which holds all operations and whose weights come with every call.

    Raises:
        InvalidConfigError: a genotype of another number of nodes.
    """

    def __init__(self, space: SearchSpace, genotype: Genotype | None = None) -> None:
        super().__init__()
        self.space = space
        self.genotype = genotype
        self.engine: engine.Engine | None = None
        if genotype is not None and len(genotype.normal) != space.nodes:
            raise InvalidConfigError(f"the genotype has {len(genotype.normal)} nodes, the space has {space.nodes}")
        plans = one_shot_plan(space) if genotype is None else genotype_plan(genotype)
        for cell_type in CELL_TYPES:
            # Not in the state dict: the genotype is their one home.
            self.register_buffer(f"{cell_type}_weights", None, persistent=False)
        if genotype is not None:
            self.set_constants(genotype)
        stem_channels = space.stem_multiplier * space.channels
        self.stem = nn.Conv2d(space.in_channels, stem_channels, 3, padding=1, bias=False)
        self.stem_norm = BatchNorm(stem_channels, affine=True)
        self.cells = nn.ModuleList()
        channels = (stem_channels, stem_channels)
        halved = False
        for cell_type in space.cell_types:
            reduces = cell_type == REDUCTION
            self.cells.append(Cell(space, plans[cell_type], in_channels=channels, reduces=reduces, halve_first=halved))
            channels = (channels[1], space.features)
            halved = reduces

    def forward(
        self,
        images: Tensor,
        weights: Mapping[str, Tensor] | None = None,
        *,
        skip_below: float = 0.0,
        run: Mapping[str, Sequence[bool]] | None = None,
        paths: Tensor | None = None,
        twice_differentiable: bool = False,
    ) -> Tensor:
        """Turn images into features.

        Args:
            images: ``(batch, in_channels, H, W)`` float32.
            weights: for each cell type ``(rows of its plan,)``, the weight of each operation;
                None: the genotype's own.
            skip_below: operations of a smaller weight are not run.
            run: for each cell type and row whether it is run, in place of ``skip_below``; where
                ``weights`` cannot be looked at, as under vmap.
            paths: ``draw_paths``; None: no DropPath.
            twice_differentiable: for derivatives of derivatives, which the compiled engine does not have.

        Returns:
            ``(batch, space.features)`` float32.
        """
        if weights is None:
            weights = {cell_type: cast(Tensor, getattr(self, f"{cell_type}_weights")) for cell_type in CELL_TYPES}
        if run is None:
            run = rows_to_run(weights, skip_below=skip_below)
        if paths is None and not twice_differentiable and engine.can_run(self, images, weights):
            return engine.features(self, images, weights, run)
        stem = self.stem_norm(self.stem(images.contiguous(memory_format=torch.channels_last)))
        first, second = stem, stem
        for index, (cell_type, cell) in enumerate(zip(self.space.cell_types, self.cells, strict=True)):
            of_cell = None if paths is None else paths[index]
            first, second = second, cell(first, second, weights[cell_type], run[cell_type], of_cell)
        return cast(Tensor, second).mean(dim=(2, 3))

    def set_constants(self, genotype: Genotype) -> None:
        """Take the constant weights of ``genotype``, which has the operations that this network was built with."""
        for cell_type in CELL_TYPES:
            weights = [edge.weight for node in genotype.cell(cell_type) for edge in node]
            setattr(self, f"{cell_type}_weights", torch.tensor(weights))

    def draw_paths(self, batch: int, *, probability: float, generator: torch.Generator) -> Tensor:
        """DropPath: for each cell, operation and image whether the operation counts, made up for in the rest.

        Args:
            probability: of leaving an operation out, in [0, 1); skip connections always stay.

        Returns:
            float32 ``(cells, rows, batch)``: 0 or ``1 / (1 - probability)``.

        Source: Larsson et al. (FractalNet), arXiv 1605.07648; MetaNAS, appendix A.2.
        """
        rows = max(len(cast(Cell, cell).plan) for cell in self.cells)
        kept = torch.rand(len(self.cells), rows, batch, generator=generator) >= probability
        return kept.to(self.stem.weight) / (1.0 - probability)


def rows_to_run(weights: Mapping[str, Tensor], *, skip_below: float) -> dict[str, list[bool]]:
    """For each cell type and row whether its weight is at least ``skip_below``."""
    return {name: (values.detach() >= skip_below).tolist() for name, values in weights.items()}


def channels_last(module: nn.Module) -> None:
    """Lay the convolution weights out for channels_last, in place: several times faster on a CPU."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def count_parameters(module: nn.Module) -> int:
    """Number of learnable values."""
    return sum(parameter.numel() for parameter in module.parameters())
