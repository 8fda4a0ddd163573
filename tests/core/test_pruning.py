"""Which operations stay, by hand; and that what is cut off does not matter, or does."""

import random

import pytest
import torch
from torch import Tensor

from metanas.errors import InvalidConfigError
from metanas.head import Head
from metanas.network import Network
from metanas.pruning import keep_above, keep_largest, prune
from metanas.relaxation import STRATEGIES, Architecture, Mixture, Strategy, initial_architecture, relax
from metanas.space import EdgeOperation, SearchSpace
from metanas.statistics import measuring
from metanas.task_network import extract

TINY = SearchSpace(nodes=1, operations=("conv_3x3", "skip_connect"))
TINY_2 = SearchSpace(nodes=2, operations=("conv_3x3", "skip_connect"))


def _rounded(node: tuple[EdgeOperation, ...]) -> list[tuple[int, str, float]]:
    return [(edge.source, edge.operation, round(edge.weight, 6)) for edge in node]


def test_operations_at_or_above_the_threshold_stay_with_their_weights_as_constants() -> None:
    mixture = Mixture(operations=torch.tensor([[0.9, 0.1], [0.995, 0.005]]), inputs=torch.tensor([1.0, 0.5]))
    (node,) = keep_above(mixture, TINY, threshold=0.01)
    assert _rounded(node) == [(0, "conv_3x3", 0.9), (0, "skip_connect", 0.1), (1, "conv_3x3", 0.4975)]


def test_an_input_below_the_threshold_loses_all_its_operations() -> None:
    mixture = Mixture(operations=torch.tensor([[0.5, 0.5], [0.5, 0.5]]), inputs=torch.tensor([1.0, 0.009]))
    (node,) = keep_above(mixture, TINY, threshold=0.01)
    assert _rounded(node) == [(0, "conv_3x3", 0.5), (0, "skip_connect", 0.5)]


def test_the_largest_stays_when_all_fall_below_the_threshold() -> None:
    mixture = Mixture(operations=torch.tensor([[0.55, 0.45], [0.3, 0.7]]), inputs=torch.tensor([0.8, 0.75]))
    (node,) = keep_above(mixture, TINY, threshold=0.9)
    assert _rounded(node) == [(1, "skip_connect", 0.525)]  # 0.7 * 0.75 is more than 0.55 * 0.8


@pytest.mark.parametrize("threshold", [0.0, 1.0, -1.0, float("nan")])
def test_a_threshold_outside_0_to_1_is_refused(threshold: float) -> None:
    mixture = Mixture(operations=torch.full((2, 2), 0.5), inputs=torch.ones(2))
    with pytest.raises(InvalidConfigError, match=f"the pruning threshold must be between 0 and 1, got {threshold}"):
        keep_above(mixture, TINY, threshold=threshold)


