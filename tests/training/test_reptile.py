"""Reptile's meta-step against the formula, task by task; and that it moves something or says so."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from metanas.errors import NothingMovedError
from metanas.model import Schedule
from metanas.network import Network, channels_last, one_shot_plan
from metanas.preprocessing import Preprocessing
from metanas.relaxation import Architecture, initial_architecture
from metanas.space import SearchSpace
from metanas_training.episodes import Episode, generator_for, sample_episode
from metanas_training.reptile import TaskOutcome, learn_task, meta_step

Start = tuple[Network, Architecture, list[Episode]]


@pytest.fixture
def start(small_space: SearchSpace, make_classes: Any) -> Start:
    torch.manual_seed(0)
    network = Network(small_space, one_shot_plan(small_space))
    channels_last(network)
    architecture = {
        name: (0.1 * torch.randn(value.shape)).requires_grad_()
        for name, value in initial_architecture(small_space).items()
    }
    episodes = [
        sample_episode(make_classes(), n_way=3, n_shot=2, n_query=0, generator=generator_for(0, task))
        for task in range(2)
    ]
    return network, architecture, episodes


def _settings(**values: Any) -> dict[str, Any]:
    schedule = {"architecture_steps": 2, "weight_steps": 0, "batch_size": 4, "skip_below": 0.0, **values}
    return {"schedule": Schedule(**schedule), "head_scale": 10.0, "preprocessing": Preprocessing(height=8, width=8)}


def _step(start: Start, *, learn_architecture: bool = True, moments: Any = None, **values: Any) -> TaskOutcome:
    network, architecture, episodes = start
    return meta_step(
        network, architecture, episodes, **_settings(**values), moments=moments or {},
        generators=[generator_for(1, task) for task in range(len(episodes))], learn_architecture=learn_architecture,
        meta_learning_rate=0.5, meta_architecture_learning_rate=0.25,
    )  # fmt: skip


def _values(network: Network, architecture: Architecture) -> dict[str, Tensor]:
    live = {**dict(network.named_parameters()), **architecture}
    return {name: value.detach().clone() for name, value in live.items()}


@pytest.mark.parametrize("learn_architecture", [True, False])
def test_a_meta_step_is_rate_times_the_mean_of_what_each_task_learned(start: Start, learn_architecture: bool) -> None:
    network, architecture, episodes = start
    before = _values(network, architecture)
    learned, moments = [], {}
    for task, episode in enumerate(episodes):
        copy_of_network = copy.deepcopy(network)
        copy_of_architecture = {
            name: value.detach().clone().requires_grad_(learn_architecture) for name, value in architecture.items()
        }
        moments = learn_task(
            copy_of_network, copy_of_architecture, episode, **_settings(), moments=moments,
            generator=generator_for(1, task), learn_architecture=learn_architecture,
        ).moments  # fmt: skip
        learned.append(_values(copy_of_network, copy_of_architecture))

    outcome = _step(start, learn_architecture=learn_architecture)
    after = _values(network, architecture)
    for name, value in after.items():
        mean = sum(values[name] - before[name] for values in learned) / 2
        rate = 0.25 if name in architecture else 0.5
        torch.testing.assert_close(value, before[name] + rate * mean, rtol=1e-6, atol=1e-7, msg=name)
        moves = learn_architecture or name not in architecture
        # A node with two inputs has one combination, which always weighs 1.
        assert torch.equal(value, before[name]) != moves or name.endswith("beta.0"), name
    assert outcome.moments.keys() == moments.keys()
    assert all(torch.equal(outcome.moments[name], moments[name]) for name in moments)


def test_moments_pass_from_task_to_task_and_count_steps(start: Start) -> None:
    first = _step(start)
    assert first.moments["step"].item() == 4  # two tasks of two steps
    assert _step(start, moments=first.moments).moments["step"].item() == 8


def test_a_meta_step_that_moves_no_weight_is_an_error(start: Start) -> None:
    with torch.no_grad():
        start[0].stem_norm.bias.fill_(1.0)  # at 0 even 1e-30 would move it
    with pytest.raises(NothingMovedError, match="moved no weight; check learning rates and that gradients reach them"):
        _step(start, learning_rate=1e-30)


def test_a_meta_step_that_moves_no_architecture_is_an_error_only_where_it_should_learn(start: Start) -> None:
    with pytest.raises(NothingMovedError, match="moved no architecture parameter; check its learning rate"):
        _step(start, architecture_learning_rate=1e-30)
    _step(start, architecture_learning_rate=1e-30, learn_architecture=False)


def test_an_optimiser_that_does_nothing_is_an_error(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim.Adam, "step", lambda *_, **__: None)
    monkeypatch.setattr("metanas_training.reptile.collect_moments", lambda *_: {})
    with pytest.raises(NothingMovedError, match="moved no weight"):
        _step(start)
