"""Networks that together hold every layer a task of a meta-model can end in.

    architectures   meta-model                   ->  the one it prefers, then some that cover every edge
    example_task    meta-model, genotype, ways   ->  a task model of that shape, with the meta-model's weights

What a network of the search space is built of is (edge, operation) pairs, and their sizes hang on the
edge only. As many architectures as there are operations, each with all edges and the operations moved
on by one, hold all pairs. Statistics and answers of an example mean nothing; its shapes are right.
"""

import torch

from metanas.head import Head
from metanas.model import AdaptationReport, MetaModel, TaskModel
from metanas.preprocessing import scale
from metanas.pruning import prune
from metanas.relaxation import relax
from metanas.space import CellGenotype, EdgeOperation, Genotype, SearchSpace
from metanas.task_network import extract
from metanas.tasks import SupportSet


def architectures(meta: MetaModel) -> list[Genotype]:
    """The architectures to warm for; one alone where the meta-model's is fixed."""
    space = meta.space
    if meta.genotype is not None or not isinstance(space, SearchSpace):
        assert meta.genotype is not None, "only a SearchSpace is searched"
        return [meta.genotype]
    schedule = meta.schedule
    mixtures = relax(
        meta.architecture,
        space,
        temperature=schedule.temperature_end,
        strategy=schedule.strategy,
        relaxation=schedule.relaxation,
    )
    preferred = prune(mixtures, space, strategy=schedule.strategy, threshold=schedule.threshold)
    return [preferred, *(Genotype(cell, cell) for cell in _covering(space))]


def _covering(space: SearchSpace) -> list[CellGenotype]:
    count = len(space.operations)
    cells = []
    for shift in range(count):
        names = [space.operations[(index + shift) % count] for index in range(len(space.edges))]
        rows = [EdgeOperation(source, name, 0.5) for (_, source), name in zip(space.edges, names, strict=True)]
        cells.append(tuple(tuple(rows[space.node_edges(node)]) for node in range(space.nodes)))
    return cells


def example_task(meta: MetaModel, genotype: Genotype, *, n_way: int) -> TaskModel:
    """A task model of this architecture that was not learned: the meta-weights, and statistics of noise."""
    generator = torch.Generator().manual_seed(0)
    size = (n_way, meta.space.in_channels, meta.space.image_size, meta.space.image_size)
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    names = tuple(f"class {label}" for label in range(n_way))
    head = Head(meta.space.features, n_way)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator))
    network = extract(meta.build_network(), head, genotype).requires_grad_(False)
    network.freeze_statistics(scale(images, meta.preprocessing))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return TaskModel(
        network=network,
        class_names=names,
        preprocessing=meta.preprocessing,
        support=SupportSet(images, torch.arange(n_way), names),
        report=AdaptationReport(0, 0, 0, 0.0, parameters, parameters),
        provenance={"made_by": "metanas_export.covering"},
    )
