"""Small files that would become large: refused before they are decoded, or decoded no further than they say."""

import io
import resource
import struct
import time
import zlib

import grpc
import numpy as np
import pytest
from PIL import Image

from metanas.preprocessing import Preprocessing
from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_serving.errors import InvalidRequestError
from metanas_serving.images import MAX_REQUEST_PIXELS, Pixels, read_image

PREPROCESSING = Preprocessing(invert=True)
MEBIBYTE = 1024 * 1024


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, compressed, *, bits=8, extra=b""):
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", compressed) + chunk(b"IEND", b"")


def zeros(count):
    """``count`` zero bytes, compressed a thousand times."""
    packer = zlib.compressobj(9)
    parts = [packer.compress(bytes(MEBIBYTE)) for _ in range(count // MEBIBYTE)]
    return b"".join([*parts, packer.flush()])


def jpeg_that_says(width, height):
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(file, "JPEG")
    data = bytearray(file.getvalue())
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


BOMB = zeros(110 * MEBIBYTE)  # all the rows of a picture of 30,000 x 30,000 and one bit a pixel
SMALL = zlib.compress(bytes(28 * 29))

REFUSED = {
    "a PNG of 30,000 x 30,000": (png(30_000, 30_000, BOMB, bits=1), "at most 4096 pixels a side, got 30000 x 30000"),
    "a JPEG of 65,000 x 65,000": (jpeg_that_says(65_000, 65_000), "at most 4096 pixels a side, got 65000 x 65000"),
    "a text of 110 MB": (png(28, 28, SMALL, extra=chunk(b"zTXt", b"a\0\0" + BOMB)), "cannot be decoded"),
    "a colour profile of 110 MB": (png(28, 28, SMALL, extra=chunk(b"iCCP", b"a\0\0" + BOMB)), "cannot be decoded"),
}


def grown_by(call):
    """How many bytes the process's peak memory grew."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call()
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_bomb_is_refused_and_never_unpacked(kind, server, support, refuses):
    data, words = REFUSED[kind]
    assert len(data) < 200_000
    image = pb.Image(encoded=data)
    bad = {**support, "cat": [support["cat"][0], image]}

    def call():
        refuses(grpc.StatusCode.INVALID_ARGUMENT, [words], lambda: server.adapt(bad))

    assert grown_by(call) < 20 * MEBIBYTE
    assert server.health() == "SERVING"


def test_of_rows_behind_the_last_nothing_is_unpacked():
    plain = read_image(pb.Image(encoded=png(28, 28, SMALL)), PREPROCESSING, where="image 0")
    read = []
    grown = grown_by(
        lambda: read.append(read_image(pb.Image(encoded=png(28, 28, BOMB)), PREPROCESSING, where="image 0"))
    )
    np.testing.assert_array_equal(read[0], plain)
    assert grown < 20 * MEBIBYTE


def test_the_pixels_of_a_request_are_counted_before_they_are_decoded():
    # A file that cannot even be decoded: its size is read, and it is refused for that.
    full = Pixels(most=4096 * 4096)
    full.take(4096, 4096)
    with pytest.raises(InvalidRequestError, match=r"image 7: with it the images of this request have 16777217 pixels"):
        read_image(pb.Image(encoded=png(1, 1, b"no zlib")), PREPROCESSING, where="image 7", pixels=full)
    assert MAX_REQUEST_PIXELS // 4096**2 == 128


def test_a_request_of_many_small_files_of_large_pictures_is_refused(server, support, refuses, monkeypatch):
    monkeypatch.setattr(Pixels.__init__, "__defaults__", (2 * 4096**2,))
    large = pb.Image(encoded=png(4096, 4096, zeros(17 * MEBIBYTE)))
    refuses(
        grpc.StatusCode.INVALID_ARGUMENT,
        ['image 0 of class "cat": with it the images of this request have 33555216 pixels, at most 33554432', "fewer"],
        lambda: server.adapt({"dog": [large, large], "cat": support["cat"]}),
    )


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded_and_one_of_usual_scans_is_not():
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", progressive=True)
    good = file.getvalue()
    assert 1 < good.count(b"\xff\xda") < 32
    assert read_image(pb.Image(encoded=good), PREPROCESSING, where="image 0").shape == (1, 28, 28)
    large = bytearray(good)
    place = good.index(b"\xff\xc2") + 5
    large[place : place + 4] = struct.pack(">HH", 4096, 4096)
    first, end = good.index(b"\xff\xda"), good.rindex(b"\xff\xd9")
    bomb = bytes(large[:end]) + good[first:end] * 20 + good[end:]
    begin = time.thread_time()
    with pytest.raises(InvalidRequestError, match=r"image 0: its JPEG file has \d+ scans, at most 32 are decoded"):
        read_image(pb.Image(encoded=bomb), PREPROCESSING, where="image 0")
    assert time.thread_time() - begin < 0.05
