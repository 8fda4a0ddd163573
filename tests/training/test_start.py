"""A run that begins with what another has learnt."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metanas.artifact import load_meta
from metanas.errors import InvalidConfigError
from metanas.model import MetaModel
from metanas.preprocessing import Preprocessing
from metanas.schedule import Schedule
from metanas_training.cli import main
from metanas_training.config import NetworkConfig, TrainingConfig
from metanas_training.state import State, start_from, to_meta_model

MakeState = Callable[[TrainingConfig], State]


@pytest.fixture
def learnt(make_state: MakeState) -> MetaModel:
    """Of a search space, with an architecture and a scale of its own, after 40 seconds."""
    state = make_state(TrainingConfig(device="cpu", seed=1, network=NetworkConfig(channels=4)))
    with torch.no_grad():
        for value in state.architecture.values():
            value.copy_(torch.randn_like(value))
        state.log_scale.fill_(1.5)
    size = state.network.space.image_size
    return to_meta_model(
        state,
        preprocessing=Preprocessing(channels=1, height=size, width=size),
        schedule=Schedule(),
        provenance={"training_seconds": 50.0, "training_cpu_seconds": 40.0},
    )


def test_a_search_begins_with_weights_architecture_scale_and_time(learnt: MetaModel, make_state: MakeState) -> None:
    state = make_state(TrainingConfig(device="cpu", seed=2, network=NetworkConfig(channels=4)))
    start_from(state, learnt, name="m.pt")
    assert all(torch.equal(value, learnt.weights[name]) for name, value in state.network.named_parameters())
    assert all(torch.equal(value, learnt.architecture[name]) for name, value in state.architecture.items())
    assert state.log_scale.exp().item() == pytest.approx(learnt.head_scale)
    assert (state.seconds, state.cpu_seconds, state.phase, state.step) == (50.0, 40.0, 0, 0)
    assert all(value.requires_grad for value in state.network.parameters())


def test_a_fixed_architecture_takes_its_operations_out_of_a_one_shot_network(
    learnt: MetaModel, make_state: MakeState
) -> None:
    state = make_state(
        TrainingConfig(device="cpu", seed=2, network=NetworkConfig(kind="fixed", genotype="random:3", channels=4))
    )
    start_from(state, learnt, name="m.pt")
    of_network = dict(state.network.named_parameters())
    assert all(torch.equal(value, learnt.weights[name]) for name, value in of_network.items())
    assert len(of_network) < len(learnt.weights)
    assert state.architecture == {}


def test_a_network_of_other_sizes_is_refused_and_left_as_it_was(learnt: MetaModel, make_state: MakeState) -> None:
    state = make_state(TrainingConfig(device="cpu", seed=2, network=NetworkConfig(channels=6)))
    before = {name: value.detach().clone() for name, value in state.network.named_parameters()}
    with pytest.raises(InvalidConfigError, match=r"m\.pt does not fit this network: .* weights differ, stem"):
        start_from(state, learnt, name="m.pt")
    assert all(torch.equal(value, before[name]) for name, value in state.network.named_parameters())
    lacking = replace(learnt, weights=learnt.weights)
    object.__setattr__(lacking, "weights", {})  # no such meta-model can be made
    with pytest.raises(InvalidConfigError, match="and is missing"):
        start_from(make_state(TrainingConfig(device="cpu", network=NetworkConfig(channels=4))), lacking, name="m.pt")


def test_from_the_command_line_a_run_goes_on_where_another_ended(tmp_path: Path) -> None:
    common = ["--channels", "4", "--set", "network.cells=2", "--set", "network.reduction_cells=[1]", "--image-size",
              "14", "--eval-tasks", "1", "--ways", "2", "--pair-classes", "4", "--set", "validation_tasks=1",
              "--set", "task.architecture_steps=1", "--set", "task.weight_steps=1"]  # fmt: skip
    plan = ["--meta-epochs", "0", "--search-steps", "0", "--fall-steps", "0", "--warm-up-steps"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert main([*common, *plan, "2", "--output", str(first)]) == 0
    start = first / "meta.pt"
    assert main([*common, *plan, "0", "--start", str(start), "--seed", "9", "--output", str(second)]) == 0
    one, other = load_meta(start), load_meta(second / "meta.pt")
    assert all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())
    assert other.provenance["configuration"]["start"] == str(start)
    assert other.provenance["training_cpu_seconds"] == one.provenance["training_cpu_seconds"]
    assert main([*common, *plan, "0", "--start", str(tmp_path / "none.pt"), "--output", str(tmp_path / "third")]) == 1