def test_the_rule_of_darts_by_hand() -> None:
    operations = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7], [0.55, 0.45]])
    first, second = keep_largest(Mixture(operations=operations, inputs=torch.ones(5)), TINY_2)
    assert _rounded(first) == [(0, "conv_3x3", 1.0), (1, "skip_connect", 1.0)]
    # The largest of edges from 0, 1, 2 are 0.8, 0.7, 0.55: the edge from 2 goes.
    assert _rounded(second) == [(0, "skip_connect", 1.0), (1, "skip_connect", 1.0)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_node_ever_loses_all_its_inputs(strategy: Strategy) -> None:
    chance = random.Random(0)
    for trial in range(150):
        space = SearchSpace(
            nodes=chance.randint(1, 4), inputs_per_node=chance.randint(1, 3),
            operations=tuple(chance.sample(SearchSpace().operations, chance.randint(1, 7))),
        )  # fmt: skip
        torch.manual_seed(trial)
        spread = 10 ** chance.uniform(-3, 3)
        architecture = {name: spread * torch.randn_like(value) for name, value in initial_architecture(space).items()}
        mixtures = relax(architecture, space, temperature=10 ** chance.uniform(-2, 1), strategy=strategy)
        genotype = prune(mixtures, space, strategy=strategy, threshold=chance.choice([0.001, 0.01, 0.5, 0.999]))
        for cell in (genotype.normal, genotype.reduction):
            assert len(cell) == space.nodes
            assert all(cell)


def _separated(space: SearchSpace, *, gap: float) -> Architecture:
    """On each edge one operation is ahead of the others by ``gap`` at least, at each node one combination."""
    generator = torch.Generator().manual_seed(3)
    architecture = {}
    for name, value in initial_architecture(space).items():
        drawn = 0.1 * torch.rand(value.shape, generator=generator)
        drawn.scatter_(-1, torch.rand(value.shape, generator=generator).argmax(-1, keepdim=True), gap)
        architecture[name] = drawn
    return architecture


def _logits_before_and_after_pruning(strategy: Strategy) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    space = SearchSpace(channels=4, image_size=12)
    network, head = Network(space), Head(space.features, 5)
    torch.nn.init.normal_(head.weight, std=2.0)
    mixtures = relax(_separated(space, gap=1.0), space, temperature=0.05, strategy=strategy)
    weights = {name: mixture.rows for name, mixture in mixtures.items()}
    support, queries = torch.randn(20, 1, 12, 12), torch.randn(30, 1, 12, 12)
    with torch.no_grad():
        with measuring(network):
            network(support, weights)
        before = head(network.eval()(queries, weights))
        pruned = extract(network, head, prune(mixtures, space, strategy=strategy))
        pruned.freeze_statistics(support)
        return before, pruned(queries)


def test_pruning_after_annealing_changes_logits_by_less_than_a_thousandth() -> None:
    before, after = _logits_before_and_after_pruning("operations_and_inputs")
    assert before.std() > 0.3
    assert (before - after).abs().max() < 1e-3


def test_pruning_without_annealing_changes_logits_a_lot() -> None:
    before, after = _logits_before_and_after_pruning("none")
    assert (before - after).abs().max() > 0.3


def test_annealing_the_operations_only_still_changes_logits_a_lot_when_inputs_are_cut() -> None:
    before, after = _logits_before_and_after_pruning("operations")
    assert (before - after).abs().max() > 0.1


def test_of_three_inputs_a_node_keeps_those_of_the_combination_that_won() -> None:
    space = SearchSpace(nodes=3, inputs_per_node=3, operations=("conv_3x3", "skip_connect"))
    architecture = initial_architecture(space)
    assert [len(architecture[f"normal.beta.{node}"]) for node in range(3)] == [1, 1, 4]
    for cell_type in ("normal", "reduction"):
        architecture[f"{cell_type}.alpha"][:, 1] = 1.0
        architecture[f"{cell_type}.beta.2"][2] = 1.0  # (0, 2, 3): the third of (0,1,2), (0,1,3), (0,2,3), (1,2,3)
    genotype = prune(relax(architecture, space, temperature=0.05), space, strategy="operations_and_inputs")
    for cell in (genotype.normal, genotype.reduction):
        # The first two nodes have 2 and 3 inputs and keep all of them.
        assert [[edge.source for edge in node] for node in cell] == [[0, 1], [0, 1, 2], [0, 2, 3]]
        assert {edge.operation for node in cell for edge in node} == {"skip_connect"}
        assert all(edge.weight == pytest.approx(1.0, abs=1e-6) for node in cell for edge in node)


@pytest.mark.parametrize(("k", "kept"), [(1, [1, 1, 1]), (2, [2, 2, 2]), (3, [2, 3, 3])])
def test_the_rule_of_darts_keeps_k_edges_a_node_or_as_many_as_there_are(k: int, kept: list[int]) -> None:
    space = SearchSpace(inputs_per_node=k)
    torch.manual_seed(0)
    architecture = {name: torch.randn_like(value) for name, value in initial_architecture(space).items()}
    genotype = prune(relax(architecture, space, temperature=0.05, strategy="none"), space, strategy="none")
    assert [len({edge.source for edge in node}) for node in genotype.normal] == kept
    assert [len(node) for node in genotype.normal] == kept


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_hard_choice_leaves_one_operation_of_weight_1_on_k_inputs(k: int) -> None:
    space = SearchSpace(inputs_per_node=k)
    torch.manual_seed(1)
    architecture = {name: torch.randn_like(value) for name, value in initial_architecture(space).items()}
    mixtures = relax(architecture, space, temperature=0.9, relaxation="gumbel_hard")
    genotype = prune(mixtures, space, strategy="operations_and_inputs")
    for cell_type in ("normal", "reduction"):
        alphas = architecture[f"{cell_type}.alpha"]
        for node, edges in enumerate(genotype.cell(cell_type)):
            betas = architecture[f"{cell_type}.beta.{node}"]
            assert tuple(edge.source for edge in edges) == space.combinations(node)[int(betas.argmax())]
            for edge in edges:
                row = space.edges.index((node, edge.source))
                assert (edge.operation, edge.weight) == (space.operations[int(alphas[row].argmax())], 1.0)
