"""The architecture within a budget that loses least: changes of one operation at a time.

    fit             genotype, loss of a genotype  ->  one that fits
    genotype_rows   genotype                      ->  weights with which a one-shot network computes it

A change takes an operation out, or puts a cheaper one in its place. Each round makes the change that
raises the loss least for what it saves.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor

from metanas.budget import Budget, Cost, cheapest, check_possible, chosen_cost, fixed_cost, operation_costs, rows_of
from metanas.space import CELL_TYPES, EdgeOperation, Genotype, SearchSpace

LEAST_RISE = 1e-3
"""Added to every rise of the loss before it is divided by what is saved: of equal rises the larger saving wins."""
TRIED_EACH_ROUND = 6
"""Changes whose loss is measured anew in each round, the most promising ones."""


def genotype_rows(genotype: Genotype, space: SearchSpace) -> dict[str, Tensor]:
    """The weights with which a one-shot network computes what the network of ``genotype`` computes.

    Returns:
        For each cell type ``(edges * operations,)``.
    """
    places = {row: index for index, row in enumerate(rows_of(space))}
    rows = {cell_type: torch.zeros(len(places)) for cell_type in CELL_TYPES}
    for cell_type in CELL_TYPES:
        for node, kept in enumerate(genotype.cell(cell_type)):
            for edge in kept:
                rows[cell_type][places[node, edge.source, edge.operation]] += edge.weight
    return rows


def fit(
    genotype: Genotype, *, budget: Budget, space: SearchSpace, n_way: int, loss: Callable[[Genotype], float]
) -> Genotype:
    """Change an architecture until it fits, each time where it costs the least loss for what it saves.

    What was changed and need not have been, as a later change saved enough, is put back.

    Args:
        loss: of a network of that architecture on the support set.

    Raises:
        InvalidTaskError: no architecture fits.
    """
    check_possible(budget, space, n_way=n_way)
    fixed = fixed_cost(space, genotype, n_way=n_way)
    rises: dict[_Change, float] = {}
    done: list[_Change] = []
    now = loss(genotype)

    def cost(one: Genotype) -> Cost:
        return fixed + chosen_cost(space, one)

    changed = genotype
    while budget.excess(before := cost(changed)) > 1:
        savings = {
            change: saved
            for change in _changes(changed, space)
            if (saved := budget.saving(before, cost(change.apply(changed)))) > 0
        }
        if not savings:
            return cheapest(space)
        for change in savings.keys() - rises.keys():
            rises[change] = loss(change.apply(changed)) - now

        def price(change: _Change, savings: dict[_Change, float] = savings) -> float:
            return (max(0.0, rises[change]) + LEAST_RISE) / savings[change]

        # What was measured beside other operations has aged: the most promising are measured again.
        for change in sorted(savings, key=price)[:TRIED_EACH_ROUND]:
            rises[change] = loss(change.apply(changed)) - now
        best = min(savings, key=price)
        done.append(best)
        changed, now = best.apply(changed), now + rises[best]
    for change in sorted(done, key=rises.__getitem__, reverse=True):
        fewer = [one for one in done if one is not change]
        with suppress(ValueError):  # a later change was of what this one had put in
            if budget.excess(cost(restored := _apply(genotype, fewer))) <= 1:
                done, changed = fewer, restored
    return changed


def _apply(genotype: Genotype, changes: Sequence["_Change"]) -> Genotype:
    for change in changes:
        genotype = change.apply(genotype)
    return genotype


class _Change(NamedTuple):
    """Take one operation out, or put another in its place."""

    cell_type: str
    node: int
    edge: EdgeOperation
    instead: str | None

    def apply(self, genotype: Genotype) -> Genotype:
        cells = {name: [list(node) for node in genotype.cell(name)] for name in CELL_TYPES}
        node = cells[self.cell_type][self.node]
        place = node.index(self.edge)
        node[place : place + 1] = (
            [] if self.instead is None else [EdgeOperation(self.edge.source, self.instead, self.edge.weight)]
        )
        return Genotype(**{name: tuple(tuple(one) for one in cells[name]) for name in CELL_TYPES})


def _changes(genotype: Genotype, space: SearchSpace) -> Iterator[_Change]:
    for cell_type in CELL_TYPES:
        costs = operation_costs(space)[cell_type]
        for node, kept in enumerate(genotype.cell(cell_type)):
            there = {(edge.source, edge.operation) for edge in kept}
            for edge in kept:
                if len(kept) > 1:
                    yield _Change(cell_type, node, edge, None)
                for name in space.operations:
                    key = (edge.source, name)
                    if key not in there and costs[key] < costs[edge.source, edge.operation]:
                        yield _Change(cell_type, node, edge, name)
