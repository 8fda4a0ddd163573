"""The variation of features within classes: the bound by hand and by sampling, what it does to a task, its file."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from metanas.artifact import (
    META_KIND,
    load_meta,
    meta_from_bytes,
    meta_to_bytes,
    pack,
    task_from_bytes,
    task_to_bytes,
    unpack,
)
from metanas.errors import CorruptArtifactError, InvalidConfigError
from metanas.learner import adapt
from metanas.model import MetaModel
from metanas.schedule import Schedule
from metanas.tasks import SupportSet
from metanas.variation import Variation, within_class

BUNDLED = Path(__file__).resolve().parents[2] / "serving" / "metanas_serving" / "models" / "omniglot.pt"
MakeMeta = Callable[..., MetaModel]
PLAIN = Schedule(architecture_steps=4, weight_steps=4, optimizer="sgd", learning_rate=0.01)


def variation_of(size: int, *, strength: float = 4.0, softening: float = 3.0, head_rate: float = 1.0) -> Variation:
    factor = torch.randn(size, size, generator=torch.Generator().manual_seed(size)) / size
    return Variation(factor @ factor.T, strength=strength, softening=softening, head_rate=head_rate)


@pytest.fixture
def meta(make_meta: MakeMeta) -> MetaModel:
    plain = replace(make_meta(), schedule=PLAIN, moments={})
    return replace(plain, variation=variation_of(plain.space.features))


def test_covariance_within_classes_by_hand() -> None:
    # Class 7: (1,0) and (0,1), each 1/2 from their mean (1/2, 1/2). Class 9: twice (0,-1), no deviation.
    features = torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, -1.0], [0.0, -5.0]])
    products, degrees = within_class(features, torch.tensor([7, 7, 9, 9]))
    assert products.tolist() == [[0.5, -0.5], [-0.5, 0.5]]
    assert degrees == 2


def test_hardened_logits_by_hand() -> None:
    variation = Variation(torch.diag(torch.tensor([0.5, 2.0])), strength=3.0, softening=2.0, head_rate=1.0)
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    shots = torch.tensor([1.0, 1.0, 0.5])
    hard = variation.harden(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), torch.tensor([0, 2]), rows, shots)
    # Rows apart by (1,-1): 2.5; (0,1): 2; (1,0): 0.5. Of the class of one shot three halves of that are added, of the
    # one of two shots three quarters; then all is halved.
    assert hard.tolist() == [[0.5, (2 + 3.75) / 2, (3 + 3) / 2], [(4 + 1.5) / 2, (5 + 0.375) / 2, 3.0]]


def test_the_loss_bounds_the_expected_loss_of_varied_features() -> None:
    generator = torch.Generator().manual_seed(1)
    features, rows = torch.randn(5, 6, generator=generator), torch.randn(3, 6, generator=generator)
    labels, one = torch.tensor([0, 1, 2, 0, 1]), variation_of(6, strength=1.5, softening=1.0)
    bound = cross_entropy(one.harden(features @ rows.T, labels, rows, torch.ones(3)), labels)
    factor = torch.linalg.cholesky(1.5 * one.covariance + 1e-6 * torch.eye(6))
    noise = torch.randn(20_000, 5, 6, generator=generator) @ factor.T
    sampled = cross_entropy(((features + noise) @ rows.T).flatten(0, 1), labels.repeat(20_000))
    plain = cross_entropy(features @ rows.T, labels)
    assert plain < sampled <= bound


def test_steps_move_the_head_of_a_task_that_was_right_from_the_start(meta: MetaModel, make_support: Any) -> None:
    support = make_support((1, 1, 1))
    sure = replace(meta, head_scale=200.0)  # so the plain loss is all but 0
    start = replace(sure, schedule=replace(PLAIN, architecture_steps=0, weight_steps=0))
    at_start = adapt(start, support).network.head.weight
    alone = adapt(replace(sure, variation=None), support).network.head.weight
    moved = adapt(sure, support).network.head.weight
    assert (moved - at_start).norm() > 20 * (alone - at_start).norm()


def test_the_head_turns_away_from_where_features_vary(meta: MetaModel, make_support: Any) -> None:
    support, size = make_support((1, 1, 1)), meta.space.features
    along = torch.zeros(size)
    along[::2] = 1.0

    def share(rate: float) -> float:
        """Of the length of differences of the rows, along the half of the features that vary."""
        varied = Variation(torch.diag(along), strength=0.05, softening=3.0, head_rate=rate)
        rows = adapt(replace(meta, variation=varied), support).network.head.weight
        apart = torch.stack([rows[0] - rows[1], rows[1] - rows[2], rows[2] - rows[0]])
        return float((apart * along).norm() / apart.norm())

    assert share(3.0) < share(0.0) - 0.01


def test_the_heads_rate_is_the_variations_even_where_rates_were_learned(meta: MetaModel, make_support: Any) -> None:
    support = make_support((1, 1, 1))
    assert meta.variation is not None
    still = replace(meta, variation=replace(meta.variation, head_rate=0.0))
    names = [*("network." + name for name in meta.weights), "head.weight", "head.bias"]
    names += ["architecture." + name for name in meta.architecture]
    learned = replace(still, step_rates={name: torch.full((8,), 0.01) for name in names})
    start = replace(still, schedule=replace(PLAIN, architecture_steps=0, weight_steps=0))
    for one in (still, learned):
        assert torch.equal(adapt(one, support).network.head.weight, adapt(start, support).network.head.weight)
        moved = adapt(one, support).network.network.state_dict()["stem.weight"]
        assert not torch.equal(moved, meta.weights["stem.weight"])


def test_variation_survives_the_file_and_adapts_to_the_same_bits(
    meta: MetaModel, make_support: Any, after_file: Any, tmp_path: Path
) -> None:
    variation = after_file(meta, make_support(), tmp_path).variation
    assert variation is not None
    assert variation.numbers() == {"strength": 4.0, "softening": 3.0, "head_rate": 1.0}


def test_a_file_with_half_a_variation_is_incomplete(meta: MetaModel) -> None:
    metadata, tensors = unpack(meta_to_bytes(meta), META_KIND, name="x")
    less = {name: value for name, value in tensors.items() if name != "variation/covariance"}
    for odd in (
        pack(META_KIND, metadata, less),
        pack(META_KIND, {**metadata, "variation": None}, tensors),
        pack(META_KIND, {**metadata, "variation": {"strength": 1.0}}, tensors),
    ):
        with pytest.raises(CorruptArtifactError, match="incomplete"):
            meta_from_bytes(odd)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"covariance": torch.eye(3)[:2]}, r"finite square matrix, got \(2, 3\)"),
        ({"covariance": torch.full((2, 2), float("nan"))}, "finite square matrix"),
        ({"covariance": torch.tensor([[1.0, 0.5], [0.0, 1.0]])}, "symmetric"),
        ({"covariance": -torch.eye(2)}, "no negative variance"),
        ({"strength": -1.0}, "strength must be at least 0"),
        ({"softening": 0.5}, "softening must be at least 1"),
        ({"head_rate": float("inf")}, "head_rate must be at least 0 and finite"),
    ],
)
def test_what_is_no_variation_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfigError, match=message):
        replace(variation_of(2), **change)


def test_a_variation_of_other_features_or_for_adam_is_refused(meta: MetaModel) -> None:
    with pytest.raises(InvalidConfigError, match="variation: covariance is"):
        replace(meta, variation=variation_of(meta.space.features + 1))
    with pytest.raises(InvalidConfigError, match="variation needs plain steps"):
        replace(meta, schedule=replace(PLAIN, optimizer="adam"))


def test_the_rate_of_the_head_falls_linearly_towards_0_by_hand() -> None:
    assert variation_of(2, softening=2.0, head_rate=6.0).head_rates(steps=4).tolist() == [12.0, 9.0, 6.0, 3.0]
    assert variation_of(2, softening=2.0, head_rate=6.0).head_rates(steps=0).tolist() == [12.0]


def _strokes(count: int) -> SupportSet:
    """A drawing each of so many characters, as pixels of prepared drawings are: bright on dark."""
    images = torch.zeros(count, 1, 28, 28, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(3)
    for image in images:
        for row, column in torch.randint(5, 22, (3, 2), generator=generator).tolist():
            image[0, row, 4:24] = 255
            image[0, 4:24, column] = 255
    return SupportSet(images, torch.arange(count), tuple(f"character {number}" for number in range(count)))


def test_pictures_unlike_those_of_meta_training_are_learned_without_its_variation() -> None:
    meta = load_meta(BUNDLED)
    assert meta.variation is not None
    few = replace(meta.schedule, architecture_steps=2, weight_steps=2)
    drawings = _strokes(5)
    others = replace(drawings, images=255 - drawings.images)
    assert not adapt(meta, drawings, schedule=few).report.is_unlike_training
    found, expected = adapt(meta, others, schedule=few), adapt(replace(meta, variation=None), others, schedule=few)
    assert found.report.is_unlike_training
    assert not expected.report.is_unlike_training
    assert torch.equal(found.network.head.weight, expected.network.head.weight)
    assert task_from_bytes(task_to_bytes(found), name="file").report.is_unlike_training


def test_unit_length_is_what_counts() -> None:
    features, labels = torch.randn(6, 4), torch.tensor([0, 0, 0, 1, 1, 1])
    products, _ = within_class(features, labels)
    torch.testing.assert_close(products, within_class(normalize(features, dim=1) * 7, labels)[0], rtol=1e-5, atol=1e-6)
