"""Images that need nothing done to them take a short way to the same pixels."""

import numpy as np
import pytest

from metanas.preprocessing import Preprocessing, picture_from_array, prepare
from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_serving.images import read_image


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize(("shape", "channels"), [((28, 20), 1), ((28, 20, 1), 1), ((28, 20, 3), 3)])
def test_pixels_of_the_models_size_are_what_the_whole_way_makes_of_them(shape, channels, invert):
    preprocessing = Preprocessing(
        channels=channels, height=28, width=20, invert=invert, mean=(0.0,) * channels, deviation=(1.0,) * channels
    )
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    tensor = pb.Tensor(data_type=pb.Tensor.DATA_TYPE_UINT8, shape=shape, data=pixels.tobytes())
    short = read_image(pb.Image(tensor=tensor), preprocessing, where="image 0")
    np.testing.assert_array_equal(short, prepare(picture_from_array(pixels), preprocessing))
