"""Real pruning: from the weights of a mixture to the operations that stay.

    keep_above     the paper's rule: everything of weight >= threshold stays
    keep_largest   the rule of DARTS: one operation per edge, k edges per node
    prune          the one that belongs to a sparsification strategy

A node never loses all of its inputs: its largest always stays.

Source: Elsken et al., CVPR 2020, end of section 4.2 and appendix A.1; Liu et al., DARTS.
"""

from collections.abc import Callable, Mapping

from metanas.errors import InvalidConfigError
from metanas.relaxation import Mixture, Strategy
from metanas.space import NORMAL, REDUCTION, CellGenotype, EdgeOperation, Genotype, SearchSpace


def keep_above(mixture: Mixture, space: SearchSpace, *, threshold: float = 0.01) -> CellGenotype:
    """Keep every operation of weight >= ``threshold`` on every input of weight >= ``threshold``.

    The kept operations carry their mixture weights as constants.

    Raises:
        InvalidConfigError: ``threshold`` is not in (0, 1).
    """
    if not 0 < threshold < 1:
        raise InvalidConfigError(f"the pruning threshold must be between 0 and 1, got {threshold}")
    operations, inputs = mixture.operations.tolist(), mixture.inputs.tolist()
    cell = []
    for node in range(space.nodes):
        candidates = [
            (inputs[edge] * weight, inputs[edge] >= threshold and weight >= threshold, space.edges[edge][1], name)
            for edge in range(len(space.edges))[space.node_edges(node)]
            for name, weight in zip(space.operations, operations[edge], strict=True)
        ]
        kept = [candidate for candidate in candidates if candidate[1]] or [max(candidates)]
        cell.append(tuple(EdgeOperation(source, name, weight) for weight, _, source, name in kept))
    return tuple(cell)


def keep_largest(mixture: Mixture, space: SearchSpace) -> CellGenotype:
    """Keep the largest operation of each edge, on the k edges where it is largest, at weight 1.

    What DARTS does at the end of its search.
    """
    operations = mixture.operations.tolist()
    cell = []
    for node in range(space.nodes):
        best = []
        for edge in range(len(space.edges))[space.node_edges(node)]:
            weight, name = max(zip(operations[edge], space.operations, strict=True))
            best.append((weight, space.edges[edge][1], name))
        best.sort(key=lambda row: (-row[0], row[1]))
        kept = sorted(best[: space.inputs_per_node], key=lambda row: row[1])
        cell.append(tuple(EdgeOperation(source, name, 1.0) for _, source, name in kept))
    return tuple(cell)


def prune(
    mixtures: Mapping[str, Mixture], space: SearchSpace, *, strategy: Strategy, threshold: float = 0.01
) -> Genotype:
    """The architecture that survives, by the rule of the strategy that made ``mixtures``."""
    rule: Callable[[Mixture], CellGenotype]
    if strategy == "operations_and_inputs":
        rule = lambda mixture: keep_above(mixture, space, threshold=threshold)  # noqa: E731
    else:
        rule = lambda mixture: keep_largest(mixture, space)  # noqa: E731
    return Genotype(normal=rule(mixtures[NORMAL]), reduction=rule(mixtures[REDUCTION]))
