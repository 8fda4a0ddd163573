"""What the Open Inference Protocol refuses, with its status and a text that names the fault and the remedy."""

import io
import time
from collections import Counter

import grpc
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from PIL import Image

from metanas_proto.inference import open_inference_pb2 as oip
from metanas_proto.inference import open_inference_pb2_grpc
from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_serving import open_inference_codec
from metanas_serving.errors import InvalidRequestError
from metanas_serving.facts import TaskFacts

INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(scope="module")
def task_id(server):
    generator = np.random.default_rng(0)
    images = {name: generator.integers(0, 256, (28, 28, 1), np.uint8) for name in ("cat", "dog", "hen")}
    return server.adapt({name: [pb.Image(encoded=file_of(image))] for name, image in images.items()}).task_id


@pytest.fixture(scope="module")
def stub(server):
    return open_inference_pb2_grpc.GRPCInferenceServiceStub(server.channel)


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(1).integers(0, 256, (28, 28, 1), dtype=np.uint8)


def file_of(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0]).save(file, "PNG")
    return file.getvalue()


def request(task_id, *, shape=(1, 28, 28, 1), datatype="UINT8", raw=None, **fields):
    """A request with one image of zeros, changed as a test wants it."""
    contents = fields.pop("contents", None)
    message = oip.ModelInferRequest(
        model_name=task_id,
        inputs=[
            oip.ModelInferRequest.InferInputTensor(name="images", datatype=datatype, shape=shape, contents=contents)
        ],
        **fields,
    )
    if contents is None:
        message.raw_input_contents.append(bytes(28 * 28) if raw is None else raw)
    return message


def length(number):
    return number.to_bytes(4, "little")


def output(name="probabilities", **parameters):
    parameters = {key: oip.InferParameter(int64_param=value) for key, value in parameters.items()}
    return oip.ModelInferRequest.InferRequestedOutputTensor(name=name, parameters=parameters)


