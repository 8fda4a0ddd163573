"""Legal but heavy requests: decoding stops with its caller, health answers meanwhile, no stop is held up."""

import io
import time

import grpc
import pytest
from PIL import Image

from metanas.preprocessing import Preprocessing
from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_serving import codec
from metanas_serving.errors import CallerGoneError, NotServingError
from metanas_serving.gate import Gate


def large_png() -> bytes:
    """A few KB that are 64 MB once decoded."""
    file = io.BytesIO()
    Image.new("RGBA", (4096, 4096)).save(file, "PNG")
    return file.getvalue()


def test_decoding_asks_before_every_image_whether_it_is_still_wanted(queries: list[pb.Image]) -> None:
    asked = []

    def check() -> None:
        asked.append(True)
        if len(asked) == 3:
            raise CallerGoneError("the caller has gone")

    with pytest.raises(CallerGoneError, match="the caller has gone"):
        codec.read_images(queries, Preprocessing(), max_images=10, check=check)
    assert len(asked) == 3


def test_a_gate_that_is_cut_off_tells_those_inside_to_leave() -> None:
    gate = Gate()
    gate.open()
    gate.enter()
    gate.check_inside()
    gate.cut_off()
    with pytest.raises(NotServingError, match="draining"):
        gate.check_inside()


def test_a_gate_that_never_opened_says_so_when_it_closes() -> None:
    gate = Gate()
    gate.close()
    gate.close()
    with pytest.raises(NotServingError, match="stops before it was ready; its log says why"):
        gate.enter()


def test_heavy_calls_leave_health_alone_end_with_their_callers_and_do_not_hold_up_the_stop(
    tiny_meta, start_process, support, queries
):
    server = start_process("--meta", str(tiny_meta), "--drain-seconds", "1")
    task = server.adapt(support)
    request = pb.ClassifyRequest(task_id=task.task_id, images=[pb.Image(encoded=large_png())] * 200)
    calls = [server.stub.Classify.future(request, timeout=3) for _ in range(16)]
    assert server.health() == "SERVING"  # while they hold all request threads
    assert {call.exception().code() for call in calls} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    assert server.classify(task.task_id, queries)  # soon, not after 3,200 pictures: its deadline is 20 s
    still_wanted = server.stub.Classify.future(request, timeout=300)
    time.sleep(1)
    begin = time.monotonic()
    server.process.terminate()
    assert server.process.wait(timeout=60) == 0
    assert time.monotonic() - begin < 20
    assert still_wanted.exception().code() == grpc.StatusCode.UNAVAILABLE
