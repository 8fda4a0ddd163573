"""Bytes that are no message are refused as the caller's fault, in unary calls and in streams, of both protocols."""

import grpc
import pytest

from metanas_proto.v1 import few_shot_pb2 as pb

JUNK = b"\xff\xff\xff"


@pytest.mark.parametrize(
    "path", ["metanas.v1.FewShot/Classify", "metanas.v1.FewShot/ListTasks", "inference.GRPCInferenceService/ModelInfer"]
)
def test_bytes_that_are_no_message_are_the_callers_fault(server, refuses, path):
    call = server.channel.unary_unary(f"/{path}")
    words = ["3 bytes of a request of", path.partition("/")[2], "no such message", ".proto"]
    refuses(grpc.StatusCode.INVALID_ARGUMENT, words, lambda: call(JUNK, timeout=20))


def test_a_stream_of_answers_to_junk_ends_with_the_callers_fault(server, refuses):
    call = server.channel.unary_stream("/metanas.v1.FewShot/WatchAdapt")
    refuses(grpc.StatusCode.INVALID_ARGUMENT, ["WatchAdapt", "no such message"], lambda: list(call(JUNK, timeout=20)))


def test_junk_within_a_stream_ends_it_after_what_came_before_was_answered(server, support, queries):
    task_id = server.adapt(support).task_id
    good = pb.ClassifyRequest(task_id=task_id, images=queries).SerializeToString()
    answers = server.channel.stream_stream("/metanas.v1.FewShot/ClassifyStream")(iter([good, JUNK]), timeout=20)
    assert len(pb.ClassifyResponse.FromString(next(answers)).classifications) == len(queries)
    with pytest.raises(grpc.RpcError) as caught:
        next(answers)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "no such message" in caught.value.details()
