"""MAML's gradient: by hand on a parabola, by finite differences on the network; and its moves by equation 8."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from metanas.errors import InvalidConfigError, NothingMovedError
from metanas.head import prototypes
from metanas.optimizer import Parameters, build_optimizer
from metanas.preprocessing import Preprocessing
from metanas.schedule import Schedule
from metanas.steps import gradient_step, operation_weights, start_head, step_temperature
from metanas_training.config import NetworkConfig, Plan
from metanas_training.episodes import generator_for, sample_episode
from metanas_training.errors import NonFiniteError
from metanas_training.maml import MAML, Problem, Values, importance, initial_step_rates, plain_steps, spread
from metanas_training.meta_learner import ARCHITECTURE, NETWORK, Contribution, MetaTask
from metanas_training.reptile import TaskTensors, live_parameters
from metanas_training.state import State

SCHEDULE = Schedule(
    architecture_steps=2,
    weight_steps=0,
    batch_size=8,
    optimizer="sgd",
    learning_rate=0.02,
    weight_decay=0.01,
    architecture_learning_rate=0.3,
    architecture_weight_decay=0.02,
    temperature_end=0.5,
    skip_below=0.0,
)
LEARNER = MAML(
    schedule=SCHEDULE,
    preprocessing=Preprocessing(height=8, width=8),
    learning_rate=0.5,
    architecture_learning_rate=0.25,
    step_rate_learning_rate=0.125,
)
FIRST_ORDER = replace(LEARNER, second_order=False)
SMALL = NetworkConfig(channels=4, cells=2, reduction_cells=(1,), nodes=2)


@pytest.fixture
def subject(make_config: Any, make_state: Any) -> State:
    state: State = make_state(make_config(network=SMALL))
    with torch.no_grad():
        for value in state.architecture.values():
            value += 0.3 * torch.randn(value.shape)
    return state


@pytest.fixture
def tasks(make_classes: Any) -> Callable[[], list[MetaTask]]:
    """Three tasks, with fresh generators at every call."""

    def make() -> list[MetaTask]:
        classes = make_classes()
        return [
            MetaTask(
                sample_episode(classes, n_way=3, n_shot=2, n_query=2, generator=generator_for(0, task)),
                generator_for(1, task),
            )
            for task in range(3)
        ]

    return make


def _with_rates(subject: State) -> MAML:
    subject.step_rates = initial_step_rates(subject.network, subject.architecture, SCHEDULE)
    return replace(LEARNER, learned_rates=True)


def _everything(subject: State) -> Values:
    return {
        **{name: value.detach().clone() for name, value in live_parameters(subject).items()},
        "log_scale": subject.log_scale.detach().clone(),
        **{f"step_rates/{name}": value.clone() for name, value in subject.step_rates.items()},
    }


# The parabola a/2 (x - c)^2, from x by steps of rates r0, r1, with weight decay d; then the query loss (x2 - q)^2 / 2.
X, A, C, Q, R0, R1, D = 3.0, 2.0, 1.0, 0.5, 0.1, 0.2, 0.3


@pytest.mark.parametrize("second_order", [True, False])
def test_the_gradient_on_a_parabola_is_the_one_worked_out_by_hand(second_order: bool) -> None:
    x = torch.tensor(X, dtype=torch.float64, requires_grad=True)
    rates = torch.tensor([R0, R1], dtype=torch.float64, requires_grad=True)
    first, second = plain_steps(
        lambda values, _: A / 2 * (values["x"] - C) ** 2,
        {"x": x},
        rates={"x": rates},
        decays={"x": D},
        steps=2,
        second_order=second_order,
    )
    descent0 = A * (X - C) + D * X  # 4.9
    x1 = X - R0 * descent0  # 2.51
    descent1 = A * (x1 - C) + D * x1
    x2 = x1 - R1 * descent1
    assert (first["x"].item(), second["x"].item()) == pytest.approx((x1, x2))

    of_x, of_rates = torch.autograd.grad((second["x"] - Q) ** 2 / 2, [x, rates])
    curvature = A + D if second_order else 0.0
    assert of_x.item() == pytest.approx((x2 - Q) * (1 - R1 * curvature) * (1 - R0 * curvature))
    assert of_rates.tolist() == pytest.approx([-(x2 - Q) * (1 - R1 * curvature) * descent0, -(x2 - Q) * descent1])


def test_each_parameter_moves_by_its_own_partial_derivative_even_where_one_depends_on_another() -> None:
    w = torch.tensor(3.0, requires_grad=True)
    (moved,) = plain_steps(
        lambda values, _: values["w"] * values["h"],
        {"w": w, "h": 2 * w},
        rates={"w": torch.tensor([0.1]), "h": torch.tensor([0.1])},
        decays={"w": 0.0, "h": 0.0},
        steps=1,
        second_order=True,
    )
    # w - 0.1 h and h - 0.1 w with h = 2 w; their product is (0.8 w)(1.9 w).
    assert (moved["w"].item(), moved["h"].item()) == pytest.approx((2.4, 5.7))
    (gradient,) = torch.autograd.grad(moved["w"] * moved["h"], w)
    assert gradient.item() == pytest.approx(2 * 0.8 * 1.9 * 3.0)


def test_importance_goes_from_all_steps_alike_to_the_last_alone() -> None:
    assert importance(4, progress=0.0) == pytest.approx([0.25] * 4)
    assert importance(4, progress=0.5) == pytest.approx([0.125, 0.125, 0.125, 0.625])
    assert importance(4, progress=1.0) == [0.0, 0.0, 0.0, 1.0]
    assert importance(1, progress=0.0) == [1.0]


def test_the_multi_step_loss_is_the_weighted_sum_of_the_query_losses_after_each_step(
    subject: State, tasks: Callable[[], list[MetaTask]]
) -> None:
    def learn(steps: int, **values: Any) -> Contribution:
        learner = replace(LEARNER, schedule=replace(SCHEDULE, architecture_steps=steps), **values)
        return learner.learn(subject, tasks()[:1], learn_architecture=False)  # so that the temperature stays

    one, two = learn(1), learn(2)
    both = learn(2, multi_step_loss=True, progress=0.5)
    assert one.loss != pytest.approx(two.loss, rel=1e-4)
    assert both.loss == pytest.approx(0.25 * one.loss + 0.75 * two.loss)
    for name, value in both.values.items():
        expected = 0.25 * one.values[name] + 0.75 * two.values[name]
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-5, msg=name)
    assert learn(2, progress=0.5).loss == two.loss  # without the option, progress changes nothing
    assert LEARNER.with_progress(0.25) == replace(LEARNER, progress=0.25)


def _problem(dtype: torch.dtype, *, seed: int = 0) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(16, 1, 8, 8, generator=generator)
    labels = torch.arange(4).repeat(2)
    return Problem(
        TaskTensors(images[:8].to(dtype), labels, torch.full((4,), 0.5, dtype=dtype), [0, 1, 2, 3], 4),
        images[8:].to(dtype),
        labels,
    )


def _objective(subject: State, learner: MAML, dtype: torch.dtype) -> tuple[Callable[[Values], Tensor], Values]:
    """The query loss as a function of the meta-parameters, and where they are."""
    network = copy.deepcopy(subject.network).to(dtype)
    leaves = {name: value.to(dtype).requires_grad_() for name, value in _everything(subject).items()}
    converted = replace(subject, network=network, log_scale=leaves["log_scale"])

    def loss(values: Values) -> Tensor:
        return learner.query_loss(converted, values, _problem(dtype), generator=generator_for(5))[0]

    return loss, leaves


def _gradient(subject: State, learner: MAML, dtype: torch.dtype = torch.float64) -> Values:
    loss, leaves = _objective(subject, learner, dtype)
    gradients = torch.autograd.grad(loss(leaves), list(leaves.values()), materialize_grads=True)
    return {name: gradient.double() for name, gradient in zip(leaves, gradients, strict=True)}


def _together(values: Values, prefix: str) -> Tensor:
    return torch.cat([value.flatten() for name, value in values.items() if name.startswith(prefix)])


PREFIXES = ["network/stem", "network/cells.0", "network/cells.1", ARCHITECTURE, "log_scale", "step_rates/"]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_second_order_gradient_of_the_network_is_that_of_finite_differences(subject: State, prefix: str) -> None:
    learner = replace(_with_rates(subject), multi_step_loss=True, progress=0.5)
    loss, leaves = _objective(subject, learner, torch.float64)
    gradient = _gradient(subject, learner)
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        direction = {
            name: torch.randn(value.shape, generator=generator, dtype=torch.float64)
            for name, value in leaves.items()
            if name.startswith(prefix)
        }

        def at(distance: float, direction: Values = direction) -> float:
            moved = {name: value.detach() + distance * direction.get(name, 0.0) for name, value in leaves.items()}
            return loss({name: value.requires_grad_() for name, value in moved.items()}).item()

        # Tiny: the gradients of a ReLU network jump, so where its steps lead to does too.
        slope = (at(1e-8) - at(-1e-8)) / 2e-8
        expected = sum((gradient[name] * value).sum().item() for name, value in direction.items())
        assert slope == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("second_order", [True, False])
def test_the_gradient_in_float32_and_channels_last_is_that_in_float64(subject: State, second_order: bool) -> None:
    learner = replace(_with_rates(subject), second_order=second_order)
    exact, single = _gradient(subject, learner), _gradient(subject, learner, torch.float32)
    for name, value in exact.items():
        assert (single[name] - value).norm() <= 2e-3 * value.norm() + 1e-6, name


def test_the_first_order_gradient_is_another_than_the_second_order_one(subject: State) -> None:
    learner = _with_rates(subject)
    second, first = _gradient(subject, learner), _gradient(subject, replace(learner, second_order=False))
    for prefix in PREFIXES:
        one, other = _together(second, prefix), _together(first, prefix)
        assert (one - other).norm() > 0.02 * one.norm(), prefix


def test_the_first_order_gradient_is_that_after_the_steps_that_adaptation_takes(subject: State) -> None:
    """Network and architecture moved in place by ``gradient_step``; the head's gradient goes on to the prototypes."""
    problem = _problem(torch.float32)
    support = problem.support
    gradient = _gradient(subject, FIRST_ORDER, torch.float32)
    log_scale = subject.log_scale
    architecture = {name: value.detach().clone().requires_grad_() for name, value in subject.architecture.items()}

    def weights(temperature: float) -> Any:
        return operation_weights(network, architecture, schedule=SCHEDULE, temperature=temperature)

    network = copy.deepcopy(subject.network)
    start = [*network.parameters(), *architecture.values(), log_scale]
    first: dict[str, Any] = {"images": support.images[:4], "labels": support.labels[:4], "n_way": 4}
    head, _ = start_head(network, weights=weights(1.0), **first, scale=log_scale.exp().item(), skip_below=0.0)
    before = [value.detach().clone() for value in start]
    optimizer = build_optimizer(Parameters(network, head, architecture), {}, schedule=SCHEDULE)
    for step in range(2):
        gradient_step(
            network, head, optimizer, weights=weights(step_temperature(step, 2, SCHEDULE)), images=support.images,
            labels=support.labels, class_weights=support.class_weights, skip_below=0.0,
        )  # fmt: skip
    loss = functional.cross_entropy(head(network(problem.query_images, weights(0.5))), problem.query_labels)
    *direct, of_rows = torch.autograd.grad(loss, [*start[:-1], head.weight], materialize_grads=True)

    with torch.no_grad():
        for value, old in zip(start, before, strict=True):
            value.copy_(old)
    rows = log_scale.exp() * prototypes(network(support.images[:4], weights(1.0)), support.labels[:4], n_way=4)
    through_start = torch.autograd.grad(rows, start, grad_outputs=of_rows, materialize_grads=True)
    names = [*live_parameters(subject), "log_scale"]
    for name, one, other in zip(names, [*direct, torch.tensor(0.0)], through_start, strict=True):
        torch.testing.assert_close(gradient[name].float(), one + other, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("second_order", [True, False])
def test_learning_leaves_the_subject_as_it_was_to_the_bit(
    subject: State, tasks: Callable[[], list[MetaTask]], second_order: bool
) -> None:
    learner = replace(_with_rates(subject), second_order=second_order)
    before = _everything(subject)
    layout = [value.stride() for value in live_parameters(subject).values()]
    learner.learn(subject, tasks(), learn_architecture=True)
    assert all(torch.equal(value, before[name]) for name, value in _everything(subject).items())
    assert [value.stride() for value in live_parameters(subject).values()] == layout
    assert all(value.grad is None for value in [*live_parameters(subject).values(), subject.log_scale])
    assert subject.network.training


def test_two_parts_of_a_meta_batch_add_up_to_the_whole(subject: State, tasks: Callable[[], list[MetaTask]]) -> None:
    whole = FIRST_ORDER.learn(subject, tasks(), learn_architecture=True)
    parts = [FIRST_ORDER.learn(subject, part, learn_architecture=True) for part in (tasks()[:1], tasks()[1:])]
    assert (whole.tasks, parts[0].tasks, parts[1].tasks) == (3, 1, 2)
    assert whole.loss == pytest.approx(sum(part.loss for part in parts))
    assert 0 < whole.mean().accuracy <= 1
    for name, value in whole.values.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, parts[0].values[name] + parts[1].values[name], rtol=1e-12, atol=1e-15)


