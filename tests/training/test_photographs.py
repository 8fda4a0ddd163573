"""What meta-training does to photographs: mirrored, recoloured, and turned into more classes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metanas.artifact import load_meta
from metanas_training.cli import main
from metanas_training.config import NetworkConfig, Plan, TrainingConfig
from metanas_training.datasets import load_classes
from metanas_training.loop import Trainer
from metanas_training.state import State, load_checkpoint

MakeState = Callable[[TrainingConfig], State]


@pytest.fixture
def first_loss(make_state: MakeState, make_classes: Any, tmp_path: Path) -> Callable[..., float]:
    """Of one prototype step with some settings."""

    def loss(**settings: Any) -> float:
        config = TrainingConfig(
            device="cpu", plan=Plan(warm_up=1), pair_classes=4, validation_tasks=1, n_way=2,
            network=NetworkConfig(channels=4), **settings,
        )  # fmt: skip
        outcomes: list[float] = []
        trainer = Trainer(
            config,
            make_state(config),
            train=make_classes(),
            validation=make_classes(seed=1),
            checkpoint=tmp_path / "checkpoint.pt",
        )
        trainer.run(on_step=lambda outcome: outcomes.append(outcome.loss), should_stop=lambda: False)
        return outcomes[0]

    return loss


def test_mirroring_and_recolouring_change_what_is_learnt_from_and_repeat(first_loss: Callable[..., float]) -> None:
    plain = first_loss()
    assert first_loss() == plain
    for settings in ({"mirroring": True}, {"recolouring": 1.0}):
        changed = first_loss(**settings)
        assert changed != plain
        assert first_loss(**settings) == changed


def test_quarter_turns_of_the_training_classes_are_more_classes(tmp_path: Path) -> None:
    arguments = ["--channels", "4", "--set", "network.cells=2", "--set", "network.reduction_cells=[1]", "--image-size",
                 "14", "--eval-tasks", "1", "--ways", "2", "--pair-classes", "4", "--set", "validation_tasks=1",
                 "--set", "task.architecture_steps=1", "--set", "task.weight_steps=1", "--warm-up", "supervised",
                 "--meta-epochs", "0", "--warm-up-steps", "1", "--search-steps", "0", "--fall-steps", "0"]  # fmt: skip
    rows = {}
    for name, more in (("plain", []), ("turned", ["--set", "rotated_classes=true"])):
        assert main([*arguments, *more, "--output", str(tmp_path / name)]) == 0
        config, state = load_checkpoint(tmp_path / name / "checkpoint.pt")
        assert state.classifier is not None
        rows[name] = len(state.classifier)
        assert config.rotated_classes == (name == "turned")
    classes = load_classes(
        "glyphs", "train", preprocessing=load_meta(tmp_path / "plain" / "meta.pt").preprocessing, root=tmp_path
    )
    assert rows == {"plain": len(classes), "turned": 4 * len(classes)}
