"""Images that need little done to them take a short way to the same pixels."""

import io
import threading

import numpy as np
import pytest
from PIL import Image as PILImage
from PIL.JpegImagePlugin import JpegImageFile

from metanas.preprocessing import Preprocessing, picture_from_array, prepare
from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_serving import images
from metanas_serving.errors import InvalidRequestError
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


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (20, 20), (37, 53), (128, 128)])
def test_small_jpeg_files_are_read_to_the_pixels_that_pillow_reads(height, width, progressive, subsampling, invert):
    preprocessing = Preprocessing(channels=3, height=20, width=20, invert=invert, mean=(0.5,) * 3, deviation=(0.5,) * 3)
    for quality in (5, 75, 100):
        file = io.BytesIO()
        pixels = np.random.default_rng(quality).integers(0, 256, (height, width, 3), dtype=np.uint8)
        PILImage.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)
        assert images._small_colour(file.getvalue()) is not None
        read = read_image(pb.Image(encoded=file.getvalue()), preprocessing, where="image 0")
        with PILImage.open(file) as picture:
            np.testing.assert_array_equal(read, prepare(picture, preprocessing))


def _jpeg(mode, **how):
    file = io.BytesIO()
    PILImage.fromarray(np.arange(40 * 30, dtype=np.uint8).reshape(40, 30)).convert(mode).save(file, "JPEG", **how)
    return file.getvalue()


def _turned(orientation):
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    return _jpeg("RGB", exif=exif)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(_jpeg("L"), id="grey"),
        pytest.param(_jpeg("CMYK"), id="CMYK"),
        pytest.param(_turned(6), id="on its side"),
        pytest.param(_jpeg("RGB"), id="colour"),
        pytest.param(_jpeg("RGB", keep_rgb=True), id="RGB"),
        pytest.param(_jpeg("RGB") + b"something behind it", id="more than a picture"),
    ],
)
def test_all_other_small_jpeg_files_are_read_too(data, channels):
    preprocessing = Preprocessing(
        channels=channels, height=20, width=20, mean=(0.5,) * channels, deviation=(0.5,) * channels
    )
    with PILImage.open(io.BytesIO(data)) as picture:
        expected = prepare(picture, preprocessing)
    np.testing.assert_array_equal(read_image(pb.Image(encoded=data), preprocessing, where="image 0"), expected)


def test_damaged_small_jpeg_files_are_refused_as_pillow_refuses_them_or_read_to_its_pixels():
    preprocessing = Preprocessing(channels=3, height=20, width=20, mean=(0.5,) * 3, deviation=(0.5,) * 3)
    whole, random = _jpeg("RGB"), np.random.default_rng(0)
    refused = 0
    for number in range(600):
        damaged = bytearray(whole)
        for place in random.integers(3, len(damaged), random.integers(1, 4)):
            damaged[place] = random.integers(0, 256)
        data = bytes(damaged[: random.integers(4, len(damaged))] if number % 5 == 0 else damaged)
        try:
            with JpegImageFile(io.BytesIO(data)) as picture:
                expected = prepare(picture, preprocessing) if picture.width * picture.height <= 2**16 else None
        except Exception:
            with pytest.raises(InvalidRequestError, match="cannot be decoded"):
                read_image(pb.Image(encoded=data), preprocessing, where="image 0")
            refused += 1
        else:
            if expected is not None:
                read = read_image(pb.Image(encoded=data), preprocessing, where="image 0")
                np.testing.assert_array_equal(read, expected)
    assert refused > 100


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
