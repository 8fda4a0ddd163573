"""Classes of made-up pictures, small enough to meta-train on in seconds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metanas.backbone import build_backbone
from metanas.genotypes import GENOTYPES
from metanas.model import MetaModel
from metanas.preprocessing import Preprocessing
from metanas.relaxation import initial_architecture
from metanas.schedule import Schedule
from metanas.space import NO_CELLS, ConvBlocks, Genotype, SearchSpace, Space
from metanas_training.config import NetworkConfig, Plan, TrainingConfig
from metanas_training.datasets import ImageClasses
from metanas_training.state import State, new_state

SIZE = 8

FIXED = GENOTYPES["metanas_omniglot"]
SPACES: dict[str, tuple[Space, Genotype | None]] = {
    "searched": (SearchSpace(channels=4, image_size=SIZE, cells=2, reduction_cells=(1,), nodes=2), None),
    "fixed": (SearchSpace(channels=4, image_size=SIZE, cells=2, reduction_cells=(1,)), FIXED),
    "conv_blocks": (ConvBlocks(filters=8, blocks=2, image_size=SIZE), NO_CELLS),
}

MakeClasses = Callable[..., ImageClasses]
MakeMeta = Callable[..., MetaModel]


@pytest.fixture
def small_space() -> SearchSpace:
    return SearchSpace(channels=4, image_size=SIZE)


@pytest.fixture
def make_meta() -> MakeMeta:
    """A meta-model of random weights and, where tasks search, an unequal architecture."""

    def make(kind: str = "searched", *, architecture_steps: int = 4, weight_steps: int = 4) -> MetaModel:
        space, genotype = SPACES[kind]
        torch.manual_seed(0)
        weights = {name: value.detach().clone() for name, value in build_backbone(space, genotype).named_parameters()}
        architecture = {}
        if genotype is None:
            assert isinstance(space, SearchSpace)
            architecture = {name: 0.1 * torch.randn(value.shape) for name, value in initial_architecture(space).items()}
        return MetaModel(
            space=space,
            genotype=genotype,
            weights=weights,
            architecture=architecture,
            head_scale=10.0,
            preprocessing=Preprocessing(height=SIZE, width=SIZE),
            schedule=Schedule(architecture_steps=architecture_steps, weight_steps=weight_steps),
        )

    return make


@pytest.fixture
def make_classes() -> MakeClasses:
    """Classes that are a random pattern each; every image has noise of its own."""

    def make(
        count: int = 8, images: int = 6, *, seed: int = 0, rotations: int = 1, noise: int = 90, size: int = SIZE
    ) -> ImageClasses:
        generator = torch.Generator().manual_seed(seed)
        drawn = []
        for _ in range(count):
            pattern = 160 * torch.randint(0, 2, (1, 1, size, size), generator=generator)
            drawn.append(
                (pattern + torch.randint(0, noise, (images, 1, size, size), generator=generator)).to(torch.uint8)
            )
        return ImageClasses(
            name=f"made-up-{seed}",
            class_names=tuple(f"class {number}" for number in range(count)),
            images=tuple(drawn),
            preprocessing=Preprocessing(height=size, width=size),
            rotations=rotations,
        )

    return make


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Eight class folders of four pictures."""
    rng = np.random.default_rng(0)
    for number in range(8):
        folder = tmp_path / "pictures" / f"class{number}"
        folder.mkdir(parents=True)
        pattern = rng.integers(0, 2, (8, 8, 1)) * 150
        for image in range(4):
            pixels = (pattern + rng.integers(0, 90, (8, 8, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{image}.png")
    return tmp_path / "pictures"


@pytest.fixture
def make_config() -> Callable[..., TrainingConfig]:
    """A run of a few steps."""

    def make(**values: Any) -> TrainingConfig:
        few: dict[str, Any] = {
            "plan": Plan(warm_up=3, search=4, fall=2, joint=3),
            "network": NetworkConfig(channels=4, cells=2, reduction_cells=(1,)), "image_size": SIZE, "n_way": 3,
            "train_shots": 2, "meta_batch_size": 2, "inner_steps": 2, "task": Schedule(batch_size=4), "pair_classes": 4,
            "validations": 2, "validation_tasks": 1, "eval_tasks": 2, "device": "cpu",
        }  # fmt: skip
        return TrainingConfig(**{**few, **values})

    return make


@pytest.fixture
def make_state() -> Callable[[TrainingConfig], State]:
    """The start of a run on images of the small size; its supervised warm-up tells 8 classes apart."""

    def make(config: TrainingConfig) -> State:
        return new_state(
            config,
            space=config.network.space(Preprocessing(height=SIZE, width=SIZE)),
            genotype=config.network.fixed_genotype(),
            classes=8 if config.warm_up == "supervised" else None,
        )

    return make
