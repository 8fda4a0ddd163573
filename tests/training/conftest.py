"""Classes of made-up pictures, small enough to meta-train on in seconds."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from metanas.preprocessing import Preprocessing
from metanas.space import SearchSpace
from metanas_training.config import Plan, TrainingConfig
from metanas_training.datasets import ImageClasses

SIZE = 8

MakeClasses = Callable[..., ImageClasses]


@pytest.fixture
def small_space() -> SearchSpace:
    return SearchSpace(channels=4, image_size=SIZE)


@pytest.fixture
def make_classes() -> MakeClasses:
    """Classes that are a random pattern each; every image has noise of its own."""

    def make(count: int = 8, images: int = 6, *, seed: int = 0, rotations: int = 1, noise: int = 90) -> ImageClasses:
        generator = torch.Generator().manual_seed(seed)
        drawn = []
        for _ in range(count):
            pattern = 160 * torch.randint(0, 2, (1, 1, SIZE, SIZE), generator=generator)
            drawn.append(
                (pattern + torch.randint(0, noise, (images, 1, SIZE, SIZE), generator=generator)).to(torch.uint8)
            )
        return ImageClasses(
            name=f"made-up-{seed}",
            class_names=tuple(f"class {number}" for number in range(count)),
            images=tuple(drawn),
            preprocessing=Preprocessing(height=SIZE, width=SIZE),
            rotations=rotations,
        )

    return make


@pytest.fixture
def make_config() -> Callable[..., TrainingConfig]:
    """A run of a few steps."""

    def make(**values: Any) -> TrainingConfig:
        few: dict[str, Any] = {
            "plan": Plan(warm_up=3, search=4, fall=2, joint=3),
            "channels": 4, "image_size": SIZE, "n_way": 3, "train_shots": 2, "meta_batch_size": 2, "inner_steps": 2,
            "inner_batch_size": 4, "pair_classes": 4, "validations": 2, "validation_tasks": 1, "eval_tasks": 2,
        }  # fmt: skip
        return TrainingConfig(**{**few, **values})

    return make