def test_the_same_tasks_give_the_same_bits(subject: State, tasks: Callable[[], list[MetaTask]]) -> None:
    one = FIRST_ORDER.learn(subject, tasks(), learn_architecture=True)
    torch.rand(3)
    other = FIRST_ORDER.learn(subject, tasks(), learn_architecture=True)
    assert all(torch.equal(value, other.values[name]) for name, value in one.values.items())


def test_rates_equal_to_the_schedules_change_no_gradient(subject: State, tasks: Callable[[], list[MetaTask]]) -> None:
    without = LEARNER.learn(subject, tasks()[:1], learn_architecture=True)
    learned = _with_rates(subject).learn(subject, tasks()[:1], learn_architecture=True)
    assert {name for name in learned.values if name not in without.values} == {
        f"step_rates/{name}" for name in subject.step_rates
    }
    assert all(torch.equal(value, learned.values[name]) for name, value in without.values.items())


def test_the_learned_rates_are_the_ones_that_tasks_take(subject: State, tasks: Callable[[], list[MetaTask]]) -> None:
    learner = replace(_with_rates(subject), second_order=False)
    other = replace(FIRST_ORDER, schedule=replace(SCHEDULE, learning_rate=0.04))
    subject.step_rates = {
        name: rates if name.startswith("architecture.") else torch.full((2,), 0.04)
        for name, rates in subject.step_rates.items()
    }
    loss = learner.learn(subject, tasks(), learn_architecture=True).loss
    subject.step_rates = {}
    assert loss == pytest.approx(other.learn(subject, tasks(), learn_architecture=True).loss)
    assert loss != pytest.approx(FIRST_ORDER.learn(subject, tasks(), learn_architecture=True).loss, rel=1e-4)


