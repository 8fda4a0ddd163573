"""Meta-models and support sets small enough to adapt in a fraction of a second."""

from collections.abc import Callable

import pytest
import torch

from metanas.model import MetaModel, Schedule
from metanas.network import Network, channels_last, one_shot_plan
from metanas.optimizer import STEP
from metanas.preprocessing import Preprocessing
from metanas.relaxation import initial_architecture
from metanas.space import SearchSpace
from metanas.tasks import SupportSet

SIZE = 12

MakeMeta = Callable[..., MetaModel]
MakeSupport = Callable[..., SupportSet]


@pytest.fixture
def small_space() -> SearchSpace:
    return SearchSpace(channels=4, image_size=SIZE)


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
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = Network(space, one_shot_plan(space))
        channels_last(network)
        weights = {name: value.detach().clone() for name, value in network.named_parameters()}
        architecture = {
            name: 0.3 * torch.randn(value.shape, generator=generator)
            for name, value in initial_architecture(space).items()
        }
        if sharp:
            for value in architecture.values():
                value.scatter_(-1, value.argmax(dim=-1, keepdim=True), 12.0)
        stored = {}
        if moments:
            named = {
                **{f"network.{name}": value for name, value in weights.items()},
                **{f"architecture.{name}": value for name, value in architecture.items()},
                "head.weight": torch.zeros(space.features),
                "head.bias": torch.zeros(()),
            }
            stored = {name: 1e-3 * torch.rand(value.shape, generator=generator) for name, value in named.items()}
            stored[STEP] = torch.tensor(500.0)
        return MetaModel(
            space=space,
            weights=weights,
            architecture=architecture,
            head_scale=10.0,
            preprocessing=Preprocessing(
                channels=in_channels,
                height=SIZE,
                width=SIZE,
                mean=(0.1,) * in_channels,
                deviation=(0.5,) * in_channels,
            ),
            schedule=schedule or Schedule(architecture_steps=4, weight_steps=3, skip_below=0.0),
            moments=stored,
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
