"""Meta-models and support sets small enough to adapt in a fraction of a second."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metanas.artifact import load_meta, save_meta
from metanas.backbone import build_backbone
from metanas.learner import adapt
from metanas.model import MetaModel
from metanas.network import channels_last
from metanas.optimizer import STEP
from metanas.preprocessing import Preprocessing
from metanas.relaxation import initial_architecture
from metanas.schedule import Schedule
from metanas.space import NO_CELLS, ConvBlocks, EdgeOperation, Genotype, SearchSpace, Space
from metanas.tasks import SupportSet

SIZE = 12

FIXED = Genotype(
    normal=(
        (EdgeOperation(0, "conv_3x3", 0.7), EdgeOperation(1, "conv_3x3", 0.4), EdgeOperation(0, "conv_3x3", 0.2)),
        (EdgeOperation(1, "skip_connect", 1.0), EdgeOperation(2, "dil_conv_5x5", 1.0)),
    ),
    reduction=(
        (EdgeOperation(0, "skip_connect", 1.0), EdgeOperation(1, "max_pool_3x3", 0.5)),
        (EdgeOperation(2, "conv_1x5_5x1", 0.9),),
    ),
)

MakeMeta = Callable[..., MetaModel]
MakeSupport = Callable[..., SupportSet]


@pytest.fixture(scope="session")
def after_file() -> Callable[[MetaModel, SupportSet, Path], MetaModel]:
    """What is read of the file that a meta-model is written to; a task learned from either has the same bits."""

    def read_back(meta: MetaModel, support: SupportSet, folder: Path) -> MetaModel:
        save_meta(folder / "meta.pt", meta)
        loaded = load_meta(folder / "meta.pt")
        one, other = (adapt(each, support).network.state_dict() for each in (loaded, meta))
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in one.items())
        return loaded

    return read_back


@pytest.fixture
def small_space() -> SearchSpace:
    return SearchSpace(channels=4, image_size=SIZE)


def random_weights(space: Space, genotype: Genotype | None, *, seed: int) -> dict[str, Tensor]:
    """Of a new network of that seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build_backbone(space, genotype)
    channels_last(network)
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def preprocessing_of(space: Space) -> Preprocessing:
    """For images of the size that ``space`` takes."""
    channels = space.in_channels
    return Preprocessing(
        channels=channels,
        height=space.image_size,
        width=space.image_size,
        mean=(0.1,) * channels,
        deviation=(0.5,) * channels,
    )


def random_moments(weights: Mapping[str, Tensor], features: int, *, generator: torch.Generator) -> dict[str, Tensor]:
    """As meta-training would leave them, of every parameter in ``weights`` and of the head."""
    shapes = {**weights, "head.weight": torch.zeros(features), "head.bias": torch.zeros(())}
    stored = {name: 1e-3 * torch.rand(value.shape, generator=generator) for name, value in shapes.items()}
    return {**stored, STEP: torch.tensor(500.0)}


@pytest.fixture(scope="session")
def make_meta() -> MakeMeta:
    """A meta-model of random weights and unequal architecture.

    ``sharp``: one operation an edge has all the weight from the start, so annealing changes nothing.
    ``moments``: as meta-training would leave them.
    """

    def make(
        *,
        schedule: Schedule | None = None,
        moments: bool = False,
        sharp: bool = False,
        in_channels: int = 1,
        seed: int = 0,
    ) -> MetaModel:
        space = SearchSpace(
            channels=4, image_size=SIZE, in_channels=in_channels, cells=3, reduction_cells=(1,), nodes=2
        )
        generator = torch.Generator().manual_seed(seed)
        weights = random_weights(space, None, seed=seed)
        architecture = {
            name: 0.3 * torch.randn(value.shape, generator=generator)
            for name, value in initial_architecture(space).items()
        }
        if sharp:
            for value in architecture.values():
                value.scatter_(-1, value.argmax(dim=-1, keepdim=True), 12.0)
        named = {
            **{f"network.{name}": value for name, value in weights.items()},
            **{f"architecture.{name}": value for name, value in architecture.items()},
        }
        return MetaModel(
            space=space,
            weights=weights,
            architecture=architecture,
            head_scale=10.0,
            preprocessing=preprocessing_of(space),
            schedule=schedule or Schedule(architecture_steps=4, weight_steps=3, skip_below=0.0),
            moments=random_moments(named, space.features, generator=generator) if moments else {},
            provenance={"data": "random"},
        )

    return make


@pytest.fixture(scope="session")
def make_fixed_meta() -> MakeMeta:
    """A meta-model of random weights whose architecture is fixed.

    ``kind``: "cells", of a genotype with unequal weights and an operation twice on one edge;
    "affine", the same with affine batch norms; "blocks", plain convolutional blocks.
    """

    def make(
        kind: str, *, schedule: Schedule | None = None, moments: bool = False, in_channels: int = 1, seed: int = 0
    ) -> MetaModel:
        space: Space
        if kind == "blocks":
            space, genotype = ConvBlocks(filters=6, blocks=2, image_size=SIZE, in_channels=in_channels), NO_CELLS
        else:
            space, genotype = (
                SearchSpace(
                    channels=4, image_size=SIZE, in_channels=in_channels, cells=3, reduction_cells=(1,), nodes=2,
                    affine=kind == "affine",
                ),
                FIXED,
            )  # fmt: skip
        weights = random_weights(space, genotype, seed=seed)
        named = {f"network.{name}": value for name, value in weights.items()}
        generator = torch.Generator().manual_seed(seed)
        return MetaModel(
            space=space,
            weights=weights,
            architecture={},
            head_scale=10.0,
            preprocessing=preprocessing_of(space),
            schedule=schedule or Schedule(architecture_steps=4, weight_steps=3),
            moments=random_moments(named, space.features, generator=generator) if moments else {},
            genotype=genotype,
            provenance={"data": "random"},
        )

    return make


@pytest.fixture(scope="session")
def make_support() -> MakeSupport:
    """A task whose classes are a random pattern each, with noise on every image."""

    def make(shots: tuple[int, ...] = (2, 3, 1), *, channels: int = 1, seed: int = 0) -> SupportSet:
        generator = torch.Generator().manual_seed(seed)
        images, labels = [], []
        for label, count in enumerate(shots):
            pattern = 128 * torch.randint(0, 2, (1, channels, SIZE, SIZE), generator=generator)
            noise = torch.randint(0, 100, (count, channels, SIZE, SIZE), generator=generator)
            images.append((pattern + noise).to(torch.uint8))
            labels += [label] * count
        return SupportSet(
            torch.cat(images), torch.tensor(labels), tuple(f"class {label}" for label in range(len(shots)))
        )

    return make