@pytest.mark.parametrize("learn_architecture", [True, False])
def test_a_plain_move_is_equation_8(
    subject: State, tasks: Callable[[], list[MetaTask]], learn_architecture: bool
) -> None:
    learner = _with_rates(subject)
    before = _everything(subject)
    mean = learner.learn(subject, tasks(), learn_architecture=learn_architecture).mean()
    learner.move(subject, mean, decay=0.5, learn_architecture=learn_architecture)
    for name, value in _everything(subject).items():
        if name.startswith(ARCHITECTURE) and not learn_architecture:
            assert name not in mean.values
            assert torch.equal(value, before[name])
            continue
        rate = 0.25 if name.startswith(ARCHITECTURE) else 0.125 if name.startswith("step_rates/") else 0.5
        expected = (before[name].double() - 0.5 * rate * mean.values[name]).float()
        if name.startswith("step_rates/"):
            expected = expected.clamp(min=0.0)  # a negative rate would climb
        assert torch.equal(value, expected), name
        # A node with two inputs has one combination, which always weighs 1.
        if name.startswith((NETWORK, ARCHITECTURE)) and not name.endswith("beta.0"):
            assert not torch.equal(value, before[name]), name


def test_a_move_by_adam_is_adams_step_on_weights_scale_and_architecture(
    make_config: Any, make_state: Any, tasks: Callable[[], list[MetaTask]]
) -> None:
    subject: State = make_state(make_config(network=SMALL, warm_up="supervised"))
    learner = replace(LEARNER, adam=subject.optimizer, learning_rate=0.01, architecture_learning_rate=0.02)
    assert subject.classifier is not None
    before, classifier = _everything(subject), subject.classifier.detach().clone()
    mean = learner.learn(subject, tasks(), learn_architecture=True).mean()
    learner.move(subject, mean, decay=0.5, learn_architecture=True)
    for name, value in _everything(subject).items():
        rate = 0.01 if name.startswith(ARCHITECTURE) else 0.005
        # The architecture starts at zero, so its weight decay adds nothing.
        gradient = mean.values[name]
        expected = before[name] - rate * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(value, expected.float(), rtol=1e-4, atol=rate / 100, msg=name)
    assert torch.equal(subject.classifier, classifier)
    assert all(value.grad is None for value in live_parameters(subject).values())


