"""Equations 5 and 7 by hand, the temperature, the three strategies, and the Gumbel relaxations."""

import math
from itertools import combinations

import pytest
import torch

from metanas.errors import InvalidConfigError
from metanas.relaxation import (
    RELAXATIONS,
    STRATEGIES,
    Architecture,
    Relaxation,
    anneal,
    harden,
    initial_architecture,
    perturb,
    relax,
    soften,
    weigh_inputs,
)
from metanas.space import SearchSpace

PAIRS = ((0, 1), (0, 2), (1, 2))


def test_equation_5_by_hand() -> None:
    # exp(ln 3 / 1) : exp(0) = 3 : 1, and at temperature 1/2 it is 3 squared : 1.
    alphas = torch.tensor([[math.log(3.0), 0.0]])
    torch.testing.assert_close(soften(alphas, 1.0), torch.tensor([[0.75, 0.25]]))
    torch.testing.assert_close(soften(alphas, 0.5), torch.tensor([[0.9, 0.1]]))


def test_a_low_temperature_gives_all_the_weight_to_the_largest_and_ties_share_it() -> None:
    weights = soften(torch.tensor([[0.0, 1.0, 0.5], [2.0, 2.0, 1.0]]), 0.01)
    torch.testing.assert_close(weights, torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.5, 0.0]]))


def test_equation_7_by_hand() -> None:
    # Combinations (0,1), (0,2), (1,2) weigh 1 : 2 : 5, that is 0.125, 0.25, 0.625. So input 0
    # has 0.125 + 0.25, input 1 has 0.125 + 0.625, input 2 has 0.25 + 0.625.
    betas = torch.tensor([1.0, 2.0, 5.0]).log()
    gammas = weigh_inputs(soften(betas, 1.0), combinations=PAIRS)
    torch.testing.assert_close(gammas, torch.tensor([0.375, 0.75, 0.875]))
    assert gammas.sum().item() == pytest.approx(2)

    # The literal sum over combinations of equation 7 on outputs 10, 100, 1000 of the three mixed operations.
    literal = 0.125 * (10 + 100) + 0.25 * (10 + 1000) + 0.625 * (100 + 1000)
    assert literal == 953.75
    assert (gammas @ torch.tensor([10.0, 100.0, 1000.0])).item() == pytest.approx(953.75)


@pytest.mark.parametrize("temperature", [1.0, 0.3, 0.05])
@pytest.mark.parametrize(("count", "k"), [(2, 1), (4, 1), (2, 2), (3, 2), (4, 2), (3, 3), (4, 3), (5, 3)])
def test_gathering_by_input_equals_the_literal_sum_of_equation_7_with_its_gradients(
    temperature: float, count: int, k: int
) -> None:
    torch.manual_seed(count)
    chosen = tuple(combinations(range(count), k))
    betas = torch.randn(len(chosen), dtype=torch.float64, requires_grad=True)
    outputs = torch.randn(count, 6, dtype=torch.float64)
    gathered = weigh_inputs(soften(betas, temperature), combinations=chosen) @ outputs

    total = sum(math.exp(float(beta) / temperature) for beta in betas.detach())
    literal = torch.zeros(6, dtype=torch.float64)
    for beta, inputs in zip(betas, chosen, strict=True):
        for i in inputs:
            literal = literal + torch.exp(beta / temperature) / total * outputs[i]
    torch.testing.assert_close(gathered, literal)

    softmax = torch.softmax(betas / temperature, dim=0)
    by_hand = sum(weight * outputs[i] for weight, inputs in zip(softmax, chosen, strict=True) for i in inputs)
    (gradient,) = torch.autograd.grad(gathered.square().sum(), betas)
    (expected,) = torch.autograd.grad(by_hand.square().sum(), betas)
    torch.testing.assert_close(gradient, expected)


def test_the_temperature_falls_linearly_between_its_ends() -> None:
    assert anneal(0.0, start=1.0, end=0.05) == 1.0
    assert anneal(1.0, start=1.0, end=0.05) == pytest.approx(0.05)
    assert anneal(0.5, start=1.0, end=0.2) == pytest.approx(0.6)


@pytest.mark.parametrize("end", [0.0, -1.0, float("nan")])
def test_annealing_towards_a_temperature_that_is_not_above_0_is_refused(end: float) -> None:
    with pytest.raises(InvalidConfigError, match=f"temperatures must be above 0, got 1.0 to {end}"):
        anneal(0.5, start=1.0, end=end)
    with pytest.raises(InvalidConfigError, match="temperatures must be above 0"):
        anneal(0.5, start=end, end=1.0)


@pytest.mark.parametrize("progress", [-0.01, 1.01, float("nan")])
def test_progress_outside_0_to_1_is_refused(progress: float) -> None:
    with pytest.raises(InvalidConfigError, match=rf"progress must be in \[0, 1\], got {progress}"):
        anneal(progress)


