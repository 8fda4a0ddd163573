"""What the calls answer, over real gRPC."""

import grpc
import numpy as np
import pytest
import torch
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from metanas.artifact import load_meta, task_from_bytes
from metanas.learner import adapt
from metanas.preprocessing import scale
from metanas.tasks import SupportSet
from metanas.trust import similarity
from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_serving.images import read_image
from metanas_serving.service import MAX_CHUNK_BYTES

ort = pytest.importorskip("onnxruntime")


def test_adapt_describes_the_task_in_the_order_of_the_request(server, support):
    task = server.adapt(support)
    assert list(task.class_names) == ["cat", "dog", "hen"]
    assert (task.architecture_steps, task.weight_steps, task.support_image_count) == (3, 3, 6)
    assert 0 < task.parameter_count <= task.one_shot_parameter_count
    assert 0 <= task.support_accuracy <= 1
    assert task.adapt_seconds > 0
    assert len(task.genotype.normal.nodes) == len(task.genotype.reduction.nodes) == 2
    assert all(node.inputs and all(edge.weight > 0 for edge in node.inputs) for node in task.genotype.normal.nodes)
    assert task.preprocessing == pb.Preprocessing(channels=1, height=28, width=28, invert=True)
    assert not task.warnings


def test_a_task_answers_with_every_class_most_probable_first(server, support, queries):
    task = server.adapt(support)
    answer = server.stub.Classify(pb.ClassifyRequest(task_id=task.task_id, images=queries))
    assert len(answer.classifications) == len(queries)
    for image in answer.classifications:
        values = [one.probability for one in image.classes]
        assert {one.class_name for one in image.classes} == {"cat", "dog", "hen"}
        assert values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1, abs=1e-6)


def test_torch_onnx_runtime_and_the_served_answer_agree(server, support, queries):
    task = server.adapt(support)
    model = task_from_bytes(server.export(task.task_id))
    pixels = np.stack([read_image(image, model.preprocessing, where="") for image in queries])
    temperature = model.trust.temperature
    by_torch = torch.softmax(model.logits(torch.from_numpy(pixels)) / temperature, dim=1).numpy()
    session = ort.InferenceSession(server.export(task.task_id, pb.ExportTaskRequest.FORMAT_ONNX))
    by_onnx = session.run(["logits"], {"images": scale(torch.from_numpy(pixels), model.preprocessing).numpy()})[0]
    by_onnx = np.exp(by_onnx / temperature)
    by_onnx /= by_onnx.sum(axis=1, keepdims=True)
    served = [[image[name] for name in task.class_names] for image in server.classify(task.task_id, queries)]
    # float32 summed in another order on each path; the rounding of a logit counts 1 / temperature, of about 1e-5 here.
    np.testing.assert_allclose(by_onnx, by_torch, atol=1e-4)
    np.testing.assert_allclose(served, by_torch, atol=1e-4)


def test_a_task_tells_how_far_to_trust_it_and_an_answer_how_alike_it_is(server, support, queries):
    task = server.adapt(support)
    model = task_from_bytes(server.export(task.task_id))
    assert task.trust.temperature == model.trust.temperature
    assert task.trust.leave_one_out_accuracy == pytest.approx(model.trust.leave_one_out_accuracy)
    assert task.trust.least_similarity == pytest.approx(model.trust.least_similarity)
    pixels = np.stack([read_image(image, model.preprocessing, where="") for image in queries])
    alike = similarity(model.logits(torch.from_numpy(pixels)), model.trust.head_scale).numpy()
    answer = server.stub.Classify(pb.ClassifyRequest(task_id=task.task_id, images=queries))
    np.testing.assert_allclose([one.similarity for one in answer.classifications], alike, atol=1e-5)
    for one in answer.classifications:
        assert one.none_of_these == (one.similarity < task.trust.least_similarity)


def test_single_shots_have_no_leave_one_out_accuracy_and_no_threshold(server, support, queries):
    task = server.adapt({name: images[:1] for name, images in support.items()})
    assert not task.trust.HasField("leave_one_out_accuracy")
    assert not task.trust.HasField("least_similarity")
    answer = server.stub.Classify(pb.ClassifyRequest(task_id=task.task_id, images=queries[:1])).classifications[0]
    assert answer.HasField("similarity")
    assert not answer.HasField("none_of_these")


def test_the_server_learns_what_the_core_learns(server, support, tiny_meta):
    meta = load_meta(tiny_meta)
    pixels = [read_image(image, meta.preprocessing, where="") for images in support.values() for image in images]
    labels = torch.tensor([label for label, images in enumerate(support.values()) for _ in images])
    expected = adapt(meta, SupportSet(torch.from_numpy(np.stack(pixels)), labels, tuple(support)), seed=5)
    served = task_from_bytes(server.export(server.adapt(support, seed=5).task_id))
    images = torch.from_numpy(np.stack(pixels))
    torch.testing.assert_close(served.logits(images), expected.logits(images), rtol=1e-4, atol=1e-4)
    assert served.genotype.structure() == expected.genotype.structure()


