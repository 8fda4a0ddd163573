"""What an exported file says about itself."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from metanas.preprocessing import Preprocessing, prepare, scale
from metanas.space import Genotype
from metanas_export import build_onnx, card, onnx_bytes


def test_metadata_comes_back_as_it_was(build_task) -> None:
    task = build_task(in_channels=3)
    model = build_onnx(task)
    found = card.read(model)
    assert found["class_names"] == list(task.class_names)
    assert Preprocessing.from_dict(found["preprocessing"]) == task.preprocessing
    assert Genotype.from_dict(found["genotype"]) == task.genotype
    assert found["provenance"] == {"made_by": "tests", "seed": 0}
    assert (found["precision"], found["format_version"], found["temperature"]) == ("fp32", 1, 1.0)
    assert found["metanas_version"]
    assert found["licence"] is None
    assert all(
        entry.key.startswith("metanas.") and json.loads(entry.value) is not ... for entry in model.metadata_props
    )


def test_the_weights_hash_follows_the_weights_and_nothing_else(build_task) -> None:
    task = build_task()
    before = card.read(build_onnx(task))["weights_sha256"]
    assert len(before) == 64
    assert onnx_bytes(task) == onnx_bytes(build_task())
    assert card.read(build_onnx(task, precision="fp16"))["weights_sha256"] == before
    task.network.head.bias[0] += 1
    assert card.read(build_onnx(task))["weights_sha256"] != before


def test_the_support_hash_follows_pixels_labels_and_names(build_task) -> None:
    one, other = build_task(seed=0), build_task(seed=1)
    assert card.support_digest(one.support) == card.support_digest(build_task(seed=0).support)
    assert card.support_digest(one.support) != card.support_digest(other.support)


@pytest.mark.parametrize(
    ("provenance", "licence"),
    [
        ({"data": "omniglot-vinyals/train"}, "MIT (Lake, Salakhutdinov and Tenenbaum, 2015)"),
        ({"data": "omniglot", "licence": "CC0"}, "CC0"),
        ({"data": "folder:pictures"}, None),
        ({}, None),
    ],
)
def test_the_licence_is_what_the_meta_model_says_or_what_is_known(provenance, licence) -> None:
    assert card.licence(provenance) == licence


def test_the_file_alone_says_how_to_prepare_a_picture(build_task) -> None:
    """Following the words of ``preprocessing_steps`` with Pillow and numpy gives the served pixels."""
    task = build_task(image_size=12)
    steps = card.read(build_onnx(task))["preprocessing_steps"]
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 31), dtype=np.uint8))
    assert "255 - value" in steps[2]
    assert "bilinear" in steps[3]
    assert "divide by 255" in steps[4]
    assert steps[5] == "subtract [0.4], divide by [0.3], channel by channel"
    by_hand = Image.fromarray(255 - np.asarray(picture)).resize((12, 12), Image.Resampling.BILINEAR)
    by_words = (np.asarray(by_hand, dtype=np.float32) / 255 - 0.4) / 0.3
    served = scale(torch.from_numpy(prepare(picture, task.preprocessing))[None], task.preprocessing)[0, 0]
    np.testing.assert_allclose(by_words, served.numpy(), rtol=1e-6, atol=1e-6)
