"""Equations 5 and 7 by hand, the temperature, and the three strategies."""

import math
from itertools import combinations

import pytest
import torch

from metanas.errors import InvalidConfigError
from metanas.relaxation import STRATEGIES, anneal, initial_architecture, relax, soften, weigh_inputs
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
    gammas = weigh_inputs(betas, 1.0, combinations=PAIRS)
    torch.testing.assert_close(gammas, torch.tensor([0.375, 0.75, 0.875]))
    assert gammas.sum().item() == pytest.approx(2)

    # The literal sum over combinations of equation 7 on outputs 10, 100, 1000 of the three mixed operations.
    literal = 0.125 * (10 + 100) + 0.25 * (10 + 1000) + 0.625 * (100 + 1000)
    assert literal == 953.75
    assert (gammas @ torch.tensor([10.0, 100.0, 1000.0])).item() == pytest.approx(953.75)


@pytest.mark.parametrize("temperature", [1.0, 0.3, 0.05])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_gathering_by_input_equals_the_literal_sum_of_equation_7_with_its_gradients(
    temperature: float, count: int
) -> None:
    torch.manual_seed(count)
    chosen = tuple(combinations(range(count), 2))
    betas = torch.randn(len(chosen), dtype=torch.float64, requires_grad=True)
    outputs = torch.randn(count, 6, dtype=torch.float64)
    gathered = weigh_inputs(betas, temperature, combinations=chosen) @ outputs

    total = sum(math.exp(float(beta) / temperature) for beta in betas.detach())
    literal = torch.zeros(6, dtype=torch.float64)
    for beta, (i, j) in zip(betas, chosen, strict=True):
        literal = literal + torch.exp(beta / temperature) / total * (outputs[i] + outputs[j])
    torch.testing.assert_close(gathered, literal)

    softmax = torch.softmax(betas / temperature, dim=0)
    by_hand = sum(weight * (outputs[i] + outputs[j]) for weight, (i, j) in zip(softmax, chosen, strict=True))
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
        weigh_inputs(torch.zeros(3), temperature, combinations=PAIRS)


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
