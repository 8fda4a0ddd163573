"""Statistics of few images: kept of one batch, blended with those of others, carried by a meta-model."""

import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metanas.artifact import META_KIND, meta_from_bytes, meta_to_bytes, pack, unpack
from metanas.errors import CorruptArtifactError, InvalidConfigError
from metanas.learner import adapt
from metanas.model import MetaModel
from metanas.operations import BatchNorm
from metanas.preprocessing import scale
from metanas.statistics import PriorStatistics, measure_prior, measuring, statistics_names
from metanas.steps import operation_weights, start_head


def test_batch_norm_after_measuring_gives_the_measured_batch_the_same_result_in_evaluation() -> None:
    norm = BatchNorm(2)
    x = torch.tensor([[1.0, 10.0], [3.0, 30.0]]).view(2, 2, 1, 1)
    with measuring(norm):
        measured = norm(x)
    assert norm.mean.tolist() == [2.0, 20.0]
    assert norm.variance.tolist() == [1.0, 100.0]
    norm.eval()
    torch.testing.assert_close(norm(x), measured)
    # One image alone: (7 - 2) / 1 and (10 - 20) / 10.
    alone = norm(torch.tensor([7.0, 10.0]).view(1, 2, 1, 1))
    torch.testing.assert_close(alone.flatten(), torch.tensor([5.0, -1.0]), rtol=1e-4, atol=1e-4)


def test_measuring_ends_even_when_the_network_fails() -> None:
    network = nn.Sequential(BatchNorm(3))
    with pytest.raises(RuntimeError), measuring(network):
        network(torch.randn(2, 5, 4, 4))
    assert not network[0].measuring


