"""Soft pruning: choose one operation per edge and k inputs per node without a cut that hurts.

While a task is learned, the temperature of the softmax over candidates falls, so on each edge
one operation comes to carry nearly all the weight, and at each node one combination of inputs.
Dropping the rest then hardly changes the output, and no retraining is needed.

    initial_architecture   a search space             ->  architecture parameters, all equal
    anneal                 how far adaptation has got ->  temperature
    soften                 alphas of edges            ->  operation weights   (equation 5)
    weigh_inputs           weights of combinations    ->  input weights       (equation 7)
    relax                  all parameters of a space  ->  a Mixture for each cell type
    perturb                parameters                 ->  the same with Gumbel noise

Which relaxation and what it makes sparse are arguments of ``relax``: the softmax without
annealing of DARTS is strategy "none", the annealed one is the paper's, Gumbel noise makes it
SNAS', and a one-hot choice with the gradient of the soft one GDAS'.

Pure functions on tensors: nothing here holds state or chooses a device.
Sources: Elsken et al., CVPR 2020, sections 4.1 and 4.2, appendix A.1; SNAS, arXiv 1812.09926;
GDAS, arXiv 1910.04465; Gumbel-softmax: Jang et al., arXiv 1611.01144.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from metanas.errors import InvalidConfigError
from metanas.space import CELL_TYPES, SearchSpace

Strategy = Literal["none", "operations", "operations_and_inputs"]
"""What the falling temperature makes sparse; the rows of Table 3."""
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

Relaxation = Literal["softmax", "gumbel", "gumbel_hard"]
"""How parameters become weights: as they are, with Gumbel noise (SNAS), or one-hot (GDAS)."""
RELAXATIONS: tuple[Relaxation, ...] = get_args(Relaxation)

Architecture = dict[str, Tensor]
"""Architecture parameters by name: ``normal.alpha`` is ``(edges, operations)``, ``normal.beta.2``
is ``(combinations,)`` of node 2; the same for ``reduction``."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """The weights of one cell type."""

    operations: Tensor
    """``(edges, operations)``; rows sum to 1."""
    inputs: Tensor
    """``(edges,)``; the edges of a node sum to k, or are 1 each where inputs are not sparsified."""

    @property
    def rows(self) -> Tensor:
        """``(edges * operations,)``: the weight of each operation in its node's sum."""
        return (self.operations * self.inputs.unsqueeze(1)).flatten()


def initial_architecture(space: SearchSpace) -> Architecture:
    """Parameters that weigh all operations and all combinations of inputs alike."""
    architecture: Architecture = {}
    for cell_type in CELL_TYPES:
        architecture[f"{cell_type}.alpha"] = torch.zeros(len(space.edges), len(space.operations))
        for node in range(space.nodes):
            architecture[f"{cell_type}.beta.{node}"] = torch.zeros(len(space.combinations(node)))
    return architecture


def anneal(progress: float, *, start: float = 1.0, end: float = 0.05) -> float:
    """Temperature after a fraction of the architecture steps: linear from ``start`` to ``end``.

    Args:
        progress: in [0, 1].

    Raises:
        InvalidConfigError: a temperature that is not above 0, or progress outside [0, 1].
    """
    if not (start > 0 and end > 0):  # written so that NaN is refused too
        raise InvalidConfigError(f"temperatures must be above 0, got {start} to {end}")
    if not 0 <= progress <= 1:
        raise InvalidConfigError(f"progress must be in [0, 1], got {progress}")
    return start + (end - start) * progress


def soften(alphas: Tensor, temperature: float) -> Tensor:
    """Turn architecture parameters into operation weights (equation 5).

    Args:
        alphas: ``(edges, operations)``, any real values.
        temperature: unitless, above zero. Near zero the largest entry of each row
            takes all the weight; ties share it.

    Returns:
        ``(edges, operations)``; each row is non-negative and sums to 1.

    Raises:
        InvalidConfigError: ``temperature`` is not above zero.
    """
    if not temperature > 0:
        raise InvalidConfigError(f"temperature must be above 0, got {temperature}")
    return torch.softmax(alphas / temperature, dim=-1)


