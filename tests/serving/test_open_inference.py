"""The Open Inference Protocol: NVIDIA's tritonclient lists, inspects and asks the tasks of a server process."""

import io
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from PIL import Image
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

import metanas
from metanas_proto.inference import open_inference_pb2 as oip
from metanas_proto.inference import open_inference_pb2_grpc
from metanas_proto.v1 import few_shot_pb2 as pb

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "open_inference.md"
NAMES = ("cat", "dog", "hen")


@pytest.fixture(scope="module")
def process(make_process, tiny_meta):
    return make_process("--meta", str(tiny_meta), "--max-classify-images", "150", "--max-message-mb", "8")


@pytest.fixture(scope="module")
def task_id(process):
    generator = np.random.default_rng(0)
    return process.adapt({name: [tensor(generator.integers(0, 256, (28, 28), np.uint8))] for name in NAMES}).task_id


@pytest.fixture(scope="module")
def client(process):
    with triton.InferenceServerClient(process.address) as client:
        yield client


@pytest.fixture(scope="module")
def stub(process):
    return open_inference_pb2_grpc.GRPCInferenceServiceStub(process.channel)


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(1).integers(0, 256, (5, 28, 28, 1), dtype=np.uint8)


def tensor(pixels):
    return pb.Image(
        tensor=pb.Tensor(data_type=pb.Tensor.DATA_TYPE_UINT8, shape=pixels.shape, data=pixels.tobytes()),
    )


def file_of(pixels, format_):
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0]).save(file, format_)
    return file.getvalue()


def as_input(array, datatype, name="images"):
    value = triton.InferInput(name, array.shape, datatype)
    value.set_data_from_numpy(array)
    return [value]


def classified(process, task_id, images):
    """What Classify answers, in the order of the classes."""
    return np.array(
        [[answer[name] for name in NAMES] for answer in process.classify(task_id, images)], dtype=np.float32
    )


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


def test_tritonclient_lists_and_inspects_a_task(process, client, task_id):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(task_id)
    assert client.is_model_ready(task_id, "1")
    assert not client.is_model_ready(task_id, "2")
    assert not client.is_model_ready("none")
    server = client.get_server_metadata()
    assert (server.name, server.version) == ("metanas-edge", metanas.__version__)
    tasks = [task.task_id for task in process.stub.ListTasks(pb.ListTasksRequest()).tasks]
    models = client.get_model_repository_index().models
    assert [(model.name, model.version, model.state) for model in models] == [(id_, "1", "READY") for id_ in tasks]
    described = client.get_model_metadata(task_id)
    assert (described.name, list(described.versions)) == (task_id, ["1"])
    assert [(each.name, each.datatype, list(each.shape)) for each in (*described.inputs, *described.outputs)] == [
        ("images", "UINT8", [-1, 28, 28, 1]),
        ("probabilities", "FP32", [-1, 3]),
        ("labels", "BYTES", [-1, 1]),
    ]
    config = client.get_model_config(task_id).config
    assert (config.max_batch_size, list(config.input[0].dims)) == (150, [28, 28, 1])
    assert config.input[0].data_type == model_config_pb2.TYPE_UINT8
    assert config.input[0].format == model_config_pb2.ModelInput.FORMAT_NHWC
    assert [(each.name, each.data_type) for each in config.output] == [
        ("probabilities", model_config_pb2.TYPE_FP32),
        ("labels", model_config_pb2.TYPE_STRING),
    ]
    assert json.loads(config.parameters["class_names"].string_value) == list(NAMES)


