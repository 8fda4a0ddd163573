"""Each file of configs/ is an experiment that runs: a step of each of its phases, on small made-up pictures."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metanas.preprocessing import Preprocessing
from metanas_training.arguments import parse, read_arguments
from metanas_training.config import Plan
from metanas_training.loop import Trainer
from metanas_training.state import new_state

CONFIGS = sorted(
    path
    for path in (Path(__file__).resolve().parents[2] / "configs").glob("*.toml")
    if not path.name.startswith("single_task")
)
SIZE = 16
"""The least that four blocks of pooling leave a pixel of."""
LESS = {
    "n_way": 2, "train_shots": 2, "train_queries": 1, "meta_batch_size": 1, "inner_steps": 2, "pair_classes": 4,
    "validations": 1, "validation_tasks": 1,
}  # fmt: skip


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_file_in_configs_takes_a_step_of_each_of_its_phases(
    path: Path, make_classes: Any, tmp_path: Path
) -> None:
    config = read_arguments(parse(["--config", str(path), "--device", "cpu"]))
    plan = config.plan or Plan(
        warm_up=1, search=2 * (config.network.kind == "search"), joint=int(config.joint_share > 0)
    )
    one_each = Plan(min(plan.warm_up, 1), min(plan.search, 2), min(plan.search, 1), min(plan.joint, 1))
    config = replace(config, plan=one_each, **LESS)
    train = make_classes(size=SIZE)
    state = new_state(
        config,
        space=config.network.space(Preprocessing(height=SIZE, width=SIZE)),
        genotype=config.network.fixed_genotype(),
        classes=len(train) if config.warm_up == "supervised" else None,
    )
    before = [parameter.detach().clone() for parameter in state.network.parameters()]
    outcomes: list[Any] = []
    trainer = Trainer(
        config, state, train=train, validation=make_classes(size=SIZE, seed=1), checkpoint=tmp_path / "c.pt"
    )
    assert trainer.run(on_step=outcomes.append, should_stop=lambda: False)
    assert [one.phase for one in outcomes] == [name for name, count in one_each.phases() for _ in range(count)]
    assert all(math.isfinite(one.loss) for one in outcomes)
    moved = [not torch.equal(old, new) for old, new in zip(before, state.network.parameters(), strict=True)]
    assert any(moved)  # not all: AutoMeta reads one of the two inputs of a cell only
