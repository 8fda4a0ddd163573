"""The network: stem, cells, pooled features. One class for the one-shot and the pruned network.

    CellPlan   which operations each cell type has, as rows (node, source, operation)
    Cell       runs the rows of its type and sums them into nodes
    Network    stem, cells, global average pooling  ->  features

A network is built from a plan: all candidates for the one-shot network, only the survivors
for a task network. The weights of the mixture are an argument of ``forward``, one for each
row of the plan, so the network does not know how they are relaxed, learned or pruned. It
has no head either: a task brings its own (``metanas.head``).

Source: Elsken et al., CVPR 2020, section 5.1 and equations 1 and 7.
"""

from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from metanas.operations import BatchNorm, FactorizedReduction, Operation, Projection, build_operation
from metanas.space import CELL_INPUTS, CELL_TYPES, REDUCTION, Genotype, SearchSpace


class PlanRow(NamedTuple):
    """One operation on one edge."""

    node: int
    source: int
    operation: str


CellPlan = tuple[PlanRow, ...]


def one_shot_plan(space: SearchSpace) -> dict[str, CellPlan]:
    """All candidates on every edge; row ``e * operations + o`` is operation ``o`` of edge ``e``."""
    rows = tuple(PlanRow(node, source, name) for node, source in space.edges for name in space.operations)
    return dict.fromkeys(CELL_TYPES, rows)


def genotype_plan(genotype: Genotype) -> dict[str, CellPlan]:
    """Only the surviving operations, node by node."""
    return {
        cell_type: tuple(
            PlanRow(node, edge.source, edge.operation)
            for node, kept in enumerate(genotype.cell(cell_type))
            for edge in kept
        )
        for cell_type in CELL_TYPES
    }


class Cell(nn.Module):
    """One cell: two inputs, ``nodes`` intermediate nodes, their concatenation."""

    def __init__(
        self, space: SearchSpace, plan: CellPlan, *, in_channels: tuple[int, int], reduces: bool, halve_first: bool
    ) -> None:
        super().__init__()
        self.nodes = space.nodes
        self.plan = plan
        first = FactorizedReduction if halve_first else Projection
        self.first_input: Operation = first(in_channels[0], space.channels)
        self.second_input: Operation = Projection(in_channels[1], space.channels)
        self.operations = nn.ModuleDict()
        self.keys: list[str] = []
        for row in plan:
            operation = build_operation(
                row.operation, space.channels, stride=2 if reduces and row.source < CELL_INPUTS else 1
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

    def forward(self, first: Tensor, second: Tensor, weights: Tensor, skip_below: float) -> Tensor:
        """Run the cell.

        Args:
            first, second: outputs of the two cells before, ``(batch, channels, H, W)``.
            weights: ``(rows of the plan,)``, the weight of each row in its node's sum.
            skip_below: rows of a smaller weight are left out.

        Returns:
            ``(batch, nodes * C, H', W')``.
        """
        inputs = [self.first_input(functional.relu(first)), self.second_input(functional.relu(second))]
        values = weights.detach().tolist()
        rectified: dict[int, Tensor] = {}
        shared: dict[str, Tensor] = {}
        outputs = []
        for node in range(self.nodes):
            total: Tensor | None = None
            for index, row in enumerate(self.plan):
                if row.node != node or values[index] < skip_below:
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
                total = term if total is None else total + term
            if total is None:
                raise RuntimeError(f"node {node} has no operation of weight {skip_below} or more")
            outputs.append(total)
            inputs.append(total)
        return torch.cat(outputs, dim=1)


def row_key(row: PlanRow) -> str:
    """The name of a row's module inside its cell; readable in files and ONNX graphs."""
    return f"node{row.node}_from{row.source}_{row.operation}"


class Network(nn.Module):
    """Stem, cells and global average pooling: images to features.

    Args:
        space: sizes.
        plans: the operations of each cell type, from ``one_shot_plan`` or ``genotype_plan``.
    """

    def __init__(self, space: SearchSpace, plans: Mapping[str, CellPlan]) -> None:
        super().__init__()
        self.space = space
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

    def forward(self, images: Tensor, weights: Mapping[str, Tensor], *, skip_below: float = 0.0) -> Tensor:
        """Turn images into features.

        Args:
            images: ``(batch, in_channels, H, W)`` float32.
            weights: for each cell type ``(rows of its plan,)``, the weight of each operation.
            skip_below: operations of a smaller weight are not run.

        Returns:
            ``(batch, space.features)`` float32.
        """
        stem = self.stem_norm(self.stem(images.contiguous(memory_format=torch.channels_last)))
        first, second = stem, stem
        for cell_type, cell in zip(self.space.cell_types, self.cells, strict=True):
            first, second = second, cell(first, second, weights[cell_type], skip_below)
        return cast(Tensor, second).mean(dim=(2, 3))


def channels_last(module: nn.Module) -> None:
    """Lay the convolution weights out for channels_last, in place: several times faster on a CPU."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def count_parameters(module: nn.Module) -> int:
    """Number of learnable values."""
    return sum(parameter.numel() for parameter in module.parameters())