def test_uint8_fp32_and_files_answer_as_classify_does_to_the_bit(process, client, task_id, pixels):
    expected = classified(process, task_id, [tensor(image) for image in pixels])
    scaled = pixels.astype(np.float32) / 255
    files = np.array([file_of(image, "PNG") for image in pixels], dtype=object)
    for array, datatype in ((pixels, "UINT8"), (scaled, "FP32"), (files, "BYTES"), (files[:, None], "BYTES")):
        result = client.infer(task_id, as_input(array, datatype))
        np.testing.assert_array_equal(result.as_numpy("probabilities"), expected, err_msg=datatype)
        labels = [[NAMES[row.argmax()].encode()] for row in expected]
        assert result.as_numpy("labels").tolist() == labels
    large = np.random.default_rng(2).integers(0, 256, (90, 60, 1), dtype=np.uint8)
    jpeg = file_of(large, "JPEG")
    result = client.infer(task_id, as_input(np.array([jpeg], dtype=object), "BYTES"), model_version="1")
    expected = classified(process, task_id, [pb.Image(encoded=jpeg)])
    np.testing.assert_array_equal(result.as_numpy("probabilities"), expected)


def test_typed_contents_answer_as_raw_ones(stub, task_id, pixels):
    shape, contents = pixels.shape, oip.InferTensorContents
    raw = stub.ModelInfer(request(task_id, shape=shape, raw=pixels.tobytes()))
    scaled = (pixels.astype(np.float32) / 255).ravel()
    files = [file_of(image, "PNG") for image in pixels]
    for typed in (
        request(task_id, shape=shape, contents=contents(uint_contents=pixels.ravel().tolist())),
        request(task_id, shape=shape, datatype="FP32", contents=contents(fp32_contents=scaled.tolist())),
        request(task_id, shape=(5,), datatype="BYTES", contents=contents(bytes_contents=files)),
    ):
        assert stub.ModelInfer(typed) == raw


def test_an_answer_holds_the_wanted_outputs_in_order_and_the_id(client, task_id, pixels):
    images = as_input(pixels, "UINT8")
    both = client.infer(task_id, images, request_id="frame 7").get_response()
    assert (both.id, both.model_name, both.model_version) == ("frame 7", task_id, "1")
    assert [output.name for output in both.outputs] == ["probabilities", "labels"]
    wanted = [triton.InferRequestedOutput(name) for name in ("labels", "probabilities")]
    turned = client.infer(task_id, images, outputs=wanted).get_response()
    assert [output.name for output in turned.outputs] == ["labels", "probabilities"]
    assert list(turned.raw_output_contents) == list(both.raw_output_contents)[::-1]
    alone = client.infer(task_id, images, outputs=wanted[:1])
    assert [output.name for output in alone.get_response().outputs] == ["labels"]
    assert alone.as_numpy("labels").shape == (5, 1)


def test_the_classification_extension_names_the_most_probable_classes(client, task_id, pixels):
    images = as_input(pixels, "UINT8")
    rows = client.infer(task_id, images).as_numpy("probabilities")
    for asked, answered in ((1, 1), (2, 2), (10, 3)):
        wanted = [triton.InferRequestedOutput("probabilities", class_count=asked)]
        texts = client.infer(task_id, images, outputs=wanted).as_numpy("probabilities")
        assert texts.shape == (5, answered)
        for row, line in zip(rows, texts, strict=True):
            order = np.argsort(-row, kind="stable")[:answered]
            assert [text.decode() for text in line] == [f"{row[index]:.6f}:{index}:{NAMES[index]}" for index in order]


def test_an_alias_is_a_model_that_moves_with_it(process, client, task_id, pixels):
    images = as_input(pixels, "UINT8")
    other = process.adapt(
        {name: [tensor(image)] for name, image in zip(("hen", "fox"), pixels[:2], strict=True)}
    ).task_id
    for id_ in (task_id, other):
        process.stub.SetAlias(pb.SetAliasRequest(alias="line-3", task_id=id_), timeout=20)
        asked = client.infer("line-3", images)
        assert asked.get_response().model_name == "line-3"
        expected = client.infer(id_, images).as_numpy("probabilities")
        np.testing.assert_array_equal(asked.as_numpy("probabilities"), expected)
        described = client.get_model_metadata("line-3")
        assert (described.name, described.outputs[0].shape[1]) == ("line-3", expected.shape[1])
        assert client.get_model_config("line-3").config.name == "line-3"
        assert client.is_model_ready("line-3")
    names = [model.name for model in client.get_model_repository_index().models]
    assert names == [task_id, other, "line-3"]
    process.stub.DeleteAlias(pb.DeleteAliasRequest(alias="line-3"), timeout=20)
    process.stub.DeleteTask(pb.DeleteTaskRequest(task_id=other), timeout=20)
    assert not client.is_model_ready("line-3")


