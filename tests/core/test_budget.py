"""Budgets: costs that add up, a penalty by hand, architectures that always fit and lose least."""

import random

import pytest
import torch

from metanas.budget import Budget, Cost, cheapest, check_possible, chosen_cost, fixed_cost, network_cost, penalty
from metanas.budget_fitting import fit, genotype_rows
from metanas.cost import multiply_adds
from metanas.errors import InvalidConfigError, InvalidTaskError
from metanas.learner import adapt
from metanas.model import MetaModel
from metanas.network import Network
from metanas.preprocessing import Preprocessing
from metanas.relaxation import initial_architecture
from metanas.schedule import Schedule
from metanas.space import CELL_TYPES, EdgeOperation, Genotype, SearchSpace
from metanas.tasks import SupportSet

SPACE = SearchSpace(channels=4, image_size=9, cells=3, reduction_cells=(1,))


def random_genotype(seed: int, *, reads_all: bool = False) -> Genotype:
    """Up to three operations a node; ``reads_all``: the first node reads both inputs of the cell."""
    draw = random.Random(seed)

    def cell() -> tuple[tuple[EdgeOperation, ...], ...]:
        nodes = []
        for node in range(SPACE.nodes):
            sources = [0, 1] if reads_all and node == 0 else draw.choices(range(2 + node), k=draw.randint(1, 3))
            edges = {(source, draw.choice(SPACE.operations)) for source in sources}
            nodes.append(tuple(EdgeOperation(source, name, 0.5 + draw.random()) for source, name in sorted(edges)))
        return tuple(nodes)

    return Genotype(normal=cell(), reduction=cell())


@pytest.mark.parametrize("seed", range(5))
def test_costs_of_operations_and_of_the_rest_add_up_to_the_network(seed: int) -> None:
    one, other = random_genotype(seed, reads_all=True), random_genotype(seed + 100, reads_all=True)
    fixed = fixed_cost(SPACE, one, n_way=5)
    assert fixed + chosen_cost(SPACE, other) == network_cost(SPACE, other, n_way=5)
    assert network_cost(SPACE, other, n_way=5).multiply_adds == multiply_adds(SPACE, other, n_way=5)


