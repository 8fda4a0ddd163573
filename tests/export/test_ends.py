"""The preprocessing inside the graph is Pillow's, and probabilities are at the task's temperature."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

from metanas.preprocessing import Preprocessing, prepare, scale
from metanas_export import build_onnx, ends

GREY = Preprocessing(1, 28, 28, invert=True, mean=(0.1,), deviation=(0.3,))
COLOUR = Preprocessing(3, 40, 40, mean=(0.4, 0.5, 0.4), deviation=(0.3, 0.2, 0.25))
SIZES = ((28, 28), (40, 40), (105, 105), (240, 320), (37, 101), (20, 13), (1, 1), (5, 90))


def preprocessing_alone(preprocessing: Preprocessing) -> onnxruntime.InferenceSession:
    shape = ["batch", preprocessing.channels, preprocessing.height, preprocessing.width]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("images", "logits")]
    nodes = [helper.make_node("Identity", ["images"], ["logits"])]
    model = helper.make_model(
        helper.make_graph(nodes, "g", values[:1], values[1:]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )
    ends.take_pictures(model, preprocessing)
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def levels_apart(session, picture: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """How many of 255 levels each pixel differs by from what the server would see."""
    found = session.run(None, {"images": picture[None]})[0]
    served = scale(torch.from_numpy(prepare(Image.fromarray(picture), preprocessing))[None], preprocessing).numpy()
    deviation = np.array(preprocessing.deviation).reshape(-1, 1, 1)
    assert np.abs(found - served).max() < 1e-6 or np.abs(found - served).max() > 1e-3
    return np.rint(np.abs(found - served) * deviation * 255)


@pytest.mark.parametrize("preprocessing", [GREY, COLOUR], ids=["grey", "colour"])
def test_pictures_of_any_size_become_the_servers_pixels_to_the_bit(preprocessing) -> None:
    session, generator = preprocessing_alone(preprocessing), np.random.default_rng(0)
    for height, width in SIZES:
        noise = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(noise[: height // 8 + 1, : width // 8 + 1]).resize((width, height)))
        for picture in (noise, smooth):
            assert levels_apart(session, picture, preprocessing).max() == 0, (height, width)


def test_a_picture_to_be_made_lower_and_wider_is_one_level_off_at_most() -> None:
    # Pillow takes the rows first then, and so rounds in between other values.
    session, generator = preprocessing_alone(COLOUR), np.random.default_rng(0)
    apart = levels_apart(session, generator.integers(0, 256, (300, 28, 3), dtype=np.uint8), COLOUR)
    assert apart.max() == 1


def test_pictures_in_give_the_answers_of_prepared_images(build_task) -> None:
    task = build_task(image_size=14)
    model = build_onnx(task)
    ends.take_pictures(model, task.preprocessing)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    picture = np.random.default_rng(0).integers(0, 256, (2, 60, 50, 3), dtype=np.uint8)
    prepared = np.stack([prepare(Image.fromarray(one), task.preprocessing) for one in picture])
    found = session.run(["logits"], {"images": picture})[0]
    assert np.abs(found - task.logits(torch.from_numpy(prepared)).numpy()).max() < 1e-4


def test_probabilities_are_the_softmax_of_logits_over_the_temperature(build_task) -> None:
    task = build_task(image_size=14)
    model = build_onnx(task)
    ends.give_probabilities(model, temperature=2.5)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    images = scale(task.support.images, task.preprocessing)
    logits, probabilities = session.run(None, {"images": images.numpy()})
    assert [one.name for one in session.get_outputs()] == ["logits", "probabilities"]
    expected = torch.softmax(torch.from_numpy(logits) / 2.5, dim=1).numpy()
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