def test_an_unknown_model_or_version_is_not_found(client, task_id, pixels):
    images = as_input(pixels, "UINT8")
    for call, words in (
        (lambda: client.infer("none", images), "no task 'none' on this server"),
        (lambda: client.get_model_metadata("none"), "no task 'none' on this server"),
        (lambda: client.get_model_config("../../etc/passwd"), "no task '../../etc/passwd' on this server"),
        (lambda: client.infer(task_id, images, model_version="2"), "has no version '2'; ask for '1'"),
    ):
        with pytest.raises(InferenceServerException) as caught:
            call()
        assert caught.value.status() == "StatusCode.NOT_FOUND"
        assert words in caught.value.message()


def test_calls_of_the_protocol_that_are_not_here_are_unimplemented(client, task_id):
    for call in (
        lambda: client.load_model(task_id),
        lambda: client.unload_model(task_id),
        lambda: client.get_inference_statistics(task_id),
        lambda: client.get_system_shared_memory_status(),
    ):
        with pytest.raises(InferenceServerException) as caught:
            call()
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


def test_a_wrong_shape_reaches_a_user_of_tritonclient_in_words(client, task_id, pixels):
    with pytest.raises(InferenceServerException) as caught:
        client.infer(task_id, as_input(pixels[:, :20], "UINT8"))
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert "has shape (5, 20, 28, 1); send (images, 28, 28, 1)" in caught.value.message()


def test_a_server_that_drains_is_live_but_not_ready(start_process, slow_meta, support, refuses):
    process = start_process("--meta", str(slow_meta), "--drain-seconds", "60", "--adapt-workers", "1")
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(process.channel)
    assert stub.ServerReady(oip.ServerReadyRequest()).ready
    running = process.begin_adapt(support)
    time.sleep(0.5)
    process.process.send_signal(signal.SIGTERM)
    end = time.monotonic() + 20
    while stub.ServerReady(oip.ServerReadyRequest()).ready:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert stub.ServerLive(oip.ServerLiveRequest()).live
    assert not stub.ModelReady(oip.ModelReadyRequest(name="any")).ready
    for call in (
        lambda: stub.ModelInfer(request("any")),
        lambda: stub.ModelMetadata(oip.ModelMetadataRequest(name="any")),
        lambda: stub.RepositoryIndex(oip.RepositoryIndexRequest()),
    ):
        refuses(grpc.StatusCode.UNAVAILABLE, ["draining before it stops", "to another server"], call)
    running.cancel()
    assert process.process.wait(timeout=30) == 0


def test_the_example_of_the_documentation_runs(process, task_id, pixels, tmp_path):
    example = re.search(r"```python\n(.*?)```", DOCUMENTATION.read_text(), re.DOTALL)[1]
    assert example.count("localhost:50051") == 1
    (tmp_path / "unknown.jpg").write_bytes(file_of(pixels[0], "JPEG"))
    code = example.replace("localhost:50051", process.address)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    label, probability = done.stdout.split()
    assert label in NAMES
    assert 1 / 3 <= float(probability) <= 1


def test_reflection_and_health_know_the_service(process):
    service = "inference.GRPCInferenceService"
    assert process.health(service) == "SERVING"
    database = ProtoReflectionDescriptorDatabase(process.channel)
    assert service in database.get_services()
    methods = {method.name for method in DescriptorPool(database).FindServiceByName(service).methods}
    assert {"ModelInfer", "RepositoryIndex"} <= methods


def test_tritonclient_asks_a_server_in_its_own_process(server, support, pixels):
    task_id = server.adapt(support).task_id
    with triton.InferenceServerClient(server.address) as client:
        rows = client.infer(task_id, as_input(pixels, "UINT8")).as_numpy("probabilities")
    np.testing.assert_array_equal(rows, classified(server, task_id, [tensor(image) for image in pixels]))
