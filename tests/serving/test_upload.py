"""Support sets in pieces: larger than a message, bounded in all, and the same task as in one piece."""

import time

import grpc
import numpy as np

from metanas_proto.v1 import few_shot_pb2 as pb


def upload(server, pieces):
    job = server.stub.UploadAdapt(iter(pieces), timeout=60)
    return list(server.stub.WatchAdapt(pb.WatchAdaptRequest(job_id=job.job_id), timeout=60))[-1]


def piece(label, images, **fields):
    return pb.AdaptRequest(support=[pb.LabelledImages(label=label, images=images)], **fields)


def large_image(seed, size=512):
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)
    return pb.Image(tensor=pb.Tensor(data_type=pb.Tensor.DATA_TYPE_UINT8, shape=(size, size), data=pixels.tobytes()))


def test_a_support_set_in_pieces_gives_the_task_of_one_piece(job_server, support):
    whole = job_server.request(support, seed=4)
    whole.MergeFrom(pb.AdaptRequest(options=pb.AdaptOptions(weight_steps=2), idempotency_key="in pieces"))
    pieces = [
        pb.AdaptRequest(seed=4, options=whole.options, idempotency_key="in pieces"),
        piece("cat", support["cat"][:1]),
        piece("dog", support["dog"]),
        piece("hen", support["hen"]),
        piece("cat", support["cat"][1:], is_last=True),
    ]
    uploaded = upload(job_server, pieces).task
    # The key tells that both are the same request: another one would be refused.
    assert job_server.stub.Adapt(whole, timeout=60).task == uploaded
    assert list(uploaded.class_names) == ["cat", "dog", "hen"]


def test_a_support_set_over_the_limit_of_a_message_is_uploaded(job_server, refuses):
    images = {name: [large_image(seed) for seed in seeds] for name, seeds in (("a", (1, 2)), ("b", (3, 4, 5)))}
    refuses(grpc.StatusCode.RESOURCE_EXHAUSTED, ["larger than max"], lambda: job_server.adapt(images))
    last = pb.AdaptRequest(is_last=True)
    job = upload(job_server, [*(piece(name, [image]) for name in images for image in images[name]), last])
    assert job.state == pb.AdaptJob.STATE_SUCCEEDED
    assert job.task.support_image_count == 5


def test_an_upload_is_bounded_in_all_and_stops_at_the_limit(job_server, refuses):
    image, sent = large_image(0), []

    def pieces():
        for number in range(1000):
            sent.append(number)
            yield piece("a" if number % 2 else "b", [image])
            time.sleep(0.01)

    refuses(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        ["more than 3145728 bytes", "--max-upload-mb"],
        lambda: job_server.stub.UploadAdapt(pieces(), timeout=60),
    )
    assert len(sent) < 200


def test_a_bad_upload_is_refused_with_the_place_of_the_fault(job_server, support, refuses):
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    cat, bad, last = support["cat"], pb.Image(encoded=b"no image"), pb.AdaptRequest(is_last=True)
    for words, pieces in (
        (["before a piece that has is_last"], []),
        (["no images"], [last]),
        (['only one class, "cat"'], [piece("cat", cat[:1]), piece("cat", cat[1:]), last]),
        (['no image for class "dog"'], [piece("cat", cat), piece("dog", []), last]),
        (["a piece follows the one that has is_last"], [piece("cat", cat, is_last=True), piece("dog", cat)]),
        (['image 2 of class "cat": its 8 bytes'], [piece("cat", cat), piece("cat", [bad])]),
        (["later piece of an upload has a seed"], [piece("cat", cat), piece("dog", cat, seed=1)]),
        (["later piece of an upload has a seed"], [piece("cat", cat), piece("dog", cat, idempotency_key="k")]),
    ):
        refuses(invalid, words, lambda pieces=pieces: job_server.stub.UploadAdapt(iter(pieces), timeout=20))


def job_ids(server):
    return [job.job_id for job in server.stub.ListJobs(pb.ListJobsRequest()).jobs]


def test_an_upload_without_its_last_piece_starts_nothing(job_server, support, refuses):
    before = job_ids(job_server)
    whole = [piece(name, images) for name, images in support.items()]  # the end of the stream does not make it so
    refuses(
        grpc.StatusCode.INVALID_ARGUMENT,
        ["broken off", "nothing is started", "is_last"],
        lambda: job_server.stub.UploadAdapt(iter(whole), timeout=20),
    )
    assert job_ids(job_server) == before


def test_an_upload_whose_caller_leaves_starts_nothing(job_server, support):
    before = job_ids(job_server)

    def pieces():
        yield from (piece(name, images) for name, images in support.items())
        time.sleep(60)

    call = job_server.stub.UploadAdapt.future(pieces(), timeout=1)
    assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    time.sleep(0.5)
    assert job_ids(job_server) == before
    assert "Traceback" not in job_server.log_path.read_text()