def test_adam_leaves_an_architecture_alone_that_does_not_learn(
    subject: State, tasks: Callable[[], list[MetaTask]]
) -> None:
    learner = replace(FIRST_ORDER, adam=subject.optimizer)
    before = _everything(subject)
    mean = learner.learn(subject, tasks(), learn_architecture=False).mean()
    learner.move(subject, mean, decay=1.0, learn_architecture=False)
    after = _everything(subject)
    assert all(torch.equal(after[name], before[name]) == name.startswith(ARCHITECTURE) for name in after)


def test_adam_of_another_subject_is_an_error(
    subject: State, make_config: Any, make_state: Any, tasks: Callable[[], list[MetaTask]]
) -> None:
    learner = replace(FIRST_ORDER, adam=make_state(make_config(network=SMALL)).optimizer)
    mean = learner.learn(subject, tasks()[:1], learn_architecture=True).mean()
    with pytest.raises(NothingMovedError, match="holds other parameters; make it from those of the subject"):
        learner.move(subject, mean, decay=1.0, learn_architecture=True)


def test_clipping_shortens_long_gradients_and_leaves_short_ones(
    subject: State, tasks: Callable[[], list[MetaTask]]
) -> None:
    mean = FIRST_ORDER.learn(subject, tasks()[:1], learn_architecture=True).mean()
    norm = _together(dict(mean.values), "").norm().item()
    before = _everything(subject)

    def travel(clip: float) -> float:
        moved = copy.deepcopy(subject)
        learner = replace(LEARNER, gradient_clip=clip, learning_rate=1e-2, architecture_learning_rate=1e-2)
        learner.move(moved, mean, decay=1.0, learn_architecture=True)
        after = _everything(moved)
        return math.hypot(*((after[name] - before[name]).norm().item() for name in before))

    assert travel(0.0) == pytest.approx(1e-2 * norm, rel=1e-3)
    assert travel(2 * norm) == pytest.approx(1e-2 * norm, rel=1e-3)
    assert travel(norm / 4) == pytest.approx(1e-2 * norm / 4, rel=1e-3)