def test_a_prior_of_some_images_gives_the_statistics_of_those_and_the_batch_together() -> None:
    norm = BatchNorm(3)
    before, batch = 2.0 + 3.0 * torch.randn(6, 3, 4, 4), torch.randn(2, 3, 4, 4)
    with measuring(norm):
        norm(before)
    prior = PriorStatistics(images=6.0, values={".mean": norm.mean.clone(), ".variance": norm.variance.clone()})
    with measuring(norm, prior):
        blended = norm(batch)
    together = torch.cat([before, batch])
    torch.testing.assert_close(norm.mean, together.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(norm.variance, together.var(dim=(0, 2, 3), correction=0))
    assert torch.equal(norm.eval()(batch), blended), "as the same images will be answered later"
    assert norm.prior is None


@pytest.mark.parametrize(
    ("images", "values", "message"),
    [
        (0.0, {}, "more than 0 images, got 0.0"),
        (float("inf"), {}, "more than 0 images"),
        (5, {}, "more than 0 images, got 5"),
        (
            5.0,
            {"stem_norm.variance": torch.tensor([1.0, -1.0])},
            "holds values that are no variance",
        ),
        (5.0, {"stem_norm.mean": torch.tensor([float("nan")])}, "holds values that are no mean"),
    ],
)
def test_what_cannot_be_statistics_is_refused(images: Any, values: Mapping[str, Tensor], message: str) -> None:
    with pytest.raises(InvalidConfigError, match=message):
        PriorStatistics(images=images, values=values)


@pytest.fixture(scope="module")
def with_prior(make_meta: Any) -> MetaModel:
    meta: MetaModel = make_meta()
    network = meta.build_network()
    weights = operation_weights(network, meta.architecture, schedule=meta.schedule, temperature=1.0)
    images = torch.randn(40, meta.preprocessing.channels, meta.preprocessing.height, meta.preprocessing.width)
    return replace(meta, prior=measure_prior(network, weights, images, count_as=10.0))


def test_the_prior_knows_every_norm_of_the_one_shot_network(with_prior: MetaModel) -> None:
    """Also those of operations that are not run at first: they may come back."""
    assert with_prior.prior is not None
    values = with_prior.prior.values
    assert sorted(values) == sorted(statistics_names(with_prior.build_network()))
    assert all((value > 0).all() for name, value in values.items() if name.endswith(".variance"))


def test_a_task_network_is_frozen_at_the_blend_and_its_head_began_with_it(
    with_prior: MetaModel, make_support: Any
) -> None:
    support = make_support()
    images = scale(support.canonical()[0].images, with_prior.preprocessing)
    mine = adapt(with_prior, support).network.network
    alone = adapt(replace(with_prior, prior=None), support).network.network
    prior, share = with_prior.prior, len(images) / (len(images) + 10.0)
    assert prior is not None
    for name in ("stem_norm.mean", "cells.0.first_input.norm.mean"):
        assert not torch.equal(mine.get_buffer(name), alone.get_buffer(name))
    # The stem sees pixels and no other norm: there the blend is to be had by hand, but for the steps of learning.
    start = replace(with_prior, schedule=replace(with_prior.schedule, architecture_steps=0, weight_steps=0))
    stem = adapt(start, support).network.network.get_buffer("stem_norm.mean")
    bare = adapt(replace(start, prior=None), support).network.network.get_buffer("stem_norm.mean")
    torch.testing.assert_close(stem, share * bare + (1 - share) * prior.values["stem_norm.mean"])


def test_the_first_features_are_those_that_the_same_images_have_later(with_prior: MetaModel, make_support: Any) -> None:
    canonical, _ = make_support().canonical()
    images = scale(canonical.images, with_prior.preprocessing)
    network = with_prior.build_network()
    weights = operation_weights(network, with_prior.architecture, schedule=with_prior.schedule, temperature=1.0)
    _, features = start_head(
        network, weights=weights, images=images, labels=canonical.labels, n_way=canonical.n_way, scale=10.0,
        skip_below=0.0, prior=with_prior.prior,
    )  # fmt: skip
    with torch.no_grad():
        later = torch.cat([network.eval()(image[None], weights) for image in images])
    torch.testing.assert_close(features, later, rtol=1e-4, atol=1e-5)


def test_with_a_heavy_prior_a_second_support_set_changes_no_statistics(
    with_prior: MetaModel, make_support: Any
) -> None:
    assert with_prior.prior is not None
    heavy = replace(
        with_prior,
        prior=replace(with_prior.prior, images=1e9),
        schedule=replace(with_prior.schedule, architecture_steps=0, weight_steps=0),
    )
    network = adapt(heavy, make_support()).network.network
    for name in statistics_names(network):
        torch.testing.assert_close(network.get_buffer(name), heavy.prior.values[name], rtol=1e-4, atol=1e-5)


def test_the_prior_survives_the_file_and_adapts_to_the_same_bits(
    with_prior: MetaModel, make_support: Any, after_file: Any, tmp_path: Any
) -> None:
    prior = after_file(with_prior, make_support(), tmp_path).prior
    assert prior is not None
    assert prior.images == 10.0


def test_a_prior_of_another_network_is_refused(with_prior: MetaModel) -> None:
    assert with_prior.prior is not None
    values = dict(with_prior.prior.values)
    odd = values.pop("stem_norm.mean")
    with pytest.raises(InvalidConfigError, match=r"prior statistics do not fit the search space: stem_norm\.mean"):
        replace(with_prior, prior=PriorStatistics(images=5.0, values=values))
    with pytest.raises(InvalidConfigError, match=r"prior statistics: stem_norm\.mean is"):
        replace(with_prior, prior=PriorStatistics(images=5.0, values={**values, "stem_norm.mean": odd[:-1]}))


def test_a_file_with_half_a_prior_is_incomplete(with_prior: MetaModel) -> None:
    metadata, tensors = unpack(meta_to_bytes(with_prior), META_KIND, name="x")
    for odd in (None, -1.0, "ten"):
        with pytest.raises(CorruptArtifactError, match="prior statistics must count"):
            meta_from_bytes(pack(META_KIND, {**metadata, "prior_images": odd}, tensors))
    less = {name: value for name, value in tensors.items() if name != "prior/stem_norm.variance"}
    with pytest.raises(CorruptArtifactError, match=r"stem_norm\.variance"):
        meta_from_bytes(pack(META_KIND, metadata, less))


def test_a_file_of_version_1_has_none(with_prior: MetaModel) -> None:
    content = torch.load(io.BytesIO(meta_to_bytes(replace(with_prior, prior=None))), weights_only=True)
    buffer = io.BytesIO()
    torch.save({**content, "version": 1}, buffer)
    assert meta_from_bytes(buffer.getvalue()).prior is None
