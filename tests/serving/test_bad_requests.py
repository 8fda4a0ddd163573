"""Each bad request gets its status and a text that names the fault and the remedy; the server goes on."""

import io
import struct
import time
import zlib

import grpc
import numpy as np
import pytest
from PIL import Image

from metanas_proto.v1 import few_shot_pb2 as pb

INVALID = grpc.StatusCode.INVALID_ARGUMENT

FLOAT32, UINT8 = pb.Tensor.DATA_TYPE_FLOAT32, pb.Tensor.DATA_TYPE_UINT8


def tensor(shape, data, data_type=UINT8):
    return pb.Image(tensor=pb.Tensor(data_type=data_type, shape=shape, data=data))


def floats(*values):
    return np.array(values, dtype="<f4").tobytes()


def header_only_png(width, height):
    """A PNG that says how large it is and holds next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0" * 4096)) + chunk(b"IEND", b"")
    )


def file_of(format_):
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, format_)
    return file.getvalue()


@pytest.fixture
def still_serves(server, support, queries):
    """After the test the server still learns and answers."""
    yield
    assert server.health() == "SERVING"
    assert len(server.classify(server.adapt(support).task_id, queries)) == len(queries)


BAD_IMAGES = {
    "neither file nor tensor": (pb.Image(), ["neither a file nor a tensor", "set encoded or tensor"]),
    "no bytes": (pb.Image(encoded=b""), ["the file is empty (0 bytes)"]),
    "text": (pb.Image(encoded=b"not an image"), ["12 bytes are neither a PNG nor a JPEG file", "convert"]),
    "a GIF": (pb.Image(encoded=file_of("GIF")), ["neither a PNG nor a JPEG", "47 49 46 38"]),
    "a truncated PNG": (pb.Image(encoded=file_of("PNG")[:900]), ["its 900 bytes cannot be decoded", "complete"]),
    "a truncated JPEG": (pb.Image(encoded=file_of("JPEG")[:900]), ["its 900 bytes cannot be decoded", "complete"]),
    "a PNG's first bytes": (pb.Image(encoded=file_of("PNG")[:9]), ["its 9 bytes cannot be decoded"]),
    "a PNG of 60,000 x 60,000": (
        pb.Image(encoded=header_only_png(60_000, 60_000)),
        ["at most 4096 pixels a side, got 60000 x 60000", "make it smaller"],
    ),
    "a shape that does not fit the bytes": (
        tensor((28, 28), b"\0" * 100),
        ["shape (28, 28)", "needs 784 bytes, got 100", "agree"],
    ),
    "a shape beyond all memory": (tensor((2**32 - 1, 2**32 - 1, 4), b"\0"), ["got 1"]),
    "no shape": (tensor((), b"\0"), ["shape () has 0 sizes", "(height, width)"]),
    "a side of zero": (tensor((0, 5), b""), ["1..4096 pixels a side, got 0 x 5"]),
    "a long side": (tensor((1, 5000), b"\0" * 5000), ["1..4096 pixels a side, got 1 x 5000"]),
    "five channels": (tensor((1, 1, 5), b"\0" * 5), ["1, 3 or 4", "(1, 1, 5)"]),
    "no data type": (tensor((1, 1), b"\0", 0), ["data_type is 0", "DATA_TYPE_UINT8 (1)"]),
    "an unknown data type": (tensor((1, 1), b"\0", 7), ["data_type is 7"]),
    "NaN": (tensor((1, 2), floats(0.5, np.nan), FLOAT32), ["NaN", "[0, 1]"]),
    "infinity": (tensor((1, 2), floats(0.5, np.inf), FLOAT32), ["infinity", "[0, 1]"]),
    "floats out of range": (tensor((1, 2), floats(0, 255), FLOAT32), ["0 to 255", "divide by 255"]),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_an_unusable_image_is_refused_by_name_in_adapt_and_classify(server, support, kind, refuses, task_id, queries):
    image, words = BAD_IMAGES[kind]
    bad = {**support, "cat": [support["cat"][0], image]}
    begin = time.perf_counter()
    refuses(INVALID, ['image 1 of class "cat": ', *words], lambda: server.adapt(bad))
    refuses(INVALID, ["image 5: ", *words], lambda: server.classify(task_id, [*queries, image]))
    assert time.perf_counter() - begin < 5
    assert len(server.classify(task_id, queries)) == len(queries)


@pytest.fixture(scope="module")
def task_id(server):
    pixels = [np.full((4, 4), value, dtype=np.uint8) for value in (10, 200)]
    images = [tensor((4, 4), one.tobytes()) for one in pixels]
    return server.adapt({"dark": images[:1], "light": images[1:]}).task_id


@pytest.mark.usefixtures("still_serves")
def test_a_support_set_that_cannot_be_learned_is_refused(server, support, refuses):
    cat, dog = support["cat"], support["dog"]
    for words, request in (
        (["no images", "at least two classes"], pb.AdaptRequest()),
        (["only one class", '"cat"', "at least two classes"], server.request({"cat": cat})),
        (
            ['no image for class "fox", "owl"', "leave the class out"],
            server.request({"cat": cat, "fox": [], "owl": []}),
        ),
        (["label of class 1 is empty"], server.request({"cat": cat, "": dog})),
        (["label of class 1 is empty", "' '"], server.request({"cat": cat, " ": dog})),
        (["label of class 0 has 300 characters", "at most 256"], server.request({"x" * 300: cat, "dog": dog})),
        (
            ['label "cat" more than once'],
            pb.AdaptRequest(support=[pb.LabelledImages(label="cat", images=cat)] * 2),
        ),
        (
            ["61 support images", "at most 60", "--max-support-images"],
            server.request({"cat": cat, "dog": dog[:1] * 59}),
        ),
        (
            ["41 classes", "at most 40", "--max-classes"],
            server.request({f"class {number}": dog[:1] for number in range(41)}),
        ),
    ):
        refuses(INVALID, words, lambda request=request: server.stub.Adapt(request))


@pytest.mark.usefixtures("still_serves")
def test_a_classification_that_cannot_work_is_refused(server, queries, refuses, task_id):
    refuses(INVALID, ["no images to classify"], lambda: server.classify(task_id, []))
    refuses(INVALID, ["155 images", "at most 150", "several calls"], lambda: server.classify(task_id, queries * 31))
    refuses(INVALID, ["task_id is empty"], lambda: server.classify("", queries))


@pytest.mark.usefixtures("still_serves")
@pytest.mark.parametrize("unknown", ["0" * 32, "../../etc/passwd", "x" * 10_000, "né\n"])
def test_an_unknown_task_is_not_found(server, queries, refuses, unknown):
    for call in (
        lambda: server.classify(unknown, queries),
        lambda: server.stub.GetTask(pb.GetTaskRequest(task_id=unknown)),
        lambda: server.stub.DeleteTask(pb.DeleteTaskRequest(task_id=unknown)),
        lambda: server.export(unknown),
    ):
        refuses(grpc.StatusCode.NOT_FOUND, ["no task", "ListTasks names yours"], call)


def test_an_export_without_a_format_is_refused(server, refuses, task_id):
    refuses(INVALID, ["format is 0", "FORMAT_TASK_MODEL (1)"], lambda: server.export(task_id, 0))


@pytest.mark.usefixtures("still_serves")
def test_a_message_over_the_limit_is_refused_with_both_sizes(server, queries, refuses, task_id):
    large = tensor((3000, 3000), b"\0" * 9_000_000)
    refuses(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        ["larger than max", "(90000", "vs. 8388608)"],
        lambda: server.classify(task_id, [large]),
    )


def test_hostile_bytes_never_pass_for_a_fault_of_the_server(server, refuses, task_id):
    generator = np.random.default_rng(0)
    for format_ in ("PNG", "JPEG"):
        good = np.frombuffer(file_of(format_), dtype=np.uint8)
        for _ in range(60):
            bad = good.copy()
            places = generator.integers(0, min(len(bad), generator.choice([60, 700, len(bad)])), 8)
            bad[places] = generator.integers(0, 256, len(places))
            call = server.stub.Classify.future(
                pb.ClassifyRequest(task_id=task_id, images=[pb.Image(encoded=bad.tobytes())])
            )
            assert call.code() in (grpc.StatusCode.OK, INVALID), call.details()
            assert call.code() is grpc.StatusCode.OK or call.details().startswith("image 0: ")
