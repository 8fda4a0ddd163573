"""A run that was stopped ends in the same bits as one that was not; and accuracy rises."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metanas.artifact import pack
from metanas.errors import ArtifactError, CorruptArtifactError, WrongKindError
from metanas.schedule import Schedule
from metanas_training import loop
from metanas_training.config import NetworkConfig, Plan, TrainingConfig
from metanas_training.datasets import ImageClasses
from metanas_training.errors import CheckpointError, NonFiniteError
from metanas_training.loop import Trainer
from metanas_training.progress import StepOutcome
from metanas_training.state import State, load_checkpoint, new_state, save_checkpoint

MakeState = Callable[[TrainingConfig], State]


def _everything(state: State) -> dict[str, Tensor]:
    tensors = {
        **dict(state.network.named_parameters()),
        **state.architecture,
        **{f"moments/{name}": value for name, value in state.moments.items()},
        **{f"step_rates/{name}": value for name, value in state.step_rates.items()},
        "log_scale": state.log_scale,
    }
    if state.classifier is not None:
        tensors["classifier"] = state.classifier
    for number, values in enumerate(state.optimizer.state.values()):
        tensors.update({f"optimizer/{number}/{name}": value for name, value in values.items()})
    return {name: value.detach() for name, value in tensors.items()}


def _run(
    config: TrainingConfig,
    state: State,
    classes: tuple[ImageClasses, ImageClasses],
    path: Path,
    stop_at: int | None = None,
) -> list[StepOutcome]:
    outcomes: list[StepOutcome] = []
    trainer = Trainer(config, state, train=classes[0], validation=classes[1], checkpoint=path)
    finished = trainer.run(on_step=outcomes.append, should_stop=lambda: bool(outcomes) and outcomes[-1].step == stop_at)
    assert finished == (stop_at is None)
    return outcomes


@pytest.fixture
def classes(make_classes: Any) -> tuple[ImageClasses, ImageClasses]:
    return make_classes(), make_classes(seed=1)


MAML = {"meta_learner": "maml", "task": Schedule(batch_size=4, optimizer="sgd"), "meta_optimizer": "adam",
        "meta_learning_rate": 1e-3, "multi_step_loss": True, "learned_rates": True}  # fmt: skip
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "search after prototypes": {"warm_up": "prototype"},
    "the paper": {"warm_up": "meta"},
    "search after a classifier": {"warm_up": "supervised", "prototype_batches": 2},
    "a fixed genotype with DropPath": {
        "network": NetworkConfig(kind="fixed", genotype="metanas_omniglot", channels=4, affine=True), "drop_path": 0.3,
    },
    "REPTILE's CNN": {"network": NetworkConfig(kind="conv_blocks", filters=4, blocks=2), "warm_up": "meta"},
    "MAML++": MAML,
    "Gumbel": {"task": Schedule(batch_size=4, relaxation="gumbel")},
    "together": {"together": True},
}  # fmt: skip


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_run_resumed_from_any_phase_ends_in_the_bits_of_an_uninterrupted_one(
    make_config: Any, make_state: MakeState, classes: Any, tmp_path: Path, experiment: str
) -> None:
    values = EXPERIMENTS[experiment]
    searches = "network" not in values and values.get("warm_up") != "meta"
    search = 4 if searches else 0
    config = make_config(**values, plan=Plan(warm_up=3, search=search, fall=search // 2, joint=3))
    whole = make_state(config)
    outcomes = _run(config, whole, classes, tmp_path / "whole.pt")
    steps = 6 + search
    assert [outcome.step for outcome in outcomes] == list(range(1, steps + 1))
    phases = ["warm_up"] * 3 + ["search"] * search + ["joint"] * 3
    assert [outcome.phase for outcome in outcomes] == phases

    # Inside each phase and at each border.
    everywhere = (2, 3, 5, 8) if search else (2, 3, 5)
    for stop_at in everywhere if experiment in ("search after prototypes", "the paper") else everywhere[1::2]:
        path = tmp_path / f"{stop_at}.pt"
        first = _run(config, make_state(config), classes, path, stop_at=stop_at)
        loaded_config, state = load_checkpoint(path)
        assert loaded_config == config
        torch.manual_seed(99)
        second = _run(loaded_config, state, classes, path)
        assert [one.step for one in first + second] == list(range(1, steps + 1))
        assert [one.loss for one in first + second] == [one.loss for one in outcomes]
        assert [one.validation for one in first + second] == [one.validation for one in outcomes]
        found, expected = _everything(state), _everything(whole)
        assert found.keys() == expected.keys()
        assert not [name for name in expected if not torch.equal(found[name], expected[name])]
        assert [(row["step"], row["accuracy"]) for row in state.history] == [
            (row["step"], row["accuracy"]) for row in whole.history
        ]


def test_the_architecture_rests_in_the_warm_up_and_learns_in_search_and_joint_phase(
    make_config: Any, make_state: MakeState, classes: Any, tmp_path: Path
) -> None:
    config = make_config()
    state = make_state(config)
    seen: list[tuple[str, Tensor, Tensor]] = []
    trainer = Trainer(config, state, train=classes[0], validation=classes[1], checkpoint=tmp_path / "c.pt")

    def keep(outcome: StepOutcome) -> None:
        alpha = state.architecture["normal.alpha"].detach().clone()
        seen.append((outcome.phase, alpha, state.network.stem.weight.detach().clone()))

    trainer.run(on_step=keep, should_stop=lambda: False)
    stems = [stem for _, _, stem in seen]
    assert all(not torch.equal(one, other) for one, other in itertools.pairwise(stems))
    alphas = [alpha for _, alpha, _ in seen]
    assert all(not alpha.any() for alpha in alphas[:3])  # warm-up
    assert alphas[3].any()
    assert not torch.equal(alphas[3], alphas[4])  # the temperature falls
    assert torch.equal(alphas[4], alphas[5])  # it has fallen: weights only
    assert torch.equal(alphas[5], alphas[6])
    assert not torch.equal(alphas[7], alphas[8])  # joint


def test_a_stop_that_is_asked_for_in_the_last_step_is_a_stop(
    make_config: Any, make_state: MakeState, classes: Any, tmp_path: Path
) -> None:
    config = make_config(plan=Plan(warm_up=2))
    _run(config, make_state(config), classes, tmp_path / "c.pt", stop_at=2)
    loaded, state = load_checkpoint(tmp_path / "c.pt")
    assert _run(loaded, state, classes, tmp_path / "c.pt") == []


@pytest.mark.parametrize(("travel", "decided"), [(0.001, False), (30.0, True)])
def test_a_search_that_has_not_decided_says_so(
    travel: float, decided: bool, make_config: Any, make_state: MakeState, classes: Any, tmp_path: Path, caplog: Any
) -> None:
    config = make_config(plan=Plan(warm_up=1, search=6, fall=5), search_architecture_travel=travel)
    with caplog.at_level("WARNING"):
        _run(config, make_state(config), classes, tmp_path / "c.pt")
    said = [line for line in caplog.messages if "the architecture is not decided" in line]
    assert len(said) == (0 if decided else 1)
    assert decided or "operations are left where task networks keep 12" in said[0]


def test_a_run_planned_by_minutes_keeps_its_plan_when_resumed(
    make_config: Any, make_state: MakeState, classes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(plan=None, minutes=0.02)
    planned = Plan(warm_up=3, search=2, fall=1, joint=1)
    monkeypatch.setattr(loop, "plan_for_minutes", lambda *_, **__: planned)
    _run(config, make_state(config), classes, tmp_path / "c.pt", stop_at=2)
    monkeypatch.setattr(loop, "plan_for_minutes", lambda *_, **__: pytest.fail("planned anew"))
    loaded, state = load_checkpoint(tmp_path / "c.pt")
    assert state.plan == planned
    assert [outcome.step for outcome in _run(loaded, state, classes, tmp_path / "c.pt")] == [3, 4, 5, 6]


def test_a_checkpoint_of_another_kind_or_none_is_refused(
    make_config: Any, make_state: MakeState, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint .*/none\.pt; start without --resume"):
        load_checkpoint(tmp_path / "none.pt")
    (tmp_path / "meta.pt").write_bytes(pack("metanas-edge/meta-model", {}, {}))
    with pytest.raises(WrongKindError, match=r"is a meta-model \(meta.pt\); expected metanas-edge/training-checkpoint"):
        load_checkpoint(tmp_path / "meta.pt")
    save_checkpoint(tmp_path / "c.pt", make_state(make_config()), make_config())
    (tmp_path / "short.pt").write_bytes((tmp_path / "c.pt").read_bytes()[:5000])
    with pytest.raises(CorruptArtifactError, match=r"short\.pt \(5000 bytes\) is truncated or damaged"):
        load_checkpoint(tmp_path / "short.pt")
    (tmp_path / "bare.pt").write_bytes(pack("metanas-edge/training-checkpoint", {}, {}))
    with pytest.raises(ArtifactError, match=r"bare\.pt is incomplete or contradicts itself: 'config'"):
        load_checkpoint(tmp_path / "bare.pt")


def test_a_failed_validation_does_not_leave_the_network_normalising_with_one_task(
    make_config: Any, make_state: MakeState, classes: Any, tmp_path: Path
) -> None:
    """Validation freezes statistics for its own use only: with or without it, the weights come out the same."""
    results = []
    for validations in (1, 10):
        config = make_config(validations=validations)
        state = make_state(config)
        _run(config, state, classes, tmp_path / f"{validations}.pt")
        assert state.network.training
        results.append(_everything(state))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_a_few_dozen_prototype_steps_lift_accuracy_on_unseen_classes_well_above_chance(
    make_config: Any, make_state: MakeState, make_classes: Any, tmp_path: Path
) -> None:
    train, validation = make_classes(count=40, noise=96), make_classes(count=12, seed=1, noise=96)
    config = make_config(
        plan=Plan(warm_up=40, search=0, fall=0, joint=0), pair_classes=16, n_way=10, validation_tasks=4, validations=2,
        prototype_learning_rate=3e-3,
    )  # fmt: skip
    state = make_state(config)
    outcomes = _run(config, state, (train, validation), tmp_path / "c.pt")
    assert outcomes[-1].loss < 0.8 * outcomes[0].loss
    assert state.history[-1]["accuracy"] > 0.4  # chance is 0.1


@pytest.mark.parametrize("phase", ["warm_up", "joint"])
def test_a_loss_that_is_no_number_stops_the_run_and_names_step_and_task(
    make_config: Any, make_state: MakeState, classes: Any, tmp_path: Path, phase: str
) -> None:
    plan = Plan(warm_up=2) if phase == "warm_up" else Plan(joint=2)
    config = make_config(plan=plan)
    state = make_state(config)

    def spoil(outcome: StepOutcome) -> None:
        with torch.no_grad():
            state.network.stem.weight[0] = torch.nan

    trainer = Trainer(config, state, train=classes[0], validation=classes[1], checkpoint=tmp_path / "c.pt")
    where = "warm_up step 2 .step 2 of 2.: the loss is nan at batch 1" if phase == "warm_up" else (
        "joint step 2 .step 2 of 2.: the loss is nan at inner step 1 of task 1"
    )  # fmt: skip
    with pytest.raises(NonFiniteError, match=f"^{where}; start again with lower learning rates"):
        trainer.run(on_step=spoil, should_stop=lambda: False)


def test_a_supervised_warm_up_learns_to_tell_the_training_classes_apart(
    make_config: Any, make_state: MakeState, classes: Any, tmp_path: Path
) -> None:
    config = make_config(
        warm_up="supervised", plan=Plan(warm_up=60), pair_classes=16, prototype_learning_rate=1e-2,
        network=NetworkConfig(kind="conv_blocks", filters=8, blocks=2),
    )  # fmt: skip
    outcomes = _run(config, make_state(config), classes, tmp_path / "c.pt")
    assert outcomes[0].accuracy < 0.5
    assert outcomes[-1].accuracy > 0.9


def test_a_run_on_a_gpu_is_finished_without_one_once_its_steps_are_done(
    make_config: Any, make_state: MakeState, classes: Any, tmp_path: Path
) -> None:
    config = make_config(warm_up="supervised", plan=Plan(warm_up=2))
    on_gpu = replace(config, device="cuda", precision="bfloat16")
    state = make_state(config)
    _run(config, state, classes, tmp_path / "c.pt", stop_at=1)
    save_checkpoint(tmp_path / "c.pt", state, on_gpu)
    if not torch.cuda.is_available():
        with pytest.raises(
            CheckpointError, match="on a CUDA device, and torch sees none here; resume it where there is"
        ):
            load_checkpoint(tmp_path / "c.pt")
    _run(config, state, classes, tmp_path / "c.pt")
    save_checkpoint(tmp_path / "c.pt", state, on_gpu)
    loaded, resumed = load_checkpoint(tmp_path / "c.pt")
    assert loaded == on_gpu  # the settings still say how it was trained
    assert _run(loaded, resumed, classes, tmp_path / "c.pt") == []
    for name, value in _everything(state).items():
        assert torch.equal(value, _everything(resumed)[name].cpu()), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("warm_up", ["prototype", "supervised"])
def test_on_a_gpu_bfloat16_gives_much_the_same_gradients(
    warm_up: Any, make_config: Any, make_state: MakeState, make_classes: Any, tmp_path: Path
) -> None:
    classes = make_classes(size=28)
    means = {}
    for precision in ("float32", "bfloat16"):
        config = make_config(
            device="cuda", precision=precision, warm_up=warm_up, network=NetworkConfig(channels=16), image_size=28,
            plan=Plan(warm_up=3, search=3, fall=3), pair_classes=8,
        )  # fmt: skip
        state = new_state(
            config, space=config.network.space(classes.preprocessing), genotype=None,
            classes=8 if warm_up == "supervised" else None,
        )  # fmt: skip
        trainer = Trainer(config, state, train=classes, validation=classes, checkpoint=tmp_path / "c.pt")
        state.plan, state.phase = config.plan, 1
        mean, _ = trainer._step()
        means[precision] = torch.cat([value.flatten() for _, value in sorted(mean.values.items())]).cpu()
    similarity = torch.nn.functional.cosine_similarity(means["float32"], means["bfloat16"], dim=0)
    assert not torch.equal(means["float32"], means["bfloat16"])
    assert similarity > 0.98
