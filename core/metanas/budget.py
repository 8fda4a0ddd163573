"""A budget that the search obeys: a task's network is to fit into so many parameters or multiply-adds.

    Budget            the limits
    operation_costs   search space            ->  what each operation of each cell type costs
    network_cost      genotype                ->  what a whole task network costs
    penalty           weights of a mixture    ->  how far its expected cost lies over the limits

While weights and architecture learn together, the penalty draws the mixture towards cheap operations.
After the paper's pruning, ``budget_fitting`` changes what is left until it fits. Where meta-training has
separated the operations so far that no gradient is left, all the work is done there.

Expected cost as a penalty: Cai et al. (ProxylessNAS), arXiv 1812.00332, section 3.3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from metanas.backbone import build_backbone
from metanas.cost import multiply_adds
from metanas.errors import InvalidConfigError, InvalidTaskError
from metanas.network import count_parameters
from metanas.operations import build_operation
from metanas.space import (
    CELL_INPUTS,
    CELL_TYPES,
    NORMAL,
    REDUCTION,
    CellGenotype,
    EdgeOperation,
    Genotype,
    SearchSpace,
    Space,
)


class Cost(NamedTuple):
    """Of a network or of a part of it, for one image."""

    parameters: int
    multiply_adds: int

    def __add__(self, other: object) -> "Cost":
        if not isinstance(other, Cost):
            return NotImplemented
        return Cost(self.parameters + other.parameters, self.multiply_adds + other.multiply_adds)


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that a task network may have; None: any.

    Raises:
        InvalidConfigError: a limit under 1.
    """

    max_parameters: int | None = None
    """Of the task network, head included."""
    max_multiply_adds: int | None = None
    """As ``cost.multiply_adds`` counts them."""

    def __post_init__(self) -> None:
        for name in ("max_parameters", "max_multiply_adds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidConfigError(f"{name} must be at least 1, got {value}")

    def __bool__(self) -> bool:
        return self.max_parameters is not None or self.max_multiply_adds is not None

    def excess(self, cost: Cost) -> float:
        """By which factor ``cost`` exceeds the limits; at most 1 where it fits."""
        return max(value / limit for value, limit in zip(cost, self._limits(), strict=True) if limit is not None)

    def saving(self, before: Cost, after: Cost) -> float:
        """How much nearer a change comes to the limits that ``before`` exceeds: 1 reaches one of them."""
        parts = [
            min(1.0, (old - new) / (old - limit))
            for old, new, limit in zip(before, after, self._limits(), strict=True)
            if limit is not None and old > limit
        ]
        return sum(parts)

    def _limits(self) -> tuple[int | None, int | None]:
        return self.max_parameters, self.max_multiply_adds


@lru_cache(maxsize=8)
def operation_costs(space: SearchSpace) -> dict[str, dict[tuple[int, str], Cost]]:
    """By cell type, source and operation: what it costs in all cells of that type together."""
    costs = {cell_type: _no_costs(space) for cell_type in CELL_TYPES}
    size = space.image_size
    for cell_type in space.cell_types:
        small = -(-size // 2) if cell_type == REDUCTION else size
        for source, name in costs[cell_type]:
            outer = source < CELL_INPUTS
            one = _operation_cost(
                space, name, stride=2 if outer and cell_type == REDUCTION else 1, size=size if outer else small
            )
            costs[cell_type][source, name] += one
        size = small
    return costs


def network_cost(space: Space, genotype: Genotype, *, n_way: int) -> Cost:
    """Of a whole task network with its head."""
    with torch.device("meta"):
        parameters = count_parameters(build_backbone(space, genotype)) + n_way * (space.features + 1)
    return Cost(parameters, multiply_adds(space, genotype, n_way=n_way))


def fixed_cost(space: SearchSpace, genotype: Genotype, *, n_way: int) -> Cost:
    """What every network of ``space`` costs that reads the inputs which ``genotype`` reads: stem, projections, head."""
    chosen = chosen_cost(space, genotype)
    return Cost(*(whole - part for whole, part in zip(network_cost(space, genotype, n_way=n_way), chosen, strict=True)))


def cheapest(space: SearchSpace) -> Genotype:
    """The architecture of least parameters: one operation a node."""

    def cell(cell_type: str) -> CellGenotype:
        costs = operation_costs(space)[cell_type]
        return tuple(
            (EdgeOperation(*min((key for key in costs if key[0] < CELL_INPUTS + node), key=costs.__getitem__), 1.0),)
            for node in range(space.nodes)
        )

    return Genotype(normal=cell(NORMAL), reduction=cell(REDUCTION))


def check_possible(budget: Budget, space: SearchSpace, *, n_way: int) -> None:
    """Refuse a budget that no architecture of ``space`` meets.

    Raises:
        InvalidTaskError: with what the smallest one needs.
    """
    least = network_cost(space, cheapest(space), n_way=n_way)
    if budget and budget.excess(least) > 1:
        raise InvalidTaskError(
            f"no network of {n_way} classes fits into {_text(budget)}: the smallest of this meta-model has "
            f"{least.parameters:,} parameters and {least.multiply_adds:,} multiply-adds; raise the limit"
        )


def penalty(weights: Mapping[str, Tensor], *, budget: Budget, space: SearchSpace, fixed: Cost) -> Tensor:
    """How far the expected cost of a mixture exceeds the limits, as a fraction of them; 0 where it fits.

    Args:
        weights: by cell type ``(edges * operations,)``, each operation's weight in its node's sum.
        fixed: what does not depend on them.
    """
    total = torch.zeros(())
    limits = (budget.max_parameters, budget.max_multiply_adds)
    for number, limit in enumerate(limits):
        if limit is None:
            continue
        expected = torch.tensor(float(fixed[number]))
        for cell_type, rows in weights.items():
            costs = operation_costs(space)[cell_type]
            row_costs = torch.tensor([float(costs[source, name][number]) for _, source, name in rows_of(space)])
            expected = expected + (rows * row_costs).sum()
        total = total + torch.relu(expected / limit - 1.0)
    return total


def chosen_cost(space: SearchSpace, genotype: Genotype) -> Cost:
    """Of the operations of an architecture alone."""
    costs = operation_costs(space)
    chosen = [
        costs[cell_type][edge.source, edge.operation]
        for cell_type in CELL_TYPES
        for node in genotype.cell(cell_type)
        for edge in node
    ]
    return Cost(sum(one.parameters for one in chosen), sum(one.multiply_adds for one in chosen))


def rows_of(space: SearchSpace) -> list[tuple[int, int, str]]:
    """Node, source and operation of each row of a one-shot network's weights."""
    return [(node, source, name) for node, source in space.edges for name in space.operations]


def _no_costs(space: SearchSpace) -> dict[tuple[int, str], Cost]:
    return {(source, name): Cost(0, 0) for source in range(CELL_INPUTS + space.nodes - 1) for name in space.operations}


def _operation_cost(space: SearchSpace, name: str, *, stride: int, size: int) -> Cost:
    with torch.device("meta"), torch.no_grad():
        operation = build_operation(name, space.channels, stride=stride, affine=space.affine).eval()
        with FlopCounterMode(display=False) as counter:
            operation(torch.empty(1, space.channels, size, size))
    return Cost(count_parameters(operation), int(counter.get_total_flops()) // 2)


def _text(budget: Budget) -> str:
    parts = []
    if budget.max_parameters is not None:
        parts.append(f"{budget.max_parameters:,} parameters")
    if budget.max_multiply_adds is not None:
        parts.append(f"{budget.max_multiply_adds:,} multiply-adds")
    return " and ".join(parts)