BAD_REQUESTS = {
    "no input": (lambda id_: oip.ModelInferRequest(model_name=id_), ["got 0: none", "one input, 'images'"]),
    "no model": (lambda id_: request(""), ["model's name is empty", "RepositoryIndex"]),
    "another input": (
        lambda id_: oip.ModelInferRequest(
            model_name=id_, inputs=[oip.ModelInferRequest.InferInputTensor(name="pixels")], raw_input_contents=[b""]
        ),
        ["one input, 'images'; got 1: 'pixels'"],
    ),
    "INT64": (lambda id_: request(id_, datatype="INT64"), ["datatype 'INT64'; send one of UINT8, FP32, BYTES"]),
    "channels first": (
        lambda id_: request(id_, shape=(1, 1, 28, 28)),
        ["shape (1, 1, 28, 28)", "send (images, 28, 28, 1), or files of any size as BYTES"],
    ),
    "no batch": (lambda id_: request(id_, shape=(28, 28, 1)), ["has shape (28, 28, 1); send (images, 28, 28, 1)"]),
    "no shape": (lambda id_: request(id_, shape=()), ["has shape (); send"]),
    "another size": (lambda id_: request(id_, shape=(1, 32, 32, 1), raw=bytes(1024)), ["has shape (1, 32, 32, 1)"]),
    "a negative batch": (lambda id_: request(id_, shape=(-1, 28, 28, 1)), ["has shape (-1, 28, 28, 1)"]),
    "an empty batch": (lambda id_: request(id_, shape=(0, 28, 28, 1), raw=b""), ["no images to classify"]),
    "a huge batch": (
        lambda id_: request(id_, shape=(2**62, 28, 28, 1)),
        [f"{2**62} images, this server takes at most 150", "--max-classify-images"],
    ),
    "too few bytes": (lambda id_: request(id_, raw=bytes(783)), ["needs 784 bytes, got 783; make shape"]),
    "too many bytes": (lambda id_: request(id_, datatype="FP32", raw=bytes(3140)), ["needs 3136 bytes, got 3140"]),
    "NaN": (
        lambda id_: request(id_, datatype="FP32", raw=np.full(784, np.nan, "<f4").tobytes()),
        ["image 0: the image holds NaN"],
    ),
    "floats up to 255": (
        lambda id_: request(id_, datatype="FP32", raw=np.full(784, 255, "<f4").tobytes()),
        ["image 0: float pixels must be in [0, 1], got 255 to 255"],
    ),
    "raw and typed": (
        lambda id_: request(
            id_, contents=oip.InferTensorContents(uint_contents=[0] * 784), raw_input_contents=[bytes(784)]
        ),
        ["has contents and raw_input_contents; send one of them"],
    ),
    "raw twice": (
        lambda id_: request(id_, raw_input_contents=[bytes(784)]),
        ["2 raw_input_contents for one input"],
    ),
    "values in another field": (
        lambda id_: request(id_, contents=oip.InferTensorContents(int_contents=[0] * 784)),
        ["needs 784 values in contents.uint_contents, got 0"],
    ),
    "a UINT8 of 256": (
        lambda id_: request(id_, contents=oip.InferTensorContents(uint_contents=[256] * 784)),
        ["holds 256 in contents.uint_contents; send 0..255"],
    ),
    "typed files missing": (
        lambda id_: request(id_, shape=(2,), datatype="BYTES", contents=oip.InferTensorContents(bytes_contents=[b""])),
        ["shape (2) needs 2 values in contents.bytes_contents, got 1"],
    ),
    "BYTES of pixels": (
        lambda id_: request(id_, datatype="BYTES"),
        ["datatype BYTES has shape (1, 28, 28, 1); send (images) or (images, 1), each a PNG or JPEG file"],
    ),
    "not an image": (
        lambda id_: request(id_, shape=(1,), datatype="BYTES", raw=length(5) + b"hello"),
        ["image 0: its 5 bytes are neither a PNG nor a JPEG file"],
    ),
    "a length past the end": (
        lambda id_: request(id_, shape=(1,), datatype="BYTES", raw=length(2**32 - 1) + b"hello"),
        ["element 0 of 1 ends at byte 4294967299, but raw_input_contents hold 9", "4 bytes, little-endian"],
    ),
    "half a length": (lambda id_: request(id_, shape=(1,), datatype="BYTES", raw=b"\0"), ["element 0 of 1 ends at"]),
    "bytes left behind": (
        lambda id_: request(id_, shape=(1,), datatype="BYTES", raw=length(0) + b"x"),
        ["1 bytes are left behind the 1 elements"],
    ),
    "another output": (lambda id_: request(id_, outputs=[output("logits")]), ["no output 'logits'; ask for"]),
    "an output twice": (lambda id_: request(id_, outputs=[output(), output()]), ["asked for twice"]),
    "no class": (lambda id_: request(id_, outputs=[output(classification=0)]), ["is 0; ask for 1 or more classes"]),
    "classes of the labels": (
        lambda id_: request(id_, outputs=[output("labels", classification=1)]),
        ["of output 'labels' is 1; ask for 1 or more classes of 'probabilities'"],
    ),
    "an output in shared memory": (
        lambda id_: request(id_, outputs=[output(shared_memory_byte_size=8)]),
        ["'probabilities' is in shared memory, which this server does not read"],
    ),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_a_bad_request_is_refused_with_what_was_seen_and_what_to_do(stub, task_id, refuses, case):
    make, words = BAD_REQUESTS[case]
    refuses(INVALID, words, lambda: stub.ModelInfer(make(task_id), timeout=20))


def test_another_repository_is_refused(stub, refuses):
    call = oip.RepositoryIndexRequest(repository_name="/models")
    refuses(INVALID, ["no repository '/models'", "leave repository_name empty"], lambda: stub.RepositoryIndex(call))


def test_mutated_contents_get_a_documented_status(stub, task_id, pixels):
    generator = np.random.default_rng(3)
    good = file_of(pixels)
    good = length(len(good)) + good
    seen = set()
    for _ in range(300):
        raw = bytearray(good[: generator.integers(len(good) + 1)] if generator.random() < 0.2 else good)
        for place in generator.integers(0, max(len(raw), 1), generator.integers(0, 4)):
            if raw:
                raw[place] = generator.integers(256)
        try:
            stub.ModelInfer(request(task_id, shape=(1,), datatype="BYTES", raw=bytes(raw)), timeout=20)
            seen.add(grpc.StatusCode.OK)
        except grpc.RpcError as error:
            seen.add(error.code())
    assert seen == {grpc.StatusCode.OK, INVALID}


def test_mutated_requests_are_read_or_refused_in_words(server, task_id, pixels):
    facts = TaskFacts.from_bytes(server.export(task_id), name="the task")
    file = file_of(pixels)
    scaled = (pixels.astype(np.float32) / 255).ravel().tolist()
    seeds = [
        request(task_id, raw=pixels.tobytes(), outputs=[output(classification=2), output("labels")], id="7"),
        request(task_id, datatype="FP32", contents=oip.InferTensorContents(fp32_contents=scaled)),
        request(task_id, shape=(2,), datatype="BYTES", raw=2 * (length(len(file)) + file)),
        request(task_id, shape=(1, 1), datatype="BYTES", contents=oip.InferTensorContents(bytes_contents=[file])),
    ]
    for seed in seeds:
        assert open_inference_codec.read_images(seed, facts, max_images=150)
    generator = np.random.default_rng(4)
    outcomes = Counter()
    slowest = 0.0
    for case in range(5000):
        data = bytearray(seeds[case % len(seeds)].SerializeToString())
        # What is not pixels is at the start, so most changes go there.
        places = (generator.random(generator.integers(1, 5)) ** 4 * len(data)).astype(int)
        for place in places:
            data[place] = generator.integers(256)
        if generator.random() < 0.1:
            del data[generator.integers(len(data)) :]
        begin = time.perf_counter()
        try:
            message = oip.ModelInferRequest.FromString(bytes(data))
            open_inference_codec.read_outputs(message)
            open_inference_codec.read_images(message, facts, max_images=150)
            outcomes["read"] += 1
        except DecodeError:
            outcomes["no message"] += 1
        except InvalidRequestError:
            outcomes["refused"] += 1
        slowest = max(slowest, time.perf_counter() - begin)
    assert min(outcomes[name] for name in ("read", "no message", "refused")) > 100, outcomes
    assert slowest < 0.2