def test_a_penalty_by_hand() -> None:
    genotype = random_genotype(3)
    rows = {name: values.clip(max=1.0) for name, values in genotype_rows(genotype, SPACE).items()}
    ones = {name: (values > 0).float() for name, values in rows.items()}
    fixed = Cost(1000, 0)
    parameters = 1000 + chosen_cost(SPACE, genotype).parameters
    half = Budget(max_parameters=parameters // 2)
    found = penalty(ones, budget=half, space=SPACE, fixed=fixed)
    assert found.item() == pytest.approx(parameters / (parameters // 2) - 1, rel=1e-5)
    assert penalty(ones, budget=Budget(max_parameters=parameters), space=SPACE, fixed=fixed).item() == 0.0


def test_the_rows_of_a_genotype_make_the_one_shot_network_compute_the_same() -> None:
    genotype = random_genotype(1)
    one_shot, small = Network(SPACE), Network(SPACE, genotype)
    source = one_shot.state_dict()
    small.load_state_dict({name: source[name] for name in small.state_dict()})
    rows = genotype_rows(genotype, SPACE)
    images = torch.rand(3, 1, 9, 9)
    run = {name: (values > 0).tolist() for name, values in rows.items()}
    assert torch.allclose(one_shot(images, rows, run=run), small(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.6, 0.4, 0.0])
def test_whatever_can_fit_does(seed: int, share: float) -> None:
    genotype, least = random_genotype(seed), network_cost(SPACE, cheapest(SPACE), n_way=3)
    whole = network_cost(SPACE, genotype, n_way=3)
    limits = [max(small, int(small + share * (large - small))) for small, large in zip(least, whole, strict=True)]
    # A genotype that reads fewer inputs than the cheapest one may cost less than it.
    for budget in (Budget(limits[0]), Budget(None, limits[1]), Budget(*limits)):
        found = fit(genotype, budget=budget, space=SPACE, n_way=3, loss=lambda one: float(hash(one) % 100))
        assert budget.excess(network_cost(SPACE, found, n_way=3)) <= 1
        assert all(node for name in CELL_TYPES for node in found.cell(name))


def test_what_fits_already_is_left_alone() -> None:
    genotype = random_genotype(2)
    budget = Budget(network_cost(SPACE, genotype, n_way=3).parameters)
    assert fit(genotype, budget=budget, space=SPACE, n_way=3, loss=lambda one: 0.0) is genotype


def test_the_operation_that_is_missed_least_goes_first() -> None:
    edges = (EdgeOperation(0, "conv_1x5_5x1", 1.0), EdgeOperation(1, "conv_1x5_5x1", 1.0))
    pool = ((EdgeOperation(0, "max_pool_3x3", 1.0),),) * 2
    genotype = Genotype(normal=(edges, *pool), reduction=(pool[0], *pool))
    needed = edges[1]

    def loss(one: Genotype) -> float:
        return 0.0 if needed in one.normal[0] else 1.0

    cost = network_cost(SPACE, genotype, n_way=3).parameters
    found = fit(genotype, budget=Budget(cost - 1), space=SPACE, n_way=3, loss=loss)
    assert needed in found.normal[0]
    assert edges[0] not in found.normal[0]


def test_a_change_that_a_later_one_made_needless_is_put_back() -> None:
    small, large = EdgeOperation(0, "conv_3x3", 1.0), EdgeOperation(1, "conv_1x5_5x1", 1.0)
    pool = ((EdgeOperation(0, "max_pool_3x3", 1.0),),) * 2
    genotype = Genotype(normal=((small, large), *pool), reduction=(pool[0], *pool))

    def loss(one: Genotype) -> float:
        # Taking the small one out costs nothing, until it is gone.
        kept = one.normal[0]
        return (0.0 if small in kept else 1e-4) + (0.0 if large in kept else 1.0)

    cost = network_cost(SPACE, genotype, n_way=3).parameters
    saved_by_small = cost - network_cost(SPACE, Genotype(((large,), *pool), genotype.reduction), n_way=3).parameters
    found = fit(genotype, budget=Budget(cost - saved_by_small - 1), space=SPACE, n_way=3, loss=loss)
    assert small in found.normal[0]
    assert large not in found.normal[0]


def test_what_can_never_fit_is_refused_with_what_is_needed() -> None:
    least = network_cost(SPACE, cheapest(SPACE), n_way=3)
    with pytest.raises(InvalidTaskError, match=f"smallest of this meta-model has {least.parameters:,} parameters"):
        check_possible(Budget(least.parameters - 1), SPACE, n_way=3)
    check_possible(Budget(*least), SPACE, n_way=3)


@pytest.mark.parametrize("limit", [0, -5])
def test_a_senseless_limit_is_refused(limit: int) -> None:
    with pytest.raises(InvalidConfigError, match="max_parameters must be at least 1"):
        Budget(limit)
    with pytest.raises(InvalidConfigError, match="max_multiply_adds must be a whole number of at least 1"):
        Schedule(max_multiply_adds=limit)


def support(n_way: int = 3, shots: int = 2) -> SupportSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n_way * shots, 1, 9, 9), generator=generator, dtype=torch.uint8)
    return SupportSet(images, torch.arange(n_way).repeat_interleave(shots), tuple("abcdefgh"[:n_way]))


def meta(genotype: Genotype | None = None, **settings: int) -> MetaModel:
    torch.manual_seed(0)
    return MetaModel(
        space=SPACE,
        weights=dict(Network(SPACE, genotype).named_parameters()),
        architecture={} if genotype else initial_architecture(SPACE),
        head_scale=10.0,
        preprocessing=Preprocessing(height=9, width=9),
        schedule=Schedule(architecture_steps=3, weight_steps=2, **settings),
        genotype=genotype,
    )


def test_a_task_learns_within_its_budget_and_says_what_that_cost() -> None:
    free = adapt(meta(), support())
    assert free.report.budget is None
    limit = free.report.parameter_count // 2
    task = adapt(meta(max_parameters=limit), support())
    assert task.report.parameter_count <= limit
    assert task.report.budget is not None
    assert task.report.budget.unconstrained_parameter_count >= free.report.parameter_count // 2
    assert task.report.budget.multiply_adds == multiply_adds(SPACE, task.genotype, n_way=3)
    assert 0 <= task.report.budget.support_accuracy <= 1


def test_the_same_budget_and_seed_give_the_same_bits() -> None:
    limited = meta(max_parameters=2 * network_cost(SPACE, cheapest(SPACE), n_way=3).parameters)
    first, second = adapt(limited, support(), seed=4), adapt(limited, support(), seed=4)
    assert first.genotype == second.genotype
    assert torch.equal(first.network.head.weight, second.network.head.weight)


def test_a_budget_that_nothing_meets_is_found_before_the_first_step() -> None:
    steps: list[object] = []
    with pytest.raises(InvalidTaskError, match="no network of 3 classes fits into 10 parameters"):
        adapt(meta(max_parameters=10), support(), on_step=steps.append)
    assert not steps


def test_a_fixed_architecture_fits_or_is_refused() -> None:
    genotype = random_genotype(0)
    cost = network_cost(SPACE, genotype, n_way=3)
    assert adapt(meta(genotype, max_parameters=cost.parameters), support()).report.parameter_count == cost.parameters
    with pytest.raises(InvalidTaskError, match="the architecture of this meta-model is fixed"):
        adapt(meta(genotype, max_parameters=cost.parameters - 1), support())
