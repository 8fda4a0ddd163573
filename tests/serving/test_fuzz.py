"""Random and mutated bytes for the decoder of images and for every request of both protocols.

Three kinds of bytes go to each method of a real server process, past any client that would refuse them:
random ones, valid requests that were mutated on the wire, and messages whose every field is filled with
whatever its type can hold. Each case must end with a documented status, which INTERNAL, a fault of the
server, is not, and cost the server's process at most 200 ms of processor time, by the clock that Linux
keeps of that process (``clock_getcpuclockid``): adaptation, in a process of its own, is not in it. A case
over that, perhaps for what another thread did meanwhile, is sent twice more and judged by the least.

Cases are drawn by Hypothesis and the same in each run. `make test-all` takes over 20,000 of them.
"""

import random
import time

import grpc
import numpy as np
import pytest
from fuzzing import FILES, METHODS, cases, messages, mutated, send
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given
from hypothesis import strategies as st

from metanas.preprocessing import Preprocessing
from metanas_proto.inference import open_inference_pb2 as oip
from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_serving.errors import InvalidRequestError
from metanas_serving.images import read_image

QUICK, SLOW = 12, 620
"""Cases of each method."""
QUICK_IMAGES, SLOW_IMAGES = 120, 5000
MOST_SECONDS = 0.2
CODES = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.FAILED_PRECONDITION,
}


class Target:
    """A server process and what its requests may name."""

    def __init__(self, server, support) -> None:
        self._server = server
        tasks = [server.adapt(support, seed=seed).task_id for seed in range(3)]
        self._kept, self.asked, self.doomed = tasks
        job = server.stub.StartAdapt(server.request(support, seed=3))
        list(server.stub.WatchAdapt(pb.WatchAdaptRequest(job_id=job.job_id)))
        server.stub.SetAlias(pb.SetAliasRequest(alias="line-3", task_id=self.asked))
        self.words = (self.asked, job.job_id, "line-3", "1")
        self._support = server.request(support).support
        self._answer = self._classify()

    def seeds(self, method: MethodDescriptor) -> list[bytes]:
        """Valid requests of a method."""
        image = pb.Image(encoded=FILES[0])
        grey = pb.Image(tensor=pb.Tensor(data_type=1, shape=[28, 28], data=b"\7" * 784))
        options = pb.AdaptOptions(architecture_steps=1, weight_steps=1, learning_rate=0.1, max_parameters=10**6)
        raw = oip.ModelInferRequest(model_name=self.asked, id="7", raw_input_contents=[b"\7" * 784])
        raw.inputs.add(name="images", datatype="UINT8", shape=[1, 28, 28, 1])
        files = oip.ModelInferRequest(model_name="line-3")
        files.inputs.add(name="images", datatype="BYTES", shape=[1]).contents.bytes_contents.append(FILES[1])
        files.outputs.add(name="probabilities").parameters["classification"].int64_param = 2
        task, job = self.asked, self.words[1]
        known: dict[str, list[Message]] = {
            "AdaptRequest": [pb.AdaptRequest(support=self._support, seed=9, options=options, idempotency_key="k")],
            "UpdateTaskRequest": [pb.UpdateTaskRequest(task_id=task, support=self._support, options=options)],
            "ClassifyRequest": [pb.ClassifyRequest(task_id=task, images=[image, grey], top_k=1)],
            "ExportTaskRequest": [pb.ExportTaskRequest(task_id=task, format=1)],
            "SetAliasRequest": [pb.SetAliasRequest(alias="line-4", task_id=self.doomed)],
            "DeleteTaskRequest": [pb.DeleteTaskRequest(task_id=self.doomed)],
            "DeleteAliasRequest": [pb.DeleteAliasRequest(alias="line-4")],
            "ModelInferRequest": [raw, files],
        }
        kind = GetMessageClass(method.input_type)
        if method.input_type.name in known:
            return [message.SerializeToString() for message in known[method.input_type.name]]
        names = {"task_id": task, "job_id": job, "name": task}
        fields = {field.name: names[field.name] for field in method.input_type.fields if field.name in names}
        return [kind(**fields).SerializeToString()]

    def bytes_for(self, path: str, seed: int) -> list[bytes]:
        """The messages of one case."""
        method = METHODS[path]
        # A name of a task that must stay is in no request that could take it away.
        words = (self.doomed,) if "Delete" in method.name else self.words
        return messages(method, self.seeds(method), words, seed=seed)

    def send(self, path: str, sent: list[bytes]) -> tuple[grpc.StatusCode, str, float]:
        """One case: its status, its text, and the processor seconds of the server's process."""
        begin = self._processor_seconds()
        code, text, _ = send(self._server.channel, path, sent)
        return code, text, self._processor_seconds() - begin

    def check_alive(self) -> None:
        """The task that no case knows answers as it did."""
        assert self._server.health() == "SERVING"
        assert self._classify() == self._answer

    def _classify(self) -> list[dict[str, float]]:
        return self._server.classify(self._kept, [pb.Image(encoded=file) for file in FILES])

    def _processor_seconds(self) -> float:
        return time.clock_gettime((~self._server.process.pid << 3) | 2)  # as clock_getcpuclockid(3) makes it


