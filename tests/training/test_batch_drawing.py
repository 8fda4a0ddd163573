"""Batches of the prototype and the supervised loss: the same whether they are drawn ahead or not."""

from typing import Any

import pytest
import torch

from metanas_training.batch_drawing import BatchSource
from metanas_training.config import TrainingConfig


@pytest.mark.parametrize("loss", ["prototype", "supervised"])
def test_a_batch_that_was_drawn_ahead_is_the_one_that_was_not(make_classes: Any, loss: Any) -> None:
    classes = make_classes(rotations=4)
    on_cpu = BatchSource(TrainingConfig(device="cpu", warm_up=loss, pair_classes=4), classes)
    ahead = BatchSource(TrainingConfig(device="cuda", warm_up=loss, pair_classes=4), classes)
    places = [(0, 1, step, batch) for step in range(3) for batch in range(2)]
    on_cpu.start(places)
    for first in range(0, 6, 2):
        taken = [ahead.take(place) for place in places[first : first + 2]]
        ahead.start(places[first + 2 : first + 4])
        for place, batch in zip(places[first : first + 2], taken, strict=True):
            plain = on_cpu.take(place)
            assert torch.equal(batch.images, plain.images)
            assert (batch.labels is None) == (loss == "prototype")
            if batch.labels is not None and plain.labels is not None:
                assert torch.equal(batch.labels, plain.labels)
            # What is random in learning the batch goes on where drawing it has ended.
            assert torch.equal(torch.rand(3, generator=batch.generator), torch.rand(3, generator=plain.generator))


def test_what_was_drawn_ahead_for_nothing_is_let_go(make_classes: Any) -> None:
    batches = BatchSource(TrainingConfig(device="cuda", warm_up="prototype", pair_classes=4), make_classes())
    batches.start([(0, 0, 1, 0)])
    batches.start([(0, 0, 2, 0)])
    assert list(batches._ahead) == [(0, 0, 2, 0)]