@pytest.mark.parametrize("temperature", [0.0, -0.1, float("nan")])
def test_softening_at_a_temperature_that_is_not_above_0_is_refused(temperature: float) -> None:
    with pytest.raises(InvalidConfigError, match=f"temperature must be above 0, got {temperature}"):
        soften(torch.zeros(1, 2), temperature)
    with pytest.raises(InvalidConfigError, match="temperature must be above 0"):
        relax(initial_architecture(SearchSpace()), SearchSpace(), temperature=temperature)


def test_the_initial_architecture_weighs_all_alike() -> None:
    space = SearchSpace()
    for mixture in relax(initial_architecture(space), space, temperature=0.05).values():
        torch.testing.assert_close(mixture.operations, torch.full((9, 7), 1 / 7))
        # k = 2 shared by 2, 3 and 4 inputs.
        torch.testing.assert_close(mixture.inputs, torch.tensor([1.0] * 2 + [2 / 3] * 3 + [0.5] * 4))


def test_the_three_strategies_make_sparse_what_they_say() -> None:
    space = SearchSpace(nodes=2, operations=("conv_3x3", "skip_connect"))
    architecture = initial_architecture(space)
    architecture["normal.alpha"][:, 0] = 1.0
    architecture["normal.beta.1"][0] = 1.0  # inputs 0 and 1 of node 1
    found = {
        strategy: relax(architecture, space, temperature=0.05, strategy=strategy)["normal"] for strategy in STRATEGIES
    }
    soft = 1 / (1 + math.exp(-1.0))
    torch.testing.assert_close(found["none"].operations[0], torch.tensor([soft, 1 - soft]))
    for strategy in ("operations", "operations_and_inputs"):
        torch.testing.assert_close(found[strategy].operations[0], torch.tensor([1.0, 0.0]), atol=1e-6, rtol=0)
    for strategy in ("none", "operations"):
        assert found[strategy].inputs.tolist() == [1.0] * 5
    torch.testing.assert_close(
        found["operations_and_inputs"].inputs, torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]), atol=1e-6, rtol=0
    )


def test_a_row_of_a_mixture_is_the_product_of_operation_and_input_weight() -> None:
    space = SearchSpace()
    torch.manual_seed(0)
    architecture = {name: torch.randn_like(value) for name, value in initial_architecture(space).items()}
    mixture = relax(architecture, space, temperature=0.7)["reduction"]
    assert mixture.rows.shape == (63,)
    assert mixture.rows[7 * 4 + 2].item() == pytest.approx((mixture.operations[4, 2] * mixture.inputs[4]).item())
    torch.testing.assert_close(mixture.rows[7 * 5 :].sum(), torch.tensor(2.0))


def test_an_unknown_strategy_is_refused_with_those_there_are() -> None:
    space = SearchSpace()
    with pytest.raises(
        InvalidConfigError, match="unknown strategy 'darts'; known are none, operations, operations_and"
    ):
        relax(initial_architecture(space), space, temperature=1.0, strategy="darts")


def test_an_unknown_relaxation_is_refused_with_those_there_are() -> None:
    space = SearchSpace()
    with pytest.raises(InvalidConfigError, match="unknown relaxation 'gdas'; known are softmax, gumbel, gumbel_hard"):
        relax(initial_architecture(space), space, temperature=1.0, relaxation="gdas")


def _unequal(space: SearchSpace, *, seed: int = 0) -> Architecture:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(value.shape, generator=generator) for name, value in initial_architecture(space).items()}


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_inputs_of_a_node_share_k_or_as_many_as_there_are_whatever_the_relaxation(k: int) -> None:
    space = SearchSpace(inputs_per_node=k)
    for relaxation in RELAXATIONS:
        mixtures = relax(
            _unequal(space), space, temperature=0.4, relaxation=relaxation, generator=torch.Generator().manual_seed(0)
        )
        for mixture in mixtures.values():
            for node, count in enumerate((2, 3, 4)):
                inputs = mixture.inputs[space.node_edges(node)]
                assert inputs.sum().item() == pytest.approx(min(k, count), rel=1e-5)
                assert 0 <= inputs.min().item() <= inputs.max().item() <= 1 + 1e-5


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_weight_of_an_input_is_that_of_all_subsets_that_hold_it_by_brute_force(k: int) -> None:
    space = SearchSpace(inputs_per_node=k)
    architecture = _unequal(space)
    found = relax(architecture, space, temperature=0.4)["reduction"].inputs
    for node, count in enumerate((2, 3, 4)):
        betas = architecture[f"reduction.beta.{node}"].tolist()
        # All subsets by counting in binary; in the order of ``combinations``: the smallest members first.
        members = [[i for i in range(count) if number >> i & 1] for number in range(2**count)]
        subsets = sorted(subset for subset in members if len(subset) == min(k, count))
        assert len(subsets) == len(betas)
        exponentials = [math.exp(beta / 0.4) for beta in betas]
        expected = [
            sum(value for value, subset in zip(exponentials, subsets, strict=True) if i in subset) / sum(exponentials)
            for i in range(count)
        ]
        assert found[space.node_edges(node)].tolist() == pytest.approx(expected, rel=1e-4)