@pytest.fixture(scope="module")
def target(tiny_meta, make_process) -> Target:
    server = make_process(
        *("--meta", str(tiny_meta), "--adapt-workers", "1", "--max-adapt-steps", "4"),
        *("--max-message-mb", "1", "--max-upload-mb", "2"),
    )
    pictures = {name: [pb.Image(encoded=file)] for name, file in zip(("cat", "dog"), FILES, strict=False)}
    return Target(server, pictures)


def check_method(target: Target, path: str, count: int) -> None:
    @cases(count)
    @given(seed=st.integers(0, 2**64 - 1))
    def check(seed: int) -> None:
        sent = target.bytes_for(path, seed)
        code, text, seconds = target.send(path, sent)
        assert code in CODES, f"{code.name}: {text} for {sent!r:.2000}"
        assert code is grpc.StatusCode.OK or text, f"{code.name} without a word for {sent!r:.2000}"
        if seconds > MOST_SECONDS:
            seconds = min(target.send(path, sent)[2] for _ in range(2))
        assert seconds <= MOST_SECONDS, f"{seconds:.3f} s of processor time for {sent!r:.2000}"

    check()
    target.check_alive()


def check_decoder(count: int) -> None:
    preprocessing = Preprocessing(invert=True)

    @cases(count)
    @given(seed=st.integers(0, 2**64 - 1))
    def check(seed: int) -> None:
        chance = random.Random(seed)
        file = chance.choice(FILES)
        data = chance.randbytes(chance.choice((0, 3, 40, 3000))) if seed % 5 == 0 else mutated(file, FILES, chance)
        if seed % 5 == 1:  # what is random is what follows a good beginning
            data = file[: chance.choice((2, 8, 16, 33, 200))] + chance.randbytes(chance.choice((9, 90, 3000)))
        seconds = min(_decoding_seconds(data, preprocessing) for _ in range(3))
        assert seconds <= MOST_SECONDS, f"{seconds:.3f} s of processor time for {data!r:.2000}"

    check()


def _decoding_seconds(data: bytes, preprocessing: Preprocessing) -> float:
    begin = time.thread_time()
    try:
        pixels = read_image(pb.Image(encoded=data), preprocessing, where="image 0")
        assert pixels.shape == (1, 28, 28)
        assert pixels.dtype == np.uint8
    except InvalidRequestError as error:
        assert str(error).startswith("image 0: ")  # noqa: PT017  # both ends are right, this one with its words
    return time.thread_time() - begin


@pytest.mark.parametrize("path", METHODS)
def test_no_request_of_any_bytes_is_a_fault_of_the_server_or_costs_it_more_than_200_ms(target: Target, path: str):
    check_method(target, path, QUICK)


def test_no_bytes_of_a_file_are_a_fault_of_the_decoder_or_cost_it_more_than_200_ms():
    check_decoder(QUICK_IMAGES)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("path", METHODS)
def test_no_request_of_hundreds_a_method_is_a_fault_of_the_server(target: Target, path: str):
    check_method(target, path, SLOW)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_file_of_thousands_is_a_fault_of_the_decoder():
    check_decoder(SLOW_IMAGES)
    assert SLOW_IMAGES + SLOW * len(METHODS) > 20_000
