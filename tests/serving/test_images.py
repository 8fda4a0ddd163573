"""Images that need little done to them take a short way to the same pixels."""

import io
import threading

import numpy as np
import pytest
from PIL import Image as PILImage

from metanas.preprocessing import Preprocessing, picture_from_array, prepare
from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_serving import images
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


def _file(kind, height, width):
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    PILImage.fromarray(pixels).save(file, kind)
    return pb.Image(encoded=file.getvalue())


def test_small_jpeg_files_need_not_wait_for_what_is_decoded_and_all_else_does(monkeypatch):
    """A PNG may unpack to any memory, however small file and picture are; so may a large picture of a small file."""
    line = threading.BoundedSemaphore(1)
    monkeypatch.setattr(images, "_DECODING", line)
    preprocessing = Preprocessing(channels=3, height=20, width=20, mean=(0.5,) * 3, deviation=(0.5,) * 3)

    def read(image):
        found = []
        thread = threading.Thread(
            target=lambda: found.append(read_image(image, preprocessing, where="image 0")), daemon=True
        )
        thread.start()
        return thread, found

    flat = io.BytesIO()
    PILImage.new("RGB", (1000, 1000)).save(flat, "JPEG", quality=20)
    assert len(flat.getvalue()) <= images._SMALL_BYTES
    waiting = []
    with line:
        small, found = read(_file("JPEG", 84, 84))
        small.join(timeout=20)
        assert len(found) == 1
        waiting = [read(image) for image in (_file("PNG", 84, 84), pb.Image(encoded=flat.getvalue()))]
        for thread, _ in waiting:
            thread.join(timeout=0.3)
        assert [len(found) for _, found in waiting] == [0, 0]
    for thread, found in waiting:
        thread.join(timeout=20)
        assert len(found) == 1