def perturb(parameters: Tensor, generator: torch.Generator) -> Tensor:
    """Add standard Gumbel noise: the largest is then a draw from the softmax of ``parameters``.

    Args:
        parameters: any shape.
        generator: on the CPU.
    """
    # Minus the logarithm of a standard exponential is standard Gumbel; float64 never draws 0.
    exponential = torch.empty(parameters.shape, dtype=torch.float64).exponential_(generator=generator)
    return parameters - exponential.log().to(parameters)


def harden(weights: Tensor) -> Tensor:
    """One-hot at the largest of each row; its gradient is that of ``weights`` (straight-through)."""
    chosen = torch.zeros_like(weights).scatter_(-1, weights.argmax(dim=-1, keepdim=True), 1.0)
    return chosen + (weights - weights.detach())


def weigh_inputs(weights: Tensor, *, combinations: tuple[tuple[int, ...], ...]) -> Tensor:
    """Turn the weights of a node's input combinations into a weight for each input (equation 7).

    Equation 7 sums over combinations; gathered by input it is ``sum_i gamma_i MixedOp(x_i)``
    with ``gamma_i`` the weight of all combinations that hold ``i``.

    Args:
        weights: ``(combinations,)``, non-negative, with the sum 1.
        combinations: the inputs of each combination, all of one size k.

    Returns:
        ``(inputs,)``; non-negative, sums to k.
    """
    inputs = 1 + max(max(combination) for combination in combinations)
    membership = torch.zeros(len(combinations), inputs, dtype=weights.dtype)
    for row, combination in enumerate(combinations):
        membership[row, list(combination)] = 1.0
    return weights @ membership.to(weights.device)


def relax(
    architecture: Mapping[str, Tensor],
    space: SearchSpace,
    *,
    temperature: float,
    strategy: Strategy = "operations_and_inputs",
    relaxation: Relaxation = "softmax",
    generator: torch.Generator | None = None,
) -> dict[str, Mixture]:
    """Weigh all operations and inputs of a search space.

    Args:
        architecture: as ``initial_architecture`` lays it out.
        temperature: of whatever ``strategy`` makes sparse; the rest stays at 1.
        strategy: "none" is DARTS (equation 1: inputs are just summed), "operations" anneals the
            operations only, "operations_and_inputs" is the paper's.
        relaxation: of whatever ``strategy`` makes sparse.
        generator: of the Gumbel noise; None: no noise, as when it is decided what survives.

    Raises:
        InvalidConfigError: an unknown strategy or relaxation, or a temperature that is not above zero.
    """
    if strategy not in STRATEGIES:
        raise InvalidConfigError(f"unknown strategy {strategy!r}; known are {', '.join(STRATEGIES)}")
    if relaxation not in RELAXATIONS:
        raise InvalidConfigError(f"unknown relaxation {relaxation!r}; known are {', '.join(RELAXATIONS)}")

    def sparse(parameters: Tensor) -> Tensor:
        if relaxation != "softmax" and generator is not None:
            parameters = perturb(parameters, generator)
        weights = soften(parameters, temperature)
        return harden(weights) if relaxation == "gumbel_hard" else weights

    mixtures = {}
    for cell_type in CELL_TYPES:
        alphas = architecture[f"{cell_type}.alpha"]
        operations = soften(alphas, 1.0) if strategy == "none" else sparse(alphas)
        if strategy == "operations_and_inputs":
            inputs = torch.cat(
                [
                    weigh_inputs(
                        sparse(architecture[f"{cell_type}.beta.{node}"].unsqueeze(0))[0],
                        combinations=space.combinations(node),
                    )
                    for node in range(space.nodes)
                ]
            )
        else:
            inputs = torch.ones(len(space.edges), device=alphas.device)
        mixtures[cell_type] = Mixture(operations=operations, inputs=inputs)
    return mixtures
