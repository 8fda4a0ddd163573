"""What adaptation shows on its way: every step once, with weights that mean something."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from metanas.learner import adapt
from metanas.model import MetaModel, TaskModel
from metanas.network import Network
from metanas.relaxation import STRATEGIES, Strategy, relax
from metanas.schedule import Schedule
from metanas.snapshots import Snapshot
from metanas.tasks import SupportSet


def _watched(
    meta: MetaModel, support: SupportSet, *, every: int = 1, **settings: Any
) -> tuple[list[dict[str, Any]], TaskModel]:
    """What each snapshot says, copied at once: the network goes on learning; scores of one in ``every``."""
    seen: list[dict[str, Any]] = []

    def look(snapshot: Snapshot) -> None:
        scores = None
        if snapshot.step % every == 0:
            with torch.no_grad():
                scores = snapshot.head(snapshot.network(snapshot.images, snapshot.weights))
        seen.append(
            {
                "step": snapshot.step,
                "temperature": snapshot.temperature,
                "training": snapshot.network.training,
                "genotype": snapshot.network.genotype,
                "scores": scores,
                "weights": None if snapshot.weights is None else {k: v.clone() for k, v in snapshot.weights.items()},
                "mixtures": snapshot.mixtures,
                "order": snapshot.order,
                "images": snapshot.images,
            }
        )

    return seen, adapt(meta, support, on_snapshot=look, **settings)


def test_a_search_of_50_and_50_steps_is_shown_from_0_to_100(make_meta: Any, make_support: Any) -> None:
    meta: MetaModel = make_meta(schedule=Schedule())
    seen, _ = _watched(meta, make_support(), every=10)
    assert [one["step"] for one in seen] == list(range(101))
    assert all(one["training"] for one in seen)
    temperatures = [one["temperature"] for one in seen]
    assert temperatures[:50] == pytest.approx([1.0 - 0.95 * step / 49 for step in range(50)])
    assert temperatures[50:] == [0.05] * 51
    assert all(torch.isfinite(one["scores"]).all() for one in seen[::10])


@pytest.mark.parametrize("kind", ["cells", "blocks"])
def test_a_fixed_architecture_is_shown_from_0_to_100_without_weights(
    make_fixed_meta: Any, make_support: Any, kind: str
) -> None:
    meta: MetaModel = make_fixed_meta(kind, schedule=Schedule())
    seen, _ = _watched(meta, make_support(), every=10)
    assert [one["step"] for one in seen] == list(range(101))
    assert all(one["weights"] is None and one["mixtures"] is None for one in seen)
    assert {one["temperature"] for one in seen} == {0.05}
    assert all(one["genotype"] == meta.genotype for one in seen)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("relaxation", ["softmax", "gumbel", "gumbel_hard"])
def test_the_weights_shown_are_those_of_the_architecture_without_noise(
    make_meta: Any, make_support: Any, strategy: Strategy, relaxation: str
) -> None:
    schedule = Schedule(architecture_steps=4, weight_steps=2, strategy=strategy, relaxation=relaxation, skip_below=0.0)
    meta: MetaModel = make_meta(schedule=schedule)
    seen, task = _watched(meta, make_support())
    for one in seen[:4]:
        for cell_type, weights in one["weights"].items():
            mixture = one["mixtures"][cell_type]
            assert torch.equal(weights, mixture.rows)
            assert not weights.requires_grad
            assert weights.min() >= 0
            torch.testing.assert_close(mixture.operations.sum(dim=1), torch.ones(5))
            nodes = [mixture.inputs[meta.space.node_edges(node)].sum().item() for node in range(2)]
            assert nodes == pytest.approx([2.0, 2.0 if strategy == "operations_and_inputs" else 3.0])
    first = relax(meta.architecture, meta.space, temperature=1.0, strategy=strategy, relaxation=relaxation)
    for cell_type, mixture in first.items():
        assert torch.equal(seen[0]["weights"][cell_type], mixture.rows)
    assert all(one["weights"] is None and one["genotype"] == task.genotype for one in seen[4:])


def test_the_last_snapshot_scores_as_the_task_model_does(make_meta: Any, make_support: Any) -> None:
    support = make_support((3, 2, 2))
    seen, task = _watched(make_meta(), support)
    order = list(seen[-1]["order"])
    canonical = support.canonical()[0].images
    torch.testing.assert_close(seen[-1]["scores"], task.logits(canonical)[:, order], rtol=1e-4, atol=1e-4)


def test_looking_changes_nothing(make_meta: Any, make_support: Any) -> None:
    meta = make_meta(schedule=Schedule(architecture_steps=4, weight_steps=3, batch_size=4, relaxation="gumbel"))
    support = make_support((3, 4, 2))
    _, watched = _watched(meta, support)
    alone = adapt(meta, support)
    assert watched.genotype == alone.genotype
    found = watched.network.state_dict()
    assert all(torch.equal(found[name], value) for name, value in alone.network.state_dict().items())


def test_without_any_step_there_is_one_snapshot_of_the_start(make_fixed_meta: Any, make_support: Any) -> None:
    schedule = Schedule(architecture_steps=0, weight_steps=0)
    seen, _ = _watched(make_fixed_meta("cells"), make_support(), schedule=schedule)
    assert [one["step"] for one in seen] == [0]


def test_the_one_shot_network_is_shown_until_it_is_pruned(make_meta: Any, make_support: Any) -> None:
    kinds: list[tuple[int, bool]] = []
    meta = replace(make_meta(), schedule=Schedule(architecture_steps=2, weight_steps=1))

    def look(snapshot: Snapshot) -> None:
        assert isinstance(snapshot.network, Network)
        kinds.append((snapshot.step, snapshot.network.genotype is None))

    adapt(meta, make_support(), on_snapshot=look)
    assert kinds == [(0, True), (1, True), (2, False), (3, False)]