def test_the_same_request_and_seed_give_the_same_task_to_the_bit(server, support):
    first, second = (task_from_bytes(server.export(server.adapt(support, seed=7).task_id)) for _ in range(2))
    for name, value in first.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[name]), name
    assert first.genotype == second.genotype
    assert first.report == second.report
    assert {**first.provenance, "server": 0} == {**second.provenance, "server": 0}
    assert first.provenance["server"]["task_id"] != second.provenance["server"]["task_id"]


def test_relabelling_permutes_the_answers_and_changes_nothing_else(server, support, queries):
    names = {"hen": "hat", "cat": "coat", "dog": "ear"}
    relabelled = {names[name]: support[name] for name in names}
    before = server.classify(server.adapt(support).task_id, queries)
    after = server.classify(server.adapt(relabelled).task_id, queries)
    assert [{names[name]: value for name, value in image.items()} for image in before] == after


def test_an_image_answers_the_same_as_file_as_uint8_and_as_float(server, support, make_images):
    task = server.adapt(support)
    answers = server.classify(task.task_id, make_images)
    assert answers[0] == answers[1] == answers[2]


@pytest.fixture
def make_images(png_of):
    pixels = np.random.default_rng(3).integers(0, 256, (31, 40), dtype=np.uint8)
    scaled = pixels.astype("<f4") / 255
    return [
        pb.Image(encoded=png_of(pixels)),
        pb.Image(
            tensor=pb.Tensor(data_type=pb.Tensor.DATA_TYPE_UINT8, shape=pixels.shape, data=pixels.tobytes()),
        ),
        pb.Image(
            tensor=pb.Tensor(data_type=pb.Tensor.DATA_TYPE_FLOAT32, shape=(*scaled.shape, 1), data=scaled.tobytes())
        ),
    ]


def test_an_image_under_two_labels_is_warned_about(server, support):
    task = server.adapt({**support, "fox": [support["cat"][1]]})
    assert len(task.warnings) == 1
    assert 'image 1 of class "cat" and image 0 of class "fox" are the same' in task.warnings[0]
    assert server.stub.GetTask(pb.GetTaskRequest(task_id=task.task_id)).warnings == task.warnings


def test_tasks_are_described_listed_oldest_first_and_deleted(server, support, queries, refuses):
    first, second = server.adapt(support), server.adapt(support)
    assert server.stub.GetTask(pb.GetTaskRequest(task_id=first.task_id)) == first
    ids = [task.task_id for task in server.stub.ListTasks(pb.ListTasksRequest()).tasks]
    assert ids[-2:] == [first.task_id, second.task_id]
    server.stub.DeleteTask(pb.DeleteTaskRequest(task_id=first.task_id))
    for call in (
        lambda: server.stub.GetTask(pb.GetTaskRequest(task_id=first.task_id)),
        lambda: server.stub.DeleteTask(pb.DeleteTaskRequest(task_id=first.task_id)),
        lambda: server.classify(first.task_id, queries),
        lambda: server.export(first.task_id),
    ):
        refuses(grpc.StatusCode.NOT_FOUND, [f"no task '{first.task_id}'", "ListTasks"], call)
    assert server.classify(second.task_id, queries)


def test_an_export_is_the_file_in_chunks_of_at_most_a_mebibyte(server, support):
    task = server.adapt({**support, "big": support["cat"][:1]})
    request = pb.ExportTaskRequest(task_id=task.task_id, format=pb.ExportTaskRequest.FORMAT_TASK_MODEL)
    chunks = [chunk.data for chunk in server.stub.ExportTask(request)]
    assert all(0 < len(chunk) <= MAX_CHUNK_BYTES for chunk in chunks)
    assert task_from_bytes(b"".join(chunks)).class_names == ("cat", "dog", "hen", "big")


def test_health_and_reflection_name_the_service(server):
    assert server.health("") == server.health("metanas.v1.FewShot") == "SERVING"
    names = ProtoReflectionDescriptorDatabase(server.channel).get_services()
    assert {"metanas.v1.FewShot", "grpc.health.v1.Health"} <= set(names)


def test_a_task_that_made_room_for_others_answers_to_the_same_bits_again(server, support, queries):
    first = server.adapt(support).task_id
    before = server.classify(first, queries)
    for seed in (1, 2):  # the server keeps two loaded
        server.adapt(support, seed=seed)
    assert server.classify(first, queries) == before
