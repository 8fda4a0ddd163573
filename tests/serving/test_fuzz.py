"""Random and mutated bytes for the decoder of images and for every request of both protocols.

Three kinds of bytes go to each method of a real server process, past any client that would refuse them:
random ones, valid requests that were mutated on the wire, and messages whose every field is filled with
whatever its type can hold. Each case must end with a documented status, which INTERNAL, a fault of the
server, is not, and cost the server's process at most 200 ms of processor time, by the clock that Linux
keeps of that process (``clock_getcpuclockid``): adaptation, in a process of its own, is not in it. A case
over that, perhaps for what another thread did meanwhile, is sent twice more and judged by the least.

Cases are drawn by Hypothesis and the same in each run. `make test-all` takes over 20,000 of them.
"""

import io
import random
import time
from collections.abc import Sequence

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from metanas.preprocessing import Preprocessing
from metanas_proto.inference import open_inference_pb2 as oip
from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_serving.errors import InvalidRequestError
from metanas_serving.images import read_image

QUICK, SLOW = 12, 950
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

METHODS = {
    f"{service.full_name}/{method.name}": method
    for service in (pb.DESCRIPTOR.services_by_name["FewShot"], oip.DESCRIPTOR.services_by_name["GRPCInferenceService"])
    for method in service.methods
}


def cases(count: int) -> settings:
    """So many, always the same ones, without what shrinks them: a failure prints its bytes."""
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )


def file_of(kind: str, size: tuple[int, int] = (28, 28), **options: object) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


FILES = [file_of("PNG"), file_of("JPEG"), file_of("JPEG", (60, 90), progressive=True), file_of("PNG", (1, 1))]


def mutated(base: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """What is left of a message after one to six accidents."""
    data = bytearray(base)
    for _ in range(chance.randint(1, 6)):
        place = chance.randint(0, len(data))
        end = min(len(data), place + chance.choice((1, 2, 8, 64, 4096)))
        match chance.randrange(7):
            case 0 if data:
                data[min(place, len(data) - 1)] = chance.randrange(256)
            case 1 if data:
                data[min(place, len(data) - 1)] ^= 1 << chance.randrange(8)
            case 2:
                data[place:place] = chance.randbytes(chance.choice((1, 4, 40)))
            case 3:
                del data[place:end]
            case 4:
                data[place:place] = data[place:end]
            case 5:
                del data[place:]
            case _:
                other = chance.choice(others)
                data[place:end] = other[chance.randint(0, len(other)) :]
    return bytes(data[:300_000])


NUMBERS = (0, 1, 2, 3, 255, 256, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, -1, -(2**31), -(2**63))
FLOATS = (0.0, -1.0, 0.5, 1.0, 1e-30, 1e30, float("nan"), float("inf"), -float("inf"))
TEXTS = ("", " ", "images", "probabilities", "FP32", "UINT8", "BYTES", "classification", "../../etc/passwd", "é\0\n")
RANGES = {"INT32": (31, True), "INT64": (63, True), "UINT32": (32, False), "UINT64": (64, False), "ENUM": (31, True)}


def filled(message: Message, words: Sequence[str], chance: random.Random, depth: int = 0) -> Message:
    """Fill some fields of a message with whatever their types can hold."""
    for field in message.DESCRIPTOR.fields:
        if chance.random() < 0.4 or depth > 5:
            continue
        repeated = field.is_repeated
        for _ in range(chance.choice((1, 1, 2, 4)) if repeated else 1):
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                entry = getattr(message, field.name)
                filled(entry[chance.choice((*TEXTS[:-1], *words))], words, chance, depth + 1)
            elif field.message_type is not None:
                inner = getattr(message, field.name)
                filled(inner.add() if repeated else inner, words, chance, depth + 1)
            elif repeated:
                getattr(message, field.name).append(_value(field, words, chance))
            else:
                setattr(message, field.name, _value(field, words, chance))
    return message


def _value(field: FieldDescriptor, words: Sequence[str], chance: random.Random) -> object:
    kind = _TYPE_NAMES[field.type]
    if kind == "STRING":
        return chance.choice((*TEXTS, *words, *words, "x" * 300))
    if kind == "BYTES":
        return chance.choice((*FILES, b"", chance.randbytes(chance.choice((1, 16, 784, 4000)))))
    if kind == "BOOL":
        return chance.random() < 0.5
    if kind in ("DOUBLE", "FLOAT"):
        return chance.choice(FLOATS)
    bits, signed = RANGES[kind]
    lowest, highest = (-(2**bits), 2**bits - 1) if signed else (0, 2**bits - 1)
    return chance.choice([number for number in NUMBERS if lowest <= number <= highest])


_TYPE_NAMES = {getattr(FieldDescriptor, name): name[5:] for name in dir(FieldDescriptor) if name.startswith("TYPE_")}


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

    def bytes_for(self, method: MethodDescriptor, seed: int) -> list[bytes]:
        """The messages of one case."""
        chance, seeds = random.Random(seed), self.seeds(method)
        # A name of a task that must stay is in no request that could take it away.
        words = (self.doomed,) if "Delete" in method.name else self.words
        messages = []
        for _ in range(chance.choice((1, 2, 3)) if method.client_streaming else 1):
            match chance.randrange(8):
                case 0:
                    messages.append(chance.randbytes(chance.choice((0, 1, 5, 60, 2000))))
                case 1 | 2 | 3:
                    messages.append(filled(GetMessageClass(method.input_type)(), words, chance).SerializeToString())
                case _:
                    messages.append(mutated(chance.choice(seeds), [*seeds, *FILES], chance))
        return messages

    def send(self, path: str, method: MethodDescriptor, messages: list[bytes]) -> tuple[grpc.StatusCode, str, float]:
        """One case: its status, its text, and the processor seconds of the server's process."""
        kind = "_".join("stream" if side else "unary" for side in (method.client_streaming, method.server_streaming))
        call = getattr(self._server.channel, kind)(f"/{path}")
        begin = self._processor_seconds()
        try:
            answer = call(iter(messages) if method.client_streaming else messages[0], timeout=120)
            if method.server_streaming:
                for _ in answer:
                    pass
            code, text = grpc.StatusCode.OK, ""
        except grpc.RpcError as error:
            code, text = error.code(), error.details()
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
    method = METHODS[path]

    @cases(count)
    @given(seed=st.integers(0, 2**64 - 1))
    def check(seed: int) -> None:
        messages = target.bytes_for(method, seed)
        code, text, seconds = target.send(path, method, messages)
        assert code in CODES, f"{code.name}: {text} for {messages!r:.2000}"
        assert code is grpc.StatusCode.OK or text, f"{code.name} without a word for {messages!r:.2000}"
        if seconds > MOST_SECONDS:
            seconds = min(target.send(path, method, messages)[2] for _ in range(2))
        assert seconds <= MOST_SECONDS, f"{seconds:.3f} s of processor time for {messages!r:.2000}"

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
