"""Reptile's meta-step against the formula, task by task; and that it moves something or says so."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from metanas.errors import NothingMovedError
from metanas.preprocessing import Preprocessing
from metanas.schedule import Schedule
from metanas_training.config import NetworkConfig, Plan
from metanas_training.episodes import generator_for, sample_episode
from metanas_training.errors import NonFiniteError
from metanas_training.meta_learner import ARCHITECTURE, Contribution, MetaTask
from metanas_training.reptile import Reptile, live_parameters
from metanas_training.state import State

SCHEDULE = Schedule(architecture_steps=2, weight_steps=0, batch_size=4, skip_below=0.0)
LEARNER = Reptile(
    schedule=SCHEDULE,
    preprocessing=Preprocessing(height=8, width=8),
    learning_rate=0.5,
    architecture_learning_rate=0.25,
)


@pytest.fixture
def subject(make_config: Any, make_state: Any) -> State:
    state: State = make_state(make_config())
    with torch.no_grad():
        for value in state.architecture.values():
            value += 0.1 * torch.randn(value.shape)
    return state


@pytest.fixture
def tasks(make_classes: Any) -> Callable[[], list[MetaTask]]:
    """Three tasks, with fresh generators at every call."""

    def make() -> list[MetaTask]:
        classes = make_classes()
        return [
            MetaTask(
                sample_episode(classes, n_way=3, n_shot=2, n_query=0, generator=generator_for(0, task)),
                generator_for(1, task),
            )
            for task in range(3)
        ]

    return make


def _values(subject: State) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in live_parameters(subject).items()}


def _step(
    subject: State, tasks: list[MetaTask], *, learner: Reptile = LEARNER, learn_architecture: bool = True
) -> Contribution:
    part = learner.learn(subject, tasks, learn_architecture=learn_architecture)
    learner.move(subject, part.mean(), decay=1.0, learn_architecture=learn_architecture)
    return part


@pytest.mark.parametrize("learn_architecture", [True, False])
def test_a_meta_step_is_rate_times_the_mean_of_what_each_task_learned(
    subject: State, tasks: Any, learn_architecture: bool
) -> None:
    for value in subject.architecture.values():
        value.requires_grad_(learn_architecture)
    before = _values(subject)
    # Each task alone, by a rate of 1: the subject is then where the task's steps have led.
    alone, learned, moments = replace(LEARNER, learning_rate=1.0, architecture_learning_rate=1.0), [], []
    for task in tasks():
        one = copy.deepcopy(subject)
        _step(one, [task], learner=alone, learn_architecture=learn_architecture)
        learned.append(_values(one))
        moments.append(one.moments)

    _step(subject, tasks(), learn_architecture=learn_architecture)
    for name, value in _values(subject).items():
        mean = sum(values[name] - before[name] for values in learned) / 3
        rate = 0.25 if name.startswith(ARCHITECTURE) else 0.5
        torch.testing.assert_close(value, before[name] + rate * mean, rtol=1e-6, atol=1e-7, msg=name)
        moves = learn_architecture or not name.startswith(ARCHITECTURE)
        # A node with two inputs has one combination, which always weighs 1.
        assert torch.equal(value, before[name]) != moves or name.endswith("beta.0"), name
    for name, value in subject.moments.items():
        torch.testing.assert_close(value, sum(one[name] for one in moments) / 3, msg=name)


def test_learning_leaves_the_subject_as_it_was_to_the_bit(subject: State, tasks: Any) -> None:
    before = _values(subject)
    LEARNER.learn(subject, tasks(), learn_architecture=True)
    assert all(torch.equal(value, before[name]) for name, value in _values(subject).items())
    assert not subject.moments


def test_the_parts_of_a_meta_batch_add_up_to_the_whole_to_the_bit(subject: State, tasks: Any) -> None:
    whole = LEARNER.learn(subject, tasks(), learn_architecture=True)
    first = LEARNER.learn(subject, tasks()[:1], learn_architecture=True)
    rest = LEARNER.learn(subject, tasks()[1:], learn_architecture=True)
    for name, value in whole.values.items():
        total = first.values[name] + rest.values[name]
        assert torch.equal(total.float(), value.float()), name
    assert first.tasks + rest.tasks == whole.tasks == 3


def test_moments_pass_from_meta_step_to_meta_step_and_count_steps(subject: State, tasks: Any) -> None:
    _step(subject, tasks())
    assert subject.moments["step"].item() == 2  # every task takes two
    _step(subject, tasks())
    assert subject.moments["step"].item() == 4


def test_a_fixed_architecture_learns_its_weights(make_config: Any, make_state: Any, tasks: Any) -> None:
    subject = make_state(
        make_config(network=NetworkConfig(kind="conv_blocks", filters=4, blocks=2), plan=Plan(joint=1))
    )
    before = _values(subject)
    _step(subject, tasks(), learn_architecture=False)
    moved = [name for name, value in _values(subject).items() if not torch.equal(value, before[name])]
    assert "network/convs.0.weight" in moved
    assert not subject.architecture


def test_drop_path_changes_what_is_learned_and_its_draws_come_from_the_task(subject: State, tasks: Any) -> None:
    dropping = replace(LEARNER, drop_path=0.5)
    plain = LEARNER.learn(subject, tasks(), learn_architecture=False)
    one = dropping.learn(subject, tasks(), learn_architecture=False)
    other = dropping.learn(subject, tasks(), learn_architecture=False)
    name = "network/stem.weight"
    assert torch.equal(one.values[name], other.values[name])
    assert not torch.equal(one.values[name], plain.values[name])


def test_a_meta_step_that_moves_no_weight_is_an_error(subject: State, tasks: Any) -> None:
    with torch.no_grad():
        subject.network.stem_norm.bias.fill_(1.0)  # at 0 even 1e-30 would move it
    still = replace(LEARNER, schedule=replace(SCHEDULE, learning_rate=1e-30))
    with pytest.raises(NothingMovedError, match="moved no weight; check learning rates and that gradients reach them"):
        _step(subject, tasks(), learner=still)


def test_a_meta_step_that_moves_no_architecture_is_an_error_only_where_it_should_learn(
    subject: State, tasks: Any
) -> None:
    still = replace(LEARNER, schedule=replace(SCHEDULE, architecture_learning_rate=1e-30))
    with pytest.raises(NothingMovedError, match="moved no architecture parameter; check its learning rate"):
        _step(subject, tasks(), learner=still)
    _step(subject, tasks(), learner=still, learn_architecture=False)


def test_an_optimiser_that_does_nothing_is_an_error(
    subject: State, tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.optim.Adam, "step", lambda *_, **__: None)
    monkeypatch.setattr("metanas_training.reptile.collect_moments", lambda *_: {})
    with pytest.raises(NothingMovedError, match="moved no weight"):
        _step(subject, tasks())


def test_a_loss_that_is_no_number_names_step_and_task_and_leaves_the_subject(subject: State, tasks: Any) -> None:
    before = _values(subject)
    bad = tasks()
    wild = replace(LEARNER, schedule=replace(SCHEDULE, learning_rate=100.0, architecture_steps=5))
    with torch.no_grad():
        subject.network.stem.weight[0] = torch.inf
    with pytest.raises(
        NonFiniteError, match="the loss is nan at inner step 1 of task 1; start again with lower learning rates"
    ):
        wild.learn(subject, bad, learn_architecture=True)
    before["network/stem.weight"][0] = torch.inf
    assert all(torch.equal(value, before[name]) for name, value in _values(subject).items())
