"""Small task models: adapted ones, and hand-made ones that hold every operation."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from metanas.artifact import save_task
from metanas.learner import adapt
from metanas.model import AdaptationReport, MetaModel, Schedule, TaskModel
from metanas.network import Network, one_shot_plan
from metanas.preprocessing import Preprocessing, scale
from metanas.relaxation import initial_architecture
from metanas.space import DEFAULT_OPERATIONS, CellGenotype, EdgeOperation, Genotype, SearchSpace
from metanas.task_network import TaskNetwork
from metanas.tasks import SupportSet

BuildTask = Callable[..., TaskModel]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_support(space: SearchSpace, n_way: int, *, shots: int, seed: int) -> SupportSet:
    generator = torch.Generator().manual_seed(seed)
    size = (n_way * shots, space.in_channels, space.image_size, space.image_size)
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    return SupportSet(images, torch.arange(n_way * shots) % n_way, tuple(f"class {label}" for label in range(n_way)))


def cell_of(*nodes: list[tuple[int, str]]) -> CellGenotype:
    """Nodes as lists of (source, operation); each row gets a weight of its own."""
    weights = itertools.cycle((0.9, 0.35, 0.6, 0.15, 0.75))
    return tuple(tuple(EdgeOperation(source, name, next(weights)) for source, name in node) for node in nodes)


def every_operation() -> CellGenotype:
    """All operations on both inputs and on an inner node; poolings and skips that edges share."""
    pooled = [(0, "avg_pool_3x3"), (0, "max_pool_3x3"), (1, "skip_connect")]
    return cell_of(
        [(0, name) for name in DEFAULT_OPERATIONS] + [(1, "max_pool_3x3")],
        [(1, name) for name in DEFAULT_OPERATIONS] + [(0, "skip_connect")],
        [(2, name) for name in DEFAULT_OPERATIONS] + pooled,
    )


def two_a_node() -> CellGenotype:
    """What pruning usually leaves: two operations a node."""
    return cell_of(
        [(0, "sep_conv_3x3"), (1, "dil_conv_3x3")],
        [(1, "conv_1x5_5x1"), (2, "conv_3x3")],
        [(0, "skip_connect"), (2, "max_pool_3x3")],
    )


@pytest.fixture
def cells() -> dict[str, CellGenotype]:
    return {"every_operation": every_operation(), "two_a_node": two_a_node()}


@pytest.fixture
def build_cell() -> Callable[..., CellGenotype]:
    return cell_of


@pytest.fixture
def build_task() -> BuildTask:
    """A hand-made task: random weights, a given genotype, statistics frozen on its support set."""

    def build(
        normal: CellGenotype | None = None,
        reduction: CellGenotype | None = None,
        *,
        channels: int = 6,
        in_channels: int = 1,
        image_size: int = 14,
        n_way: int = 5,
        shots: int = 2,
        seed: int = 0,
        cells: int = 4,
    ) -> TaskModel:
        space = SearchSpace(
            channels=channels,
            in_channels=in_channels,
            image_size=image_size,
            cells=cells,
            reduction_cells=tuple(range(1, cells, 2)),
        )
        genotype = Genotype(normal=normal or two_a_node(), reduction=reduction or normal or two_a_node())
        preprocessing = Preprocessing(
            channels=in_channels,
            height=image_size,
            width=image_size,
            invert=True,
            mean=(0.4,) * in_channels,
            deviation=(0.3,) * in_channels,
        )
        support = random_support(space, n_way, shots=shots, seed=seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = TaskNetwork(space, genotype, n_way)
            torch.nn.init.normal_(network.head.weight, std=2.0)
            torch.nn.init.normal_(network.head.bias)
            torch.nn.init.uniform_(network.network.stem_norm.weight, 0.5, 1.5)
            torch.nn.init.normal_(network.network.stem_norm.bias)
        network.requires_grad_(False)
        network.freeze_statistics(scale(support.images, preprocessing))
        return TaskModel(
            network=network,
            class_names=support.class_names,
            preprocessing=preprocessing,
            support=support,
            report=AdaptationReport(0, 0, seed, 0.0, sum(p.numel() for p in network.parameters()), 0),
            provenance={"made_by": "tests", "seed": seed},
        )

    return build


@pytest.fixture(scope="session")
def adapted_task() -> TaskModel:
    """A task that was really learned, in a few steps."""
    space = SearchSpace(channels=4, image_size=21)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Network(space, one_shot_plan(space))
    meta = MetaModel(
        space=space,
        weights={name: value.detach() for name, value in network.named_parameters()},
        architecture=initial_architecture(space),
        head_scale=10.0,
        preprocessing=Preprocessing(height=21, width=21, invert=True),
        schedule=Schedule(architecture_steps=3, weight_steps=3, architecture_learning_rate=0.5),
    )
    return adapt(meta, random_support(space, 3, shots=4, seed=1))


@pytest.fixture
def task_path(tmp_path: Path, build_task: BuildTask) -> Path:
    """A ``task_model.pt`` in a folder of its own."""
    folder = tmp_path / "task"
    folder.mkdir()
    save_task(folder / "task_model.pt", build_task())
    return folder / "task_model.pt"