def test_a_move_that_moves_nothing_is_an_error(subject: State, tasks: Callable[[], list[MetaTask]]) -> None:
    mean = FIRST_ORDER.learn(subject, tasks()[:1], learn_architecture=True).mean()
    still = {
        name: torch.zeros_like(value) if name.startswith(ARCHITECTURE) else value for name, value in mean.values.items()
    }
    with pytest.raises(NothingMovedError, match="moved no architecture parameter"):
        LEARNER.move(subject, replace(mean, values=still), decay=1.0, learn_architecture=True)
    with pytest.raises(NothingMovedError, match="moved no weight"):
        LEARNER.move(
            subject,
            replace(mean, values={name: torch.zeros_like(value) for name, value in mean.values.items()}),
            decay=1.0,
            learn_architecture=True,
        )


def test_a_loss_that_is_no_number_names_step_and_task(subject: State, tasks: Callable[[], list[MetaTask]]) -> None:
    learner = _with_rates(subject)
    subject.step_rates["head.weight"][1] = math.nan
    with pytest.raises(NonFiniteError, match="the loss is nan at the query images after inner step 2 of task 1"):
        learner.learn(subject, tasks(), learn_architecture=True)
    subject.step_rates["head.weight"][0] = math.nan
    with pytest.raises(NonFiniteError, match="the loss is nan at inner step 2 of task 1"):
        learner.learn(subject, tasks(), learn_architecture=True)