def test_darts_ignores_the_temperature_and_has_no_noise_and_no_weights_of_inputs() -> None:
    space = SearchSpace()
    architecture = _unequal(space)
    mixtures = [
        relax(architecture, space, temperature=temperature, strategy="none", relaxation=relaxation, generator=generator)
        for temperature in (1.0, 0.05)
        for relaxation in RELAXATIONS
        for generator in (None, torch.Generator().manual_seed(0))
    ]
    for cell_type in ("normal", "reduction"):
        expected = torch.softmax(architecture[f"{cell_type}.alpha"], dim=-1)
        for mixture in mixtures:
            assert torch.equal(mixture[cell_type].operations, expected)
            assert mixture[cell_type].inputs.tolist() == [1.0] * 9


def test_the_largest_after_gumbel_noise_is_a_draw_from_the_softmax() -> None:
    draws = 20_000
    parameters = torch.tensor([1.0, 0.0, -1.0, 0.5])
    chosen = perturb(parameters.expand(draws, 4), torch.Generator().manual_seed(0)).argmax(dim=1)
    seen = torch.bincount(chosen, minlength=4).double()
    expected = draws * torch.softmax(parameters.double(), dim=0)
    # Pearson's statistic: with 3 degrees of freedom above 16.3 once in a thousand. Gaussian noise gives hundreds.
    assert ((seen - expected) ** 2 / expected).sum().item() < 16.3


def test_gumbel_noise_has_the_mean_and_the_deviation_of_the_gumbel_distribution() -> None:
    noise = perturb(torch.zeros(100_000), torch.Generator().manual_seed(1)).double()
    # Euler's constant and pi / sqrt 6; five standard errors.
    assert noise.mean().item() == pytest.approx(0.57722, abs=0.021)
    assert noise.std().item() == pytest.approx(1.28255, abs=0.025)


@pytest.mark.parametrize("relaxation", ["gumbel", "gumbel_hard"])
def test_gumbel_weights_follow_the_generator_and_without_one_there_is_no_noise(relaxation: Relaxation) -> None:
    space = SearchSpace()
    architecture = _unequal(space)

    def rows(seed: int | None, kind: Relaxation = relaxation) -> torch.Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        mixtures = relax(architecture, space, temperature=0.5, relaxation=kind, generator=generator)
        return torch.cat([mixtures[name].rows for name in ("normal", "reduction")])

    assert torch.equal(rows(0), rows(0))
    assert not torch.equal(rows(0), rows(1))
    assert torch.equal(rows(None), rows(None))
    if relaxation == "gumbel":
        assert torch.equal(rows(None), rows(None, "softmax"))
    assert torch.equal(rows(0, "softmax"), rows(None, "softmax"))


def test_the_softmax_draws_nothing_from_the_generator() -> None:
    space = SearchSpace()
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    relax(_unequal(space), space, temperature=0.5, generator=generator)
    assert torch.equal(generator.get_state(), before)


def test_gumbel_hard_chooses_one_operation_an_edge_and_one_combination_a_node_exactly() -> None:
    space = SearchSpace(inputs_per_node=2)
    for seed in range(20):
        mixtures = relax(
            _unequal(space),
            space,
            temperature=0.7,
            relaxation="gumbel_hard",
            generator=torch.Generator().manual_seed(seed),
        )
        for mixture in mixtures.values():
            assert mixture.operations.sort(dim=1).values.tolist() == [[0.0] * 6 + [1.0]] * 9
            for node in range(3):
                inputs = mixture.inputs[space.node_edges(node)].sort().values
                assert inputs.tolist() == [0.0] * node + [1.0] * 2


def test_a_hard_choice_has_the_gradient_of_the_soft_weights() -> None:
    torch.manual_seed(0)
    upstream = torch.randn(9, 7)

    def gradient(hard: bool) -> torch.Tensor:
        torch.manual_seed(1)
        parameters = torch.randn(9, 7, requires_grad=True)
        weights = soften(parameters, 0.5)
        ((harden(weights) if hard else weights) * upstream).sum().backward()
        assert parameters.grad is not None
        return parameters.grad

    assert gradient(True).abs().max() > 0.1
    assert torch.equal(gradient(True), gradient(False))


def test_the_gradient_of_gumbel_hard_reaches_all_parameters_through_relax() -> None:
    space = SearchSpace()
    gradients = []
    for relaxation in ("gumbel", "gumbel_hard"):
        architecture = {name: value.requires_grad_() for name, value in _unequal(space).items()}
        mixtures = relax(
            architecture, space, temperature=0.5, relaxation=relaxation, generator=torch.Generator().manual_seed(3)
        )
        upstream = torch.Generator().manual_seed(4)
        total = sum(
            (part * torch.randn(part.shape, generator=upstream)).sum()
            for mixture in mixtures.values()
            for part in (mixture.operations, mixture.inputs)
        )
        gradients.append(torch.autograd.grad(total, list(architecture.values())))
    for soft, hard in zip(*gradients, strict=True):
        torch.testing.assert_close(soft, hard)
