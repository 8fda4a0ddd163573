"""Small task models: adapted ones, and hand-made ones that hold every operation."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from metanas.artifact import save_task
from metanas.backbone import build_backbone
from metanas.genotypes import named_genotype
from metanas.learner import adapt
from metanas.model import AdaptationReport, MetaModel, TaskModel
from metanas.network import Network
from metanas.operations import BatchNorm
from metanas.preprocessing import Preprocessing, scale
from metanas.relaxation import initial_architecture
from metanas.schedule import Schedule
from metanas.space import (
    DEFAULT_OPERATIONS,
    NO_CELLS,
    CellGenotype,
    ConvBlocks,
    EdgeOperation,
    Genotype,
    SearchSpace,
    Space,
)
from metanas.task_network import TaskNetwork
from metanas.tasks import SupportSet

BuildTask = Callable[..., TaskModel]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_support(space: Space, n_way: int, *, shots: int, seed: int) -> SupportSet:
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


def task_of(space: Space, genotype: Genotype, *, n_way: int = 5, shots: int = 2, seed: int = 0) -> TaskModel:
    """A hand-made task: random weights, statistics frozen on its support set."""
    preprocessing = Preprocessing(
        channels=space.in_channels,
        height=space.image_size,
        width=space.image_size,
        invert=True,
        mean=(0.4,) * space.in_channels,
        deviation=(0.3,) * space.in_channels,
    )
    support = random_support(space, n_way, shots=shots, seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = TaskNetwork(space, genotype, n_way)
        torch.nn.init.normal_(network.head.weight, std=2.0)
        torch.nn.init.normal_(network.head.bias)
        for norm in network.modules():
            if isinstance(norm, BatchNorm) and norm.weight is not None:
                torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
                torch.nn.init.normal_(norm.bias)
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


@pytest.fixture
def build_task() -> BuildTask:
    """``task_of`` a given genotype, with sizes one by one."""

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
        affine: bool = False,
    ) -> TaskModel:
        genotype = Genotype(normal=normal or two_a_node(), reduction=reduction or normal or two_a_node())
        space = SearchSpace(
            channels=channels,
            in_channels=in_channels,
            image_size=image_size,
            cells=cells,
            reduction_cells=tuple(range(1, cells, 2)),
            nodes=len(genotype.normal),
            affine=affine,
        )
        return task_of(space, genotype, n_way=n_way, shots=shots, seed=seed)

    return build


@pytest.fixture
def build_blocks() -> BuildTask:
    """``task_of`` plain convolutional blocks."""

    def build(*, n_way: int = 5, seed: int = 0, **sizes: int) -> TaskModel:
        space = ConvBlocks(**{"filters": 6, "blocks": 3, "image_size": 21, **sizes})
        return task_of(space, NO_CELLS, n_way=n_way, seed=seed)

    return build


@pytest.fixture(scope="session")
def adapted_fixed_tasks() -> dict[str, TaskModel]:
    """Tasks of fixed architectures that were really learned, in a few steps."""
    tasks = {}
    spaces: dict[str, tuple[Space, Genotype]] = {
        "blocks": (ConvBlocks(filters=8, blocks=3, image_size=21), NO_CELLS),
        "autometa": (SearchSpace(channels=4, image_size=21, nodes=5, affine=True), named_genotype("autometa")),
    }
    for name, (space, genotype) in spaces.items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = build_backbone(space, genotype)
        meta = MetaModel(
            space=space,
            weights={key: value.detach() for key, value in network.named_parameters()},
            architecture={},
            genotype=genotype,
            head_scale=10.0,
            preprocessing=Preprocessing(height=21, width=21, invert=True),
            schedule=Schedule(architecture_steps=3, weight_steps=3, learning_rate=0.01),
        )
        tasks[name] = adapt(meta, random_support(space, 3, shots=4, seed=1))
    return tasks


@pytest.fixture(scope="session")
def adapted_task() -> TaskModel:
    """A task that was really learned, in a few steps."""
    space = SearchSpace(channels=4, image_size=21)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Network(space)
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