@pytest.mark.parametrize(
    "network", [NetworkConfig(kind="conv_blocks", filters=4, blocks=2),
                NetworkConfig(kind="fixed", genotype="metanas_omniglot", channels=4)],
)  # fmt: skip
def test_networks_of_a_fixed_architecture_learn_too(
    make_config: Any, make_state: Any, tasks: Callable[[], list[MetaTask]], network: NetworkConfig
) -> None:
    subject: State = make_state(make_config(network=network, plan=Plan(joint=1)))
    before = _everything(subject)
    mean = LEARNER.learn(subject, tasks(), learn_architecture=True).mean()
    LEARNER.move(subject, mean, decay=1.0, learn_architecture=True)
    assert not any(torch.equal(value, before[name]) for name, value in _everything(subject).items() if "conv" in name)


def test_learning_rates_that_nobody_made_is_an_error(subject: State, tasks: Callable[[], list[MetaTask]]) -> None:
    with pytest.raises(InvalidConfigError, match="learned_rates needs step_rates to start from"):
        replace(LEARNER, learned_rates=True).learn(subject, tasks(), learn_architecture=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schedule": replace(SCHEDULE, architecture_steps=0)}, "MAML needs at least one inner step"),
        ({"learning_rate": 0.0}, r"learning_rate must be above 0 and finite, got 0\.0"),
        ({"progress": 1.5}, r"progress must be 0\.\.1, got 1\.5"),
        ({"gradient_clip": -1.0}, r"gradient_clip must be at least 0 and finite, got -1\.0"),
    ],
)
def test_a_setting_out_of_range_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfigError, match=message):
        replace(LEARNER, **values)


def test_the_query_loss_falls_over_meta_steps(subject: State, tasks: Callable[[], list[MetaTask]]) -> None:
    learner = replace(LEARNER, adam=subject.optimizer, learning_rate=1e-2, architecture_learning_rate=1e-2)
    losses = []
    for _ in range(8):
        part = learner.learn(subject, tasks()[:2], learn_architecture=True)
        learner.move(subject, part.mean(), decay=1.0, learn_architecture=True)
        losses.append(part.mean().loss)
    assert losses[-1] < 0.7 * losses[0]


def test_spread_rates_go_as_far_in_more_steps() -> None:
    learned = {"head.weight": torch.tensor([0.4, 0.1])}

    rates = spread(learned, steps=5)["head.weight"]

    torch.testing.assert_close(rates, torch.tensor([0.4 / 3] * 3 + [0.05] * 2))
    assert rates.sum().item() == pytest.approx(0.5)
